"""The collectives of one training step, as our layout needs them: what moves, over which mesh axes, and how long.

Sizes are of one device's group: the array that it gathers, reduces or sends. See `maijax.rules` for the axes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping

from maijax.config import Experiment
from maijax.plan import work
from maijax.plan.held import groups, ways
from maijax.plan.links import Kind, Links
from maijax.rules import RULES

BATCH = RULES["batch"]
_START = 1e-5  # seconds until a collective's first bytes move; what keeps small models on few devices
# Rows of a grouped kernel's tile, the largest of which an expert has two.
_TILES = {"tpu": (512, 256, 128), "gpu": (128,)}
REST = RULES["embed"]  # what shares out a weight's rows at rest, and gathers them at use


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collective:
    """One kind of transfer, all of a step's together."""

    what: str
    kind: Kind
    axes: tuple[str, ...]  # mesh axes larger than 1
    bytes: float  # that each device sends in a step
    seconds: float
    early: bool  # can run beside the products of another layer: weights and gradients, not activations


@dataclasses.dataclass(frozen=True, kw_only=True)
class Share:
    """What one device has of a step."""

    rows: float  # sequences per micro-batch, of accumulation and of the pipeline
    length: float  # tokens of each
    passes: int  # times that the layers' weights are gathered: micro-batches of accumulation
    micro: int  # micro-batches of the pipeline in each pass
    layers: float  # of its stage, padding layers counted

    @property
    def tokens(self) -> float:
        """Per step, counting a token once on each device that works on it whole (`tensor` peers share heads)."""
        return self.rows * self.length * self.passes * self.micro


def share(experiment: Experiment, mesh: Mapping[str, int]) -> Share:
    train = experiment.train
    stages = mesh["stage"]
    micro = (experiment.mesh.microbatches or stages) if stages > 1 else 1
    rows = train.batch_size / train.accumulation / math.prod(mesh[a] for a in BATCH) / micro
    return Share(
        rows=rows, length=train.seq_len / mesh["context"], passes=train.accumulation, micro=micro,
        layers=padded_layers(experiment, mesh) / stages,
    )


