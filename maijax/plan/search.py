"""Which layout to take: every split of the devices that the rules allow and the memory holds, ranked by step time.

Pure arithmetic over `arithmetic.estimate`; compiling the best few is somebody else's work. Splits are powers of two,
or what is left; beside the mesh, remat, micro-batches of accumulation and of the pipeline, and repeats are tried.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Literal

from maijax import rules
from maijax.config import MESH_AXES, Experiment, MeshConfig, Remat
from maijax.hardware import Topology
from maijax.plan import arithmetic
from maijax.plan.arithmetic import USABLE, Estimate
from maijax.plan.links import lay
from maijax.plan.memory import memory, peak

_REMAT: tuple[Remat, ...] = ("none", "dots", "attention", "full", "offload")
_MOST_STAGES, _MOST_CONTEXT, _MOST_DATA = 16, 16, 16
_LEAST_TOKENS = 2_048  # of a sequence on one device: less leaves attention's blocks too small
_MICRO = (1, 2, 4, 8)  # micro-batches of the pipeline, in stages
_REPEATS = (1, 2, 4)
_GATHER: tuple[Literal["step", "layer"], ...] = ("step", "layer")
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
    large: dict[tuple[str, ...], tuple[float, Loser]] = {}  # of each kind of split, the smallest
    refused: dict[str, tuple[int, Loser]] = {}  # of each value that does not divide, how many and one of them
    tried = too_large = 0
    room = USABLE * topology.chip.device_hbm
    for mesh in splits(experiment, topology):
        sizes = mesh.shape(topology.devices)
        links = lay(topology, sizes)
        for family in _variants(experiment, mesh, sizes):
            for changed in family:
                tried += 1
                if problems := rules.problems(changed, sizes):
                    name = problems[0].partition(":")[0].partition("=")[0]
                    count, first = refused.get(name, (0, Loser(text=_text(changed, sizes), why=problems[0])))
                    refused[name] = (count + 1, first)
                    break  # smaller micro-batches divide no better
                uses = memory(changed, links, 4 if changed.model.dtype == "float32" else 2)
                if (needed := peak(uses)) <= room:
                    fitting.append(Layout(experiment=changed, estimate=arithmetic.estimate(changed, topology)))
                    break  # smaller micro-batches are no faster
                too_large += 1
                most = max(uses, key=lambda use: use.size)
                why = (f"needs {needed / _GIB:.1f} GiB of the {room / _GIB:.1f} there are, "
                       f"{most.size / _GIB:.1f} for {most.what}")
                least = large.get(_kind(sizes))
                if least is None or needed < least[0]:
                    large[_kind(sizes)] = (needed, Loser(text=_text(changed, sizes), why=why))
    fitting.sort(key=lambda layout: layout.estimate.step_seconds)
    kinds = {_kind(layout.estimate.mesh) for layout in fitting}
    reasons = [
        *_slower(fitting, best),
        *(loser for kind, (_, loser) in sorted(large.items(), key=lambda item: item[1][0]) if kind not in kinds),
        *(dataclasses.replace(loser, why=loser.why + (f" (and {count - 1} more)" if count > 1 else ""))
          for count, loser in refused.values()),
    ]
    return Found(
        best=tuple(fitting[:best]), losers=tuple(reasons[:losers]), tried=tried,
        slower=max(0, len(fitting) - best), too_large=too_large, refused=sum(count for count, _ in refused.values()),
    )


def splits(experiment: Experiment, topology: Topology) -> Iterator[MeshConfig]:
    """Meshes over the topology's devices: powers of two on each axis that can serve, the rest on fsdp.

    `replica` crosses the slices, or `stage`, or both; tensor parallelism stays inside what fast links join, an NVLink
    domain or one or two axes of a torus.
    """
    model, train, chip = experiment.model, experiment.train, topology.chip
    devices = topology.devices // topology.slices
    fast = min(chip.domain, topology.shape[-1]) if chip.platform == "gpu" else 32
    choices = (
        _powers(min(_MOST_STAGES, _depth(experiment)), devices),
        _powers(model.moe.num_experts, devices) if model.moe else (1,),
        _powers(min(_MOST_CONTEXT, train.seq_len // _LEAST_TOKENS), devices),
        _powers(min(fast, model.attention.num_heads), devices),
    )
    copies = [r for r in range(1, topology.slices + 1) if topology.slices % r == 0]
    for replica, inside, expert, context, tensor in itertools.product(copies, *choices):
        used, stage = inside * expert * context * tensor, inside * topology.slices // replica
        if devices % used or (context > 1 and stage > 1) or stage > _depth(experiment):
            continue
        rest = devices // used
        for data in sorted({*_powers(_MOST_DATA, rest), rest}):
            yield MeshConfig(
                replica=replica, stage=stage, data=data, fsdp=rest // data, expert=expert, context=context,
                tensor=tensor, attention=experiment.mesh.attention, exchange_room=experiment.mesh.exchange_room,
            )


def _variants(experiment: Experiment, mesh: MeshConfig, sizes: Mapping[str, int]) -> Iterator[Iterator[Experiment]]:
    """The experiment on this mesh: for each remat and each way through the pipeline, by ever smaller micro-batches."""
    train = experiment.train
    rows = train.batch_size // math.prod(sizes[a] for a in rules.RULES["batch"])
    for remat in _REMAT:
        remade = dataclasses.replace(experiment, model=dataclasses.replace(experiment.model, remat=remat), mesh=mesh)
        if mesh.stage == 1:
            yield (
                dataclasses.replace(remade, train=dataclasses.replace(train, accumulation=accumulation))
                for accumulation in _powers(max(1, rows), max(1, rows))
            )
            continue
        if remat == "offload":  # nothing leaves the device from inside the pipeline's loops
            continue
        turns = [r for r in _REPEATS if r == 1 or mesh.stage * r <= _depth(experiment)]
        for gather, times, repeats in itertools.product(_GATHER, _MICRO, turns):
            micro = times * mesh.stage
            piped = dataclasses.replace(mesh, microbatches=micro, repeats=repeats, gather=gather)
            yield (
                dataclasses.replace(remade, mesh=piped, train=dataclasses.replace(train, accumulation=accumulation))
                for accumulation in _powers(max(1, rows // micro), max(1, rows))
            )


def _depth(experiment: Experiment) -> int:
    """Layers that a pipeline can share out."""
    moe = experiment.model.moe
    return experiment.model.num_layers - (moe.first_dense if moe else 0)


def _powers(most: int, divides: int) -> tuple[int, ...]:
    """1, 2, 4 up to `most`, of those that divide."""
    found = [2**i for i in range(max(1, most).bit_length()) if 2**i <= max(1, most)]
    return tuple(size for size in found if divides % size == 0)


def _kind(sizes: Mapping[str, int]) -> tuple[str, ...]:
    """Which axes a split uses: of the losers of one kind, one is told of; copies of the weights make no kind."""
    return tuple(a for a in MESH_AXES if sizes[a] > 1 and a not in ("replica", "data"))


def _slower(fitting: list[Layout], best: int) -> Iterator[Loser]:
    """The fastest of each kind of split after the best."""
    seen = {_kind(layout.estimate.mesh) for layout in fitting[:best]}
    for layout in fitting[best:]:
        kind = _kind(layout.estimate.mesh)
        if kind not in seen:
            seen.add(kind)
            yield slower(layout, fitting[0])


def slower(layout: Layout, first: Layout) -> Loser:
    """A layout beside the fastest: by how much it is slower, and the term that costs most more than the fastest's."""
    usual = {part.what: part.seconds for part in first.estimate.times}
    more = max(layout.estimate.times, key=lambda part: part.seconds - usual.get(part.what, 0.0))
    behind = layout.estimate.step_seconds / first.estimate.step_seconds - 1
    gap = more.seconds - usual.get(more.what, 0.0)
    return Loser(text=layout.text, why=f"{behind:.0%} slower: {gap:.2g} s more for {more.what}")


def _text(experiment: Experiment, sizes: Mapping[str, int]) -> str:
    words = [f"{axis} {sizes[axis]}" for axis in MESH_AXES if sizes[axis] > 1] or ["one device"]
    words.append(f"remat {experiment.model.remat}")
    if experiment.train.accumulation > 1:
        words.append(f"accumulation {experiment.train.accumulation}")
    if sizes["stage"] > 1:
        words.append(f"gathered by {experiment.mesh.gather}")
        words.append(f"micro-batches {experiment.mesh.microbatches}")
        if experiment.mesh.repeats > 1:
            words.append(f"repeats {experiment.mesh.repeats}")
    return ", ".join(words)
