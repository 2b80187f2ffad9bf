"""Which layout to take: every split of the devices that the rules allow and the memory holds, ranked by step time.

Pure arithmetic over `arithmetic.estimate`; compiling the best few is somebody else's work. Splits are powers of two,
or what is left; beside the mesh, remat, micro-batches of accumulation and of the pipeline, and repeats are tried.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator

from maijax import rules
from maijax.config import MESH_AXES, Experiment, MeshConfig, Remat
from maijax.hardware import Topology
from maijax.plan import arithmetic
from maijax.plan.arithmetic import USABLE, Estimate
from maijax.plan.links import lay
from maijax.plan.memory import memory, peak

_REMAT: tuple[Remat, ...] = ("none", "dots", "full")
_MOST_STAGES, _MOST_CONTEXT = 16, 16
_MICRO = (1, 2, 4, 8)  # micro-batches of the pipeline, in stages
_REPEATS = (1, 2, 4)
_GIB = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """One way to run the experiment, and what it would take."""

    experiment: Experiment  # with this mesh, remat and accumulation
    estimate: Estimate

    @property
    def text(self) -> str:
        """Only what is not 1: "fsdp 256, tensor 8, remat full"."""
        return _text(self.experiment, self.estimate.mesh)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loser:
    """A layout that was not taken, and why, in one line."""

    text: str
    why: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
    """The answer of a search."""

    best: tuple[Layout, ...]  # fastest first
    losers: tuple[Loser, ...]  # the best of each other kind of split: slower, then too large, then refused
    tried: int
    slower: int
    too_large: int
    refused: int


def search(experiment: Experiment, topology: Topology, best: int = 3, losers: int = 12) -> Found:
    """The fastest layouts for the experiment's batch on a topology; `best` is empty if none fits.

    The batch, the sequence length and the model stay as they are.
    """
    fitting: list[Layout] = []
    large: dict[tuple[str, ...], tuple[float, str, str]] = {}  # of each kind of split, the smallest
    refused: dict[str, str] = {}
    too_large = tried = count = 0
    for mesh in splits(experiment, topology):
        sizes = mesh.shape(topology.devices)
        for changed in _variants(experiment, mesh, sizes):
            tried += 1
            if problems := rules.problems(changed, sizes):
                count += 1
                refused.setdefault(problems[0].partition("; ")[0], _text(changed, sizes))
                continue
            uses = memory(changed, lay(topology, sizes))
            needed = peak(uses)
            if needed > USABLE * topology.chip.device_hbm:
                too_large += 1
                most = max(uses, key=lambda use: use.size)
                why = (f"needs {needed / _GIB:.1f} GiB of {USABLE * topology.chip.device_hbm / _GIB:.1f}: "
                       f"{most.what} {most.size / _GIB:.1f}")
                kind = _kind(sizes)
                large[kind] = min(large.get(kind, (math.inf, "", "")), (needed, _text(changed, sizes), why))
                continue
            found = arithmetic.estimate(changed, topology)
            fitting.append(Layout(experiment=changed, estimate=found))
    fitting.sort(key=lambda layout: layout.estimate.step_seconds)
    kinds = {_kind(layout.estimate.mesh) for layout in fitting}
    reasons = [
        *_slower(fitting, best),
        *(Loser(text=text, why=why) for kind, (_, text, why) in sorted(large.items(), key=lambda item: item[1][0])
          if kind not in kinds),
        *(Loser(text=text, why=why) for why, text in refused.items()),
    ]
    return Found(
        best=tuple(fitting[:best]), losers=tuple(reasons[:losers]), tried=tried,
        slower=max(0, len(fitting) - best), too_large=too_large, refused=count,
    )


def splits(experiment: Experiment, topology: Topology) -> Iterator[MeshConfig]:
    """Meshes over the topology's devices: powers of two on each axis that can serve, the rest on fsdp.

    `replica` crosses the slices and `data` stays 1 where fsdp can take all; tensor parallelism stays inside what fast
    links join: an NVLink domain, or one or two axes of a torus.
    """
    model, train, chip = experiment.model, experiment.train, topology.chip
    devices = topology.devices // topology.slices
    depth = model.num_layers - (model.moe.first_dense if model.moe else 0)
    fast = min(chip.domain, topology.shape[-1]) if chip.platform == "gpu" else 32
    choices = (
        _powers(min(_MOST_STAGES, depth), devices),
        _powers(model.moe.num_experts, devices) if model.moe else (1,),
        _powers(min(_MOST_CONTEXT, train.seq_len // 4_096), devices),
        _powers(min(fast, model.attention.num_heads), devices),
    )
    for stage, expert, context, tensor in itertools.product(*choices):
        used = stage * expert * context * tensor
        if devices % used or (context > 1 and stage > 1):
            continue
        rest = devices // used
        for data in _powers(rest, rest):
            if data > 1 and rest // data < 2 and rest > 8:
                continue
            yield MeshConfig(
                replica=topology.slices, stage=stage, data=data, fsdp=rest // data, expert=expert, context=context,
                tensor=tensor, attention=experiment.mesh.attention, exchange_room=experiment.mesh.exchange_room,
            )


def _variants(experiment: Experiment, mesh: MeshConfig, sizes: dict[str, int]) -> Iterator[Experiment]:
    """The experiment on this mesh with each remat, and the accumulation or micro-batches that the batch allows."""
    train = experiment.train
    shares = math.prod(sizes[a] for a in rules.RULES["batch"])
    rows = train.batch_size // shares
    for remat in _REMAT:
        model = dataclasses.replace(experiment.model, remat=remat)
        if mesh.stage == 1:
            for accumulation in _powers(max(1, rows), max(1, rows)):
                changed = dataclasses.replace(train, accumulation=accumulation)
                yield dataclasses.replace(experiment, model=model, mesh=mesh, train=changed)
            continue
        changed = dataclasses.replace(train, accumulation=1)
        depth = model.num_layers - (model.moe.first_dense if model.moe else 0)
        for times, repeats in itertools.product(_MICRO, _REPEATS):
            if (mesh.stage * repeats <= depth and times * mesh.stage <= rows) or times == repeats == 1:
                piped = dataclasses.replace(mesh, microbatches=times * mesh.stage, repeats=repeats)
                yield dataclasses.replace(experiment, model=model, mesh=piped, train=changed)


def _powers(most: int, divides: int) -> tuple[int, ...]:
    """1, 2, 4 up to `most`, of those that divide."""
    found = [2**i for i in range(max(1, most).bit_length()) if 2**i <= max(1, most)]
    return tuple(size for size in found if divides % size == 0)


def _kind(sizes: dict[str, int]) -> tuple[str, ...]:
    """Which axes a split uses, tensor's size said: layouts of one kind are told of once."""
    return tuple(a for a in MESH_AXES if sizes[a] > 1)


