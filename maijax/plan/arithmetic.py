"""Time, memory, traffic and cost of a training step, from values and few constants: no compiler, no device.

A step's time is its products at the chip's efficiency, memory traffic beside them, the part of the collectives that
does not hide behind products, and the pipeline's idle share. EXPERTS and each `Chip.efficiency` are fitted to one
published run and tested on others; the other constants are round numbers: see docs/plan.md.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping

from maijax import scaling
from maijax.config import Experiment, ModelConfig
from maijax.hardware import Topology
from maijax.plan import work
from maijax.plan.held import groups, ways
from maijax.plan.links import Links, lay
from maijax.plan.memory import Bytes, Kind, memory, offloaded, peak
from maijax.plan.traffic import Collective, padded_layers, rows_and_tile, slots, traffic

SCORES = 0.65  # of a matmul's efficiency that attention kernels reach
EXPERTS = 0.67  # of a matmul's efficiency that products grouped by expert reach, uneven loads included
# Of the time of weights' and gradients' collectives that hides behind products. Of the activations' none does: they
# wait for one product, and the next waits for them.
HIDDEN = 0.5
# Bytes per second between a device and its host's memory, each way: half of a PCIe 4 link of 16 lanes, shared by two.
HOST = 8e9
USABLE = 0.94  # of a device's memory that a plan may fill; the rest is the compiler's and the runtime's

_DAY = 86_400


@dataclasses.dataclass(frozen=True)
class Seconds:
    """One use of a step's time, on each device."""

    what: str
    seconds: float


