"""How long a collective takes: which links of the machine each mesh axis runs over, and what they carry.

TPU: mesh axes are laid on the axes of the torus, the last mesh axis first. A ring has two links a device, a line one;
collectives over several torus axes use the links of all of them at once. An axis of the torus that two mesh axes
share is a line for the faster one, and for the slower one a ring whose links carry all of its neighbours' traffic.
GPU: devices are numbered along the mesh, the last axis fastest, so an axis lies inside an NVLink domain as far as
its stride and size let it, and over the network beyond. Source: jax-ml.github.io/scaling-book/sharding for the times.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Literal

from maijax.config import MESH_AXES
from maijax.hardware import Topology
from maijax.rules import across

Kind = Literal["all-gather", "reduce-scatter", "all-reduce", "all-to-all", "permute"]

_CORES = 6  # links' worth between the two devices of one chip


@dataclasses.dataclass(frozen=True)
class Piece:
    """A mesh axis' share of one torus axis, or of the network between slices."""

    size: int
    rate: float  # bytes per second that a device takes in by a gather over it


@dataclasses.dataclass(frozen=True)
class Links:
    """A mesh laid on a machine."""

    topology: Topology
    mesh: Mapping[str, int]
    pieces: Mapping[str, tuple[Piece, ...]]  # TPU, inside a slice
    between: Mapping[str, int] = dataclasses.field(default_factory=dict)  # ways that an axis crosses slices

    def ways(self, axes: Sequence[str]) -> int:
        return math.prod(self.mesh[axis] for axis in axes)

    def moved(self, kind: Kind, axes: Sequence[str], size: float) -> float:
        """Bytes that each device sends: `size` is the whole array that a group of devices gathers or reduces.

        For all-to-all and permute it is what each device holds to send.
        """
        ways = self.ways(axes)
        if ways == 1:
            return 0.0
        part = (ways - 1) / ways
        return size * {"all-reduce": 2 * part, "permute": 1.0}.get(kind, part)

    def seconds(self, kind: Kind, axes: Sequence[str], size: float) -> float:
        """Time of one collective over these mesh axes; `size` as in `moved`."""
        axes = [axis for axis in axes if self.mesh[axis] > 1]
        if not axes or size == 0:
            return 0.0
        if self.topology.chip.platform == "gpu":
            return self._gpu(kind, axes, size)
        return self._tpu(kind, axes, size)

    def _tpu(self, kind: Kind, axes: Sequence[str], size: float) -> float:
        inside = [piece for axis in axes for piece in self.pieces[axis] if piece.size > 1]
        chip = self.topology.chip
        crossing = math.prod(self.between.get(axis, 1) for axis in axes)
        outside = Piece(crossing, chip.scale_out / chip.devices)
        ways = math.prod(piece.size for piece in inside)
        if kind == "permute":
            one_way = chip.link_bandwidth / chip.devices  # a ring's other links stay idle
            return size / min(one_way, *(piece.rate for piece in [*inside, outside] if piece.size > 1))
        if kind == "all-to-all":
            found = max((piece.size * size / (4 * piece.rate) for piece in inside), default=0.0)
            return found + size * (outside.size - 1) / outside.size / outside.rate
        passes = 2 if kind == "all-reduce" else 1
        rate = sum(piece.rate for piece in inside)
        found = passes * size * (ways - 1) / ways / rate if inside else 0.0
        # Between slices each device exchanges only the part that it holds once its own slice is done.
        return found + passes * size / ways * (outside.size - 1) / outside.size / outside.rate

    def _gpu(self, kind: Kind, axes: Sequence[str], size: float) -> float:
        chip = self.topology.chip
        near = 1
        for axis in axes:
            stride = math.prod(self.mesh[a] for a in MESH_AXES[MESH_AXES.index(axis) + 1 :])
            near *= max(1, min(self.mesh[axis], min(chip.domain, self.topology.shape[1]) // stride))
        ways = self.ways(axes)
        far = ways / near
        if kind == "permute":
            return size / (chip.link_bandwidth if far == 1 else chip.scale_out)
        if kind == "all-to-all":
            return max(size * (ways - near) / ways / chip.scale_out, size * (near - 1) / ways / chip.link_bandwidth)
        passes = 2 if kind == "all-reduce" else 1
        # A node's network cards each fetch a part, and NVLink hands it on.
        fetched = (far - 1) / far / (near * chip.scale_out)
        handed = (near - 1) / near / chip.link_bandwidth
        return passes * size * max(fetched, handed)


def lay(topology: Topology, mesh: Mapping[str, int]) -> Links:
    """Which links each mesh axis gets."""
    chip = topology.chip
    if chip.platform == "gpu":
        return Links(topology, mesh, {})
    between = across(mesh, topology.slices)
    left: list[tuple[int, float]] = []  # (size, rate) of what no mesh axis has taken yet
    for size in topology.shape:
        links = 2 if size % chip.wrap == 0 else 1
        left.append((size, links * chip.link_bandwidth / chip.devices))
    if chip.devices > 1:
        left.append((chip.devices, _CORES * chip.link_bandwidth / chip.devices))
    pieces: dict[str, tuple[Piece, ...]] = {}
    for axis in reversed(MESH_AXES):
        pieces[axis] = _take(mesh[axis] // between.get(axis, 1), left, chip.link_bandwidth / chip.devices)
    return Links(topology, mesh, pieces, between)


def _take(ways: int, left: list[tuple[int, float]], link: float) -> tuple[Piece, ...]:
    """The torus axes that multiply to `ways`, whole ones where there are such, and takes them off what is left."""
    if ways <= 1:
        return ()
    whole = [
        chosen for count in range(1, len(left) + 1) for chosen in itertools.combinations(range(len(left)), count)
        if math.prod(left[i][0] for i in chosen) == ways
    ]
    if whole:
        best = max(whole, key=lambda chosen: sum(left[i][1] for i in chosen))
        taken = tuple(Piece(*left[i]) for i in best)
        left[:] = [axis for i, axis in enumerate(left) if i not in best]
        return taken
    found: list[Piece] = []
    for i in sorted(range(len(left)), key=lambda i: -left[i][0]):
        size, rate = left[i]
        shared = math.gcd(ways, size)
        if shared == 1:
            continue
        if shared == size:
            found.append(Piece(size, rate))
            left[i] = (1, 0.0)
        else:
            found.append(Piece(shared, min(rate, link)))
            left[i] = (size // shared, rate / shared)
        ways //= shared
        if ways == 1:
            break
    left[:] = [axis for axis in left if axis[0] > 1]
    return tuple(found) if found else (Piece(ways, link),)
