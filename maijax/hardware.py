"""Chips and the topologies they come in, as values: what a plan needs to know of machines that nobody here has."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping
from typing import Literal

from maijax.errors import UserError

GiB = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """One accelerator as it is sold: a TPU chip or a GPU. Rates are per chip and second, links count one way."""

    name: str  # as in a topology's text: "v5p"
    platform: Literal["tpu", "gpu"]
    compile_name: str  # libtpu's topology prefix, or the device name that the CUDA plugin reports
    devices: int = 1  # that jax sees per chip; memory and rates are shared out evenly
    peak_flops: float  # dense bf16
    matrix: int  # rows of its matrix unit: narrower heads leave part of it idle; GPU: 64, which all heads fill
    efficiency: float  # share of the peak that large products reach in a whole step; fitted, see docs/plan.md
    hbm_bytes: int  # that a program may use, of the whole chip
    hbm_bandwidth: float  # bytes
    clock: float  # Hz of the matrix units, which the compiler's cycles count
    torus: int = 0  # TPU: axes of the slice's torus, with two links each; GPU: 0
    link_bandwidth: float  # bytes one way, as sustained: of one ICI link, or of all NVLinks of one GPU
    wrap: int = 0  # TPU: an axis whose size is a multiple of this closes to a ring; else it is a line
    domain: int  # most chips joined by those links: the largest slice, or the GPUs of an NVLink domain
    scale_out: float  # bytes one way between slices (DCN) or nodes (InfiniBand)
    forms: tuple[str, ...]  # legal shapes, for error lines and the search
    price: float  # dollars per chip hour on demand
    priced: str  # date and source of the price

    @property
    def device_flops(self) -> float:
        return self.peak_flops / self.devices

    @property
    def device_hbm(self) -> int:
        return self.hbm_bytes // self.devices


@dataclasses.dataclass(frozen=True, kw_only=True)
class Topology:
    """Chips joined in a shape: a TPU slice's torus, or (nodes, GPUs per node); several slices over the data centre."""

    chip: Chip
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def slice_chips(self) -> int:
        return math.prod(self.shape)

    @property
    def chips(self) -> int:
        return self.slice_chips * self.slices

    @property
    def devices(self) -> int:
        """As jax counts them, over all slices."""
        return self.chips * self.chip.devices

    @property
    def text(self) -> str:
        """Of one slice, as `parse` takes it: "v5p:8x8x8"."""
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"

    @property
    def title(self) -> str:
        return self.text if self.slices == 1 else f"{self.slices} x {self.text}"


def parse(text: str, chips: Mapping[str, Chip], slices: int = 1) -> Topology:
    """A topology from "v5p:8x8x8", "h100:64x8" (64 nodes of 8) or "h100:512" (as many GPUs, in whole nodes).

    Raises UserError, with the names or shapes that there are, for one that there is not.
    """
    name, _, form = text.strip().lower().partition(":")
    if name not in chips:
        near = difflib.get_close_matches(name, chips, n=2, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(chips)}"
        raise UserError(f"topology {text!r}: no chip {name!r}; {hint}")
    chip = chips[name]
    examples = " or ".join(f"{chip.name}:{shape}" for shape in chip.forms[-2:])
    parts = form.split("x")
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UserError(f"topology {text!r}: must be a chip and a shape, e.g. {examples}")
    if slices < 1:
        raise UserError(f"topology {text!r}: slices={slices} must be above 0")
    shape = tuple(map(int, parts))
    shape = _nodes(text, chip, shape) if chip.platform == "gpu" else _slice(text, chip, shape)
    if chip.platform == "gpu" and slices > 1:
        raise UserError(f"topology {text!r}: slices={slices} are for TPUs; write {chip.name}:{slices * shape[0]}x8")
    return Topology(chip=chip, shape=shape, slices=slices)


def _nodes(text: str, chip: Chip, shape: tuple[int, ...]) -> tuple[int, int]:
    """(nodes, GPUs per node)."""
    if len(shape) == 2:
        if shape[1] > chip.domain:
            raise UserError(f"topology {text!r}: {chip.name} has at most {chip.domain} GPUs in a node; "
                            f"try {chip.name}:{math.prod(shape)}")
        return shape[0], shape[1]
    if len(shape) > 2:
        raise UserError(f"topology {text!r}: write nodes x GPUs, e.g. {chip.name}:64x8, or the GPUs, {chip.name}:512")
    count = math.prod(shape)
    if count <= chip.domain:
        return 1, count
    if count % chip.domain:
        below = count // chip.domain * chip.domain
        raise UserError(f"topology {text!r}: {count} GPUs are not whole nodes of {chip.domain}; "
                        f"try {chip.name}:{below} or {chip.name}:{below + chip.domain}")
    return count // chip.domain, chip.domain


def _slice(text: str, chip: Chip, shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape that the chip's slices come in; beyond the listed ones every axis is a multiple of 4, in 3D."""
    form, chips = "x".join(map(str, shape)), math.prod(shape)
    larger = chip.torus == 3 and len(shape) == 3 and chips <= chip.domain and not any(size % 4 for size in shape)
    if form in chip.forms or larger:
        return tuple(shape)
    near = sorted(chip.forms, key=lambda f: abs(math.log(math.prod(map(int, f.split("x"))) / chips)))[:3]
    rule = f" or multiples of 4 up to {chip.domain} chips" if chip.torus == 3 else ""
    raise UserError(
        f"topology {text!r}: {chip.name} has no such slice; try {', '.join(f'{chip.name}:{f}' for f in near)}{rule}"
    )