# What a reader may take each figure for; memory says it of each use.
KINDS: Mapping[str, Kind] = {
    "tokens": "exact", "flops_per_token": "exact", "full_flops_per_token": "exact", "parts": "exact",
    "collectives": "model", "times": "model", "step_seconds": "model", "tokens_per_chip": "model", "mfu": "model",
    "full_mfu": "model", "days": "model", "cost": "model", "peak_bytes": "model", "fits": "model",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a step takes; `KINDS` says which figures are counts and which a model's."""

    topology: Topology
    mesh: Mapping[str, int]
    parts: tuple[work.Part, ...]  # FLOPs of one token
    tokens: int  # of one step, all devices
    run_tokens: int  # of the whole run
    flops_per_token: float  # 6N and causal attention, as `scaling.train_flops_per_token`
    full_flops_per_token: float  # with attention counted as if every key were seen, as many published figures are
    times: tuple[Seconds, ...]  # their sum is `step_seconds`; collectives: what does not hide
    collectives: tuple[Collective, ...]
    memory: tuple[Bytes, ...]

    @property
    def step_seconds(self) -> float:
        return sum(part.seconds for part in self.times)

    @property
    def tokens_per_chip(self) -> float:
        """Per second."""
        return self.tokens / self.step_seconds / self.topology.chips

    @property
    def mfu(self) -> float:
        """Model FLOPs over the bf16 peak: 6N and causal attention."""
        return self.tokens_per_chip * self.flops_per_token / self.topology.chip.peak_flops

    @property
    def full_mfu(self) -> float:
        """As `mfu`, with attention not causal: MaxText before July 2025, Megatron."""
        return self.tokens_per_chip * self.full_flops_per_token / self.topology.chip.peak_flops

    @property
    def days(self) -> float:
        """Of the whole run, without stops."""
        return self.run_tokens / self.tokens * self.step_seconds / _DAY

    @property
    def cost(self) -> float:
        """Dollars, on demand; see the chip's `priced`."""
        return self.days * 24 * self.topology.chips * self.topology.chip.price

    @property
    def peak_bytes(self) -> float:
        """Of memory on one device."""
        return peak(self.memory)

    @property
    def fits(self) -> bool:
        return self.peak_bytes <= USABLE * self.topology.chip.device_hbm

    @property
    def slowest(self) -> Seconds:
        """What takes most of the step beside the products that are needed anyway."""
        return max((part for part in self.times if part.what != "products"), key=lambda part: part.seconds)


@functools.lru_cache(maxsize=64)
def _counts(model: ModelConfig, seq_len: int) -> tuple[float, float]:
    """Training FLOPs of a token, causal and full."""
    causal = scaling.train_flops_per_token(model, seq_len)
    channels = model.num_layers * model.attention.num_heads * model.attention.head_dim
    return causal, causal + 12 * channels * (seq_len - work.visible_keys(model, seq_len))


def estimate(
    experiment: Experiment, topology: Topology, parts: tuple[work.Part, ...] | None = None
) -> Estimate:
    """A step of the experiment on its mesh over the topology's devices; assumes that `rules.problems` has none.

    Compute is bfloat16, as chips do it best, unless the model says float32: then as many bytes more move, while
    products keep the bfloat16 peak. `parts` stands in for shapes and remat that the values cannot say.
    Raises UserError if the mesh does not fit the devices.
    """
    model, train = experiment.model, experiment.train
    mesh = experiment.mesh.shape(topology.devices)
    links = lay(topology, mesh)
    again = model.remat != "none" if parts is None else any(part.rerun for part in parts)
    if parts is None:
        parts = work.parts(model, train.seq_len)
        if model.moe and mesh["expert"] > 1:  # an exchange keeps nothing: going back, it is made again
            parts = tuple(dataclasses.replace(p, rerun=p.rerun or p.name == "experts") for p in parts)
    tokens = train.batch_size * train.seq_len
    width = 4 if model.dtype == "float32" else 2
    collectives = tuple(traffic(experiment, links, width))
    causal, full = _counts(model, train.seq_len)
    return Estimate(
        topology=topology, mesh=mesh, parts=parts, tokens=tokens, run_tokens=experiment.tokens,
        flops_per_token=causal, full_flops_per_token=full, collectives=collectives,
        times=_times(experiment, links, parts, collectives, width, again), memory=memory(experiment, links, width),
    )


def _times(
    experiment: Experiment, links: Links, parts: tuple[work.Part, ...], collectives: tuple[Collective, ...], width: int,
    rerun: bool,
) -> tuple[Seconds, ...]:
    """What a step's time goes into; the exposed part of each kind of collective in proportion to its time."""
    model, mesh, chip = experiment.model, links.mesh, links.topology.chip
    tokens = experiment.train.batch_size * experiment.train.seq_len / links.topology.devices
    turns, stages = 1.0, mesh["stage"]
    depth = model.num_layers - (model.moe.first_dense if model.moe else 0)
    padding = padded_layers(experiment, mesh) / depth
    if stages > 1:
        micro = (experiment.mesh.microbatches or stages) * experiment.mesh.repeats
        turns = (micro + stages - 1) / micro

    needed = again = 0.0
    for part in parts:
        rate = chip.device_flops * efficiency(experiment, links, part)
        layers = padding if part.share == "layers" else 1.0
        needed += tokens * layers * (part.forward + part.backward) / rate
        again += tokens * layers * part.forward / rate if part.rerun else 0.0
    places = slots(experiment, mesh, chip.platform) if any(p.waste < 1 for p in parts if p.name in work.GROUPED) else 1
    moved = tokens * padding * work.elementwise_bytes(model, rerun, width, places)
    beside = moved / (chip.hbm_bandwidth / chip.devices)
    state = sum(group.state / ways(mesh, group.at_rest(mesh)) for group in groups(model, experiment.optim))
    update = 2 * state / (chip.hbm_bandwidth / chip.devices)  # read and written
    busy = (needed + again) * turns

    early = sum(c.seconds for c in collectives if c.early)
    hidden = min(HIDDEN * early, busy)
    found = [
        Seconds("products", needed), Seconds("products again (remat)", again),
        Seconds("memory traffic beside products", beside), Seconds("optimizer", update),
        Seconds("idle in the pipeline", (needed + again + beside) * (turns - 1)),
    ]
    if model.remat == "offload":  # beside the products, if it is not longer than they are
        away = offloaded(experiment, links, width) / HOST
        found.append(Seconds("layer inputs, to the host and back", max(0.0, away - busy / 3)))
    for what, is_early in dict.fromkeys((c.what, c.early) for c in collectives):
        mine = [c for c in collectives if c.what == what]
        axes = ", ".join(dict.fromkeys(a for c in mine for a in c.axes))
        shown = (1 - hidden / early) if is_early else turns
        found.append(Seconds(f"{what}, over {axes}", shown * sum(c.seconds for c in mine)))
    return tuple(part for part in found if part.seconds)


def efficiency(experiment: Experiment, links: Links, part: work.Part) -> float:
    """Share of the peak that a part's products reach."""
    model, chip = experiment.model, links.topology.chip
    if part.name == "scores":
        # A head narrower than the matrix unit leaves part of it idle.
        filled = model.attention.head_dim / chip.matrix
        return chip.efficiency * SCORES * filled / math.ceil(filled)
    if part.name not in work.GROUPED or model.moe is None or model.moe.num_experts == links.mesh["expert"]:
        return chip.efficiency
    rows, tile = rows_and_tile(experiment, links.mesh, chip.platform)
    return chip.efficiency * EXPERTS * rows / (rows + part.waste * tile)
