"""Bytes that a step takes on one device: state exactly, the rest by what the layout must hold at once.

The rest is a model: a compiler shares buffers and pads tiles as it sees fit; see docs/plan.md for how far off it is.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator
from typing import Literal

from maijax.config import Experiment
from maijax.plan.held import groups, ways
from maijax.plan.links import Links
from maijax.plan.traffic import BATCH, Share, exchanged_rows, share, slots, ticks

Kind = Literal["exact", "model"]
When = Literal["always", "layers", "head"]  # while the backward pass is in the layers, or at the head

_LOGITS = 2**28  # bytes of float32 logits at once, as the loss goes through the tokens in chunks


@dataclasses.dataclass(frozen=True)
class Bytes:
    """One use of memory, on each device."""

    what: str
    size: float
    kind: Kind
    when: When = "always"


def peak(uses: Iterable[Bytes]) -> float:
    """What is needed at once: what is always there, and the larger of the two phases."""
    sums = {"always": 0.0, "layers": 0.0, "head": 0.0}
    for use in uses:
        sums[use.when] += use.size
    return sums["always"] + max(sums["layers"], sums["head"])


def memory(experiment: Experiment, links: Links, width: int = 2) -> tuple[Bytes, ...]:
    """Every use, and when."""
    mesh, model, platform = links.mesh, experiment.model, links.topology.chip.platform
    part = share(experiment, mesh)
    parameters = optimizer = 0.0
    for group in groups(model, experiment.optim):
        shared = ways(mesh, group.at_rest(mesh))
        parameters += 4 * group.size / shared
        optimizer += (group.state - 8 * group.size) / shared
    gradients = parameters
    if experiment.train.accumulation > 1:
        gradients *= 2  # the sum, and those of the micro-batch at hand
    tokens = experiment.train.batch_size * experiment.train.seq_len / math.prod(mesh[a] for a in (*BATCH, "context"))
    kept, working = _activations(experiment, links, part, width)
    found = [
        Bytes("parameters", parameters, "exact"),
        Bytes("optimizer state", optimizer, "model" if experiment.optim.name == "adafactor" else "exact"),
        Bytes("batch", 5 * 4 * tokens, "exact"),  # tokens, targets, segments, positions, weights
        Bytes("activations kept", kept, "model"),
        Bytes("gradients", gradients, "model", "always" if experiment.train.accumulation > 1 else "layers"),
        Bytes("activations of one layer", working, "model", "layers"),
        *_gathered(experiment, links, part, width),
        Bytes("head and logits", _head(experiment, links, part, width), "model", "head"),
    ]
    if model.moe and mesh["expert"] > 1:
        rows = exchanged_rows(experiment, mesh, part) * mesh["tensor"] * slots(experiment, mesh, platform)
        inner = 3 * model.moe.d_ff / mesh["tensor"]
        # Rows in and out, and what is between, forward and backward.
        found.append(Bytes("rows at the experts", width * rows * (4 * model.d_model + 2 * inner), "model", "layers"))
    return tuple(found)


def _activations(experiment: Experiment, links: Links, part: Share, width: int) -> tuple[float, float]:
    """(kept for the backward pass, of the one layer that is at work), bytes."""
    model, mesh = experiment.model, links.mesh
    attention, moe, tensor = model.attention, model.moe, mesh["tensor"]
    heads, kv = attention.num_heads * attention.head_dim, attention.kv_heads * attention.head_dim
    hidden = model.d_ff if moe is None else moe.shared_experts * moe.d_ff
    routed = moe.top_k if moe and mesh["expert"] == 1 else 0  # else they are counted with the exchange
    routed *= slots(experiment, mesh, links.topology.chip.platform)
    rows = 0.0 if moe is None else routed * (2 * model.d_model + 3 * moe.d_ff / tensor)
    shared = (3 * model.d_model + heads + 2 * kv + 2 * hidden) / tensor
    # Float32 norms, the rotated heads, attention's output and row sums, the gated product, the gathered inputs.
    whole = shared + (4 * model.d_model + 2 * heads + kv + hidden) / tensor + 2 * model.d_model + rows
    least = model.d_model / tensor
    attended = heads / tensor
    each = {
        "full": least, "offload": least, "attention": least + attended, "dots": least + shared + attended,
        "none": whole,
    }[model.remat]
    tokens = part.rows * part.length
    in_flight = ticks(experiment, mesh) / experiment.mesh.repeats if mesh["stage"] > 1 else 1
    outside = model.moe.first_dense if model.moe else 0
    kept = width * tokens * each * (part.layers * in_flight + outside * part.micro)
    if model.remat == "offload" and mesh["stage"] == 1:  # one layer's on its way, another's at work; no two loops deep
        kept = min(kept, width * tokens * each * 2)
    return kept, 2 * width * tokens * whole


def offloaded(experiment: Experiment, links: Links, width: int) -> float:
    """Bytes of layers' inputs that a device brings to its host's memory in a step, and back."""
    part = share(experiment, links.mesh)
    tokens = part.rows * part.length * part.micro * part.passes
    return width * tokens * experiment.model.d_model / links.mesh["tensor"] * part.layers


def _gathered(experiment: Experiment, links: Links, part: Share, width: int) -> Iterator[Bytes]:
    """A layer's weights whole in the compute dtype, the next layer's, and a gradient; a stage's, if it keeps them.

    Of experts two matrices of a layer's three, and a gradient, as libtpu orders them; their island gathers all three.
    """
    model, mesh = experiment.model, links.mesh
    total = deepest = busy = own = 0.0
    for group in groups(model, experiment.optim):
        in_use = group.in_use(mesh)
        if group.stack and group.at_rest(mesh) - in_use:
            each = group.size / ways(mesh, in_use) / group.depth
            total += each * (part.layers if group.stack == "layers" else group.depth)
            if group.stack == "layers":
                deepest += each
                busy += each if "expert" in group.axes else 3 * each
        if group.stack == "layers":
            own += group.size / ways(mesh, group.at_rest(mesh))
    by_layer = mesh["stage"] == 1 or experiment.mesh.gather == "layer"
    if mesh["stage"] > 1:  # and the sum of their gradients over the micro-batches
        here = 8 * own if by_layer else (width + 4) * total
        yield Bytes("weights of a stage, and gradients", here, "model")
        if experiment.mesh.repeats > 1:  # each run that was due
            runs = ticks(experiment, mesh) / experiment.mesh.repeats
            yield Bytes("weights of runs", width * runs * (own if by_layer else total), "model")
    if by_layer and model.remat == "none":
        yield Bytes("weights gathered", width * (total + deepest), "model")
    elif by_layer:
        yield Bytes("weights gathered", width * busy, "model", "layers")


def _head(experiment: Experiment, links: Links, part: Share, width: int) -> float:
    """The head whole in the compute dtype, its float32 gradient, chunks of logits, the gradient of the states."""
    model, mesh = experiment.model, links.mesh
    matrix = model.d_model * model.padded_vocab / mesh["tensor"]
    tokens = part.rows * part.length * part.micro / mesh["stage"]
    logits = min(4 * tokens * model.padded_vocab / mesh["tensor"], _LOGITS)
    return (width + 4) * matrix + 3 * logits + 2 * width * tokens * model.d_model