def _slower(fitting: list[Layout], best: int) -> Iterator[Loser]:
    """The fastest of each kind of split after the best, with the term that costs most more than the winner's."""
    seen = {_kind(layout.estimate.mesh) for layout in fitting[:best]}
    for layout in fitting[best:]:
        kind = _kind(layout.estimate.mesh)
        if kind in seen:
            continue
        seen.add(kind)
        first = fitting[0].estimate
        usual = {part.what: part.seconds for part in first.times}
        more = max(layout.estimate.times, key=lambda part: part.seconds - usual.get(part.what, 0.0))
        slower = layout.estimate.step_seconds / first.step_seconds - 1
        gap = more.seconds - usual.get(more.what, 0.0)
        yield Loser(text=layout.text, why=f"{slower:.0%} slower: {more.what} +{gap:.2g} s")


def _text(experiment: Experiment, sizes: dict[str, int]) -> str:
    words = [f"{axis} {sizes[axis]}" for axis in MESH_AXES if sizes[axis] > 1] or ["one device"]
    words.append(f"remat {experiment.model.remat}")
    if experiment.train.accumulation > 1:
        words.append(f"accumulation {experiment.train.accumulation}")
    if sizes["stage"] > 1:
        words.append(f"micro-batches {experiment.mesh.microbatches}")
        if experiment.mesh.repeats > 1:
            words.append(f"repeats {experiment.mesh.repeats}")
    return ", ".join(words)