def padded_layers(experiment: Experiment, mesh: Mapping[str, int]) -> int:
    """Layers of the pipeline, filled up so that every stage has as many in each repeat."""
    model = experiment.model
    depth = model.num_layers - (model.moe.first_dense if model.moe else 0)
    if mesh["stage"] == 1:
        return depth
    turns = mesh["stage"] * experiment.mesh.repeats
    return -(-depth // turns) * turns


def ticks(experiment: Experiment, mesh: Mapping[str, int]) -> int:
    """Of the pipeline, in each pass: every one works through one run of layers, some of them idly."""
    return share(experiment, mesh).micro * experiment.mesh.repeats + mesh["stage"] - 1


def traffic(experiment: Experiment, links: Links, width: int = 2) -> list[Collective]:
    """Every collective of a step; `width` is the bytes of a number in the compute dtype."""
    mesh = links.mesh
    part = share(experiment, mesh)

    def collective(
        what: str, kind: Kind, axes: tuple[str, ...], size: float, count: float, early: bool = False
    ) -> Iterator[Collective]:
        axes = tuple(a for a in axes if mesh[a] > 1)
        if axes and size and count:
            yield Collective(
                what=what, kind=kind, axes=axes, bytes=count * links.moved(kind, axes, size),
                seconds=count * (links.seconds(kind, axes, size) + _START), early=early,
            )

    found: list[Collective] = []
    found += _weights(experiment, mesh, part, collective, width)
    found += _tensor(experiment, mesh, part, collective, width)
    found += _context(experiment, mesh, part, collective, width)
    found += _experts(experiment, mesh, part, collective, width)
    if mesh["stage"] > 1:
        size = width * part.rows * part.length / mesh["tensor"] * experiment.model.d_model
        turns = part.micro * experiment.mesh.repeats * part.passes
        found += collective("to the next stage", "permute", ("stage",), size, 2 * turns)
    return found


def _weights(experiment: Experiment, mesh: Mapping[str, int], part: Share, collective, width: int):  # noqa: ANN001, ANN202
    """Gathered at use, in the compute dtype; gradients scattered back, and summed over copies of the weights."""
    by_layer = experiment.mesh.gather == "layer"
    sums: dict[tuple[str, tuple[str, ...], tuple[str, ...]], float] = {}
    for group in groups(experiment.model, experiment.optim):
        if not group.matrices or group.looked_up:
            continue
        at_rest, in_use = group.at_rest(mesh), group.in_use(mesh)
        gathered = tuple(a for a in REST if a in at_rest - in_use)
        copies = tuple(a for a in (*BATCH, "context") if mesh[a] > 1 and a not in at_rest)
        piped = group.stack == "layers" and mesh["stage"] > 1
        what = ("weights of a stage" if piped else "weights") if group.stack else "head"
        size = group.size / ways(mesh, in_use) / (mesh["stage"] if piped else 1)
        key = (what, gathered, copies)
        sums[key] = sums.get(key, 0.0) + size
    for (what, gathered, copies), size in sums.items():
        layers = 1 if what == "head" else experiment.model.num_layers
        each, count = width * size / layers, part.passes * layers
        kept = each / ways(mesh, gathered)
        yield from collective(f"gradients of {what}, copies", "all-reduce", copies, kept, count, True)
        # Under remat the backward pass gathers again; a pipeline keeps its stage's weights for the whole step, or not.
        again = what == "weights" or (what == "weights of a stage" and by_layer)
        times = 2 if again and experiment.model.remat != "none" else 1
        if what == "weights of a stage" and by_layer:
            gathered = tuple(a for a in gathered if a != "stage")
            moved = each / ways(mesh, gathered)
            yield from collective("weights to their stages and back", "all-to-all", ("stage",), moved, 2 * count)
            count *= ticks(experiment, mesh) / experiment.mesh.repeats
        yield from collective(what, "all-gather", gathered, each, times * count, True)
        yield from collective(f"gradients of {what}", "reduce-scatter", gathered, each, count, True)


def _tensor(experiment: Experiment, mesh: Mapping[str, int], part: Share, collective, width: int):  # noqa: ANN001, ANN202
    """Tokens of the residual stream come together before heads and mlp, and sums are scattered after them."""
    model = experiment.model
    size = width * part.rows * part.length * model.d_model
    times = part.passes * part.micro
    outside = model.moe.first_dense if model.moe else 0
    layers = part.layers + outside
    away = part.layers if model.moe and mesh["expert"] > 1 and not model.moe.shared_experts else 0.0
    gathers = 2 * layers - away  # of attention, and of the mlp or the shared experts
    again = gathers if model.remat != "none" else 0
    yield from collective("activations", "all-gather", ("tensor",), size, times * (2 * gathers + again + 1))
    again = layers if "out" in work.RERUN[model.remat] else 0  # of a layer's last product nothing runs again
    yield from collective("activations", "reduce-scatter", ("tensor",), size, times * (2 * gathers + again + 1))


def _context(experiment: Experiment, mesh: Mapping[str, int], part: Share, collective, width: int):  # noqa: ANN001, ANN202
    """Keys and values go round, or come together; their gradients go back the same way."""
    attention, model = experiment.model.attention, experiment.model
    heads = max(1.0, attention.kv_heads / mesh["tensor"])
    size = 2 * width * part.rows * part.length * heads * attention.head_dim * mesh["context"]
    layers = part.layers + (model.moe.first_dense if model.moe else 0)
    times = layers * part.passes * part.micro
    if experiment.mesh.attention == "gather":  # what came together is not kept
        rounds = 1 if model.remat == "none" else 2
        yield from collective("keys and values", "all-gather", ("context",), size, rounds * times)
        yield from collective("their gradients", "reduce-scatter", ("context",), size, times)
        return
    # Each device passes on what it holds, context - 1 times; going back, gradients travel with them, in float32.
    hop = size / mesh["context"] * (mesh["context"] - 1)
    rounds = 3 if "scores" in work.RERUN[model.remat] else 2
    yield from collective("keys and values", "permute", ("context",), hop, rounds * times)
    yield from collective("their gradients", "permute", ("context",), 2 * hop, times)


def rows_and_tile(experiment: Experiment, mesh: Mapping[str, int], platform: str) -> tuple[float, int]:
    """Rows of an expert in one grouped product, if the router is even, and of a tile of its kernel."""
    here, moe = share(experiment, mesh), experiment.model.moe
    assert moe is not None
    rows = here.rows * here.length * mesh["expert"] * moe.top_k / moe.num_experts
    tiles = _TILES[platform]
    return rows, next((size for size in tiles if rows >= 2 * size), tiles[-1])


def slots(experiment: Experiment, mesh: Mapping[str, int], platform: str) -> float:
    """Places for a mixture's rows, by rows: on a TPU each expert starts a tile; there is room for the worst."""
    if experiment.model.moe is None or platform != "tpu":
        return 1.0
    rows, tile = rows_and_tile(experiment, mesh, platform)
    return 1 + tile / rows if rows >= 2 * tile else 1.0


def exchanged_rows(experiment: Experiment, mesh: Mapping[str, int], part: Share) -> float:
    """Rows that a device sends to its experts in one exchange, the room that stays empty included."""
    moe = experiment.model.moe
    assert moe is not None
    tokens = part.rows * part.length / mesh["tensor"]
    most = tokens * min(moe.top_k, moe.num_experts / mesh["expert"]) * mesh["expert"]
    return min(experiment.mesh.exchange_room * tokens * moe.top_k, most)


def _experts(experiment: Experiment, mesh: Mapping[str, int], part: Share, collective, width: int):  # noqa: ANN001, ANN202
    """Tokens to their experts and back, forward, again where computed again, and backward."""
    moe, model = experiment.model.moe, experiment.model
    if moe is None or mesh["expert"] == 1:
        return
    size = width * exchanged_rows(experiment, mesh, part) * model.d_model
    times = part.layers * part.passes * part.micro
    # Going back what arrived is sent again, whatever remat says, since it is not kept; what came back is not needed.
    yield from collective("tokens to experts and back", "all-to-all", ("expert",), size, 5 * times)
    whole = size * mesh["tensor"]
    yield from collective("tokens of experts", "all-gather", ("tensor",), whole, 3 * times)
    yield from collective("tokens of experts", "reduce-scatter", ("tensor",), whole, 2 * times)
