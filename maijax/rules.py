"""Where every logical axis lies on the mesh: one table for all layouts. No jax, so that plans need no devices.

A layout is chosen by the sizes in `MeshConfig` alone; an axis of size 1 changes nothing. What each mesh axis does:

  replica, data  copies of the weights, each with its share of the batch
  fsdp           the same share of the batch, weights and optimizer state sharded too
  expert         as fsdp; a mixture's experts are dealt out over it, and tokens travel to them
  context        the tokens of each row; attention sees the others' keys
  tensor         heads, mlp, vocab; between them the tokens of each row (sequence parallelism)
  stage          groups of layers, through which micro-batches pass in turn

Where TPU slices are joined by the data centre's network, `replica` crosses from one to another, and `stage` where there
are more slices than replicas.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from maijax import dims, weights
from maijax.config import Experiment
from maijax.errors import UserError

_BATCH = ("replica", "data", "fsdp", "expert")

RULES: dict[str, tuple[str, ...]] = {
    # Weights and optimizer state, at rest.
    "embed": ("fsdp", "expert", "context", "stage"),
    "vocab": ("tensor",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
    "expert": ("expert",),
    "head_dim": (),
    "layers": (),
    # The data, and activations.
    "batch": _BATCH,
    "sequence": ("context",),
    "residual_sequence": ("context", "tensor"),  # of the stream between the layers' parts
    "loss_sequence": ("context", "stage"),  # after the last layer the stages share out the tokens
    "act_embed": (),
    "act_vocab": ("tensor",),
    "act_heads": ("tensor",),
    "act_kv_heads": ("tensor",),
    "act_mlp": ("tensor",),
    "act_expert": ("expert",),
    "act_head_dim": (),
}


def place(
    axes: Sequence[str | None],
    sizes: Sequence[int],
    mesh: Mapping[str, int],
    what: str,
    rules: Mapping[str, tuple[str, ...]] = RULES,
) -> tuple[tuple[str, ...], ...]:
    """The mesh axes, of those larger than 1, that shard each dim of an array; a pure function of sizes.

    A mesh axis shards one dim of an array, the first whose rule names it: an expert's rows lie on `fsdp` only,
    since `expert` shards the experts.
    Raises UserError, with the nearest legal sizes, for a size that does not divide, or an axis without a rule.
    """
    taken: set[str] = set()
    placed = []
    for axis, size in zip(axes, sizes, strict=True):
        if axis is not None and axis not in rules:
            raise UserError(f"{what}: no rule for the logical axis {axis!r}; maijax/rules.py has {', '.join(rules)}")
        found = tuple(a for a in rules[axis] if mesh[a] > 1 and a not in taken) if axis is not None else ()
        ways = math.prod(mesh[a] for a in found)
        if size % ways:
            product = " x ".join(f"{a} {mesh[a]}" for a in found)
            raise UserError(
                f"{what}: {axis}={size} does not divide over mesh {product} = {ways} devices; {_nearest(size, ways)}"
            )
        taken |= set(found)
        placed.append(found)
    return tuple(placed)


def shares(axes: Sequence[str | None], sizes: Sequence[int], mesh: Mapping[str, int], what: str) -> int:
    """Over how many devices an array is shared out: its bytes on each are its bytes by this."""
    return math.prod(mesh[a] for found in place(axes, sizes, mesh, what) for a in found)


def across(mesh: Mapping[str, int], slices: int) -> dict[str, int]:
    """How many ways each of the axes that may cross slices does so; the rest of its size lies inside one.

    Raises UserError if the slices cannot be shared out so.
    """
    replica = math.gcd(mesh["replica"], slices)
    stage = slices // replica
    if mesh["stage"] % stage:
        raise UserError(
            f"mesh.replica={mesh['replica']} x mesh.stage={mesh['stage']} must share out the {slices} slices, "
            f"which no other axis may cross; try mesh.replica={slices}, or mesh.stage={stage}"
        )
    return {"replica": replica, "stage": stage}


def problems(experiment: Experiment, mesh: Mapping[str, int]) -> list[str]:
    """Everything of an experiment that does not divide over a mesh of these sizes, one line each."""
    found: dict[str, None] = {}

    def check(axes: Sequence[str | None], sizes: Sequence[int], what: str) -> None:
        try:
            place(axes, sizes, mesh, what)
        except UserError as error:
            found.setdefault(str(error))

    # Most weights fail for the same reason: name the values, each once, and not every weight.
    model, train = experiment.model, experiment.train
    named = {
        "D": "model.d_model", "V": "padded model.vocab_size", "H": "model.attention.num_heads",
        "G": "model.attention.kv_heads", "F": "model.d_ff", "E": "model.moe.num_experts", "M": "model.moe.d_ff",
        "U": "model.moe.shared_experts x model.moe.d_ff",
    }
    letters = {letter for w in weights.declare(model) for letter in w.letters}
    for letter, size in dims.sizes(model).items():
        if letter in letters and letter in named:
            check((dims.LOGICAL_AXES[letter],), (size,), named[letter])
    rows = train.batch_size // train.accumulation
    check(("batch",), (rows,), "train.batch_size" + (" / train.accumulation" if train.accumulation > 1 else ""))
    for axis in ("residual_sequence", "loss_sequence"):
        check((axis,), (train.seq_len,), "train.seq_len")
    found |= dict.fromkeys(_schedules(experiment, mesh, rows))
    return list(found)


def _schedules(experiment: Experiment, mesh: Mapping[str, int], rows: int) -> Iterator[str]:
    """What ring attention and the pipeline ask for beyond the table."""
    length, context, stages = experiment.train.seq_len, mesh["context"], mesh["stage"]
    if context > 1 and length % (2 * context):
        yield (
            f"train.seq_len={length} must divide into 2 x mesh.context {context} pieces of equal length; "
            f"{_nearest(length, 2 * context)}"
        )
    if stages > 1:
        micro = experiment.mesh.microbatches or stages
        shared = math.prod(mesh[a] for a in _BATCH)
        if micro < stages:
            yield f"mesh.microbatches={micro} must be at least mesh.stage={stages}, or stages stand idle; try {stages}"
        if rows % (micro * shared):
            yield (
                f"train.batch_size / train.accumulation = {rows} does not divide into mesh.microbatches {micro} x "
                f"{shared} shares of the batch; {_nearest(rows, micro * shared)}"
            )
        depth = experiment.model.num_layers - (experiment.model.moe.first_dense if experiment.model.moe else 0)
        if stages * experiment.mesh.repeats > depth:
            yield (
                f"mesh.stage {stages} x mesh.repeats {experiment.mesh.repeats} is more than the {depth} layers "
                f"there are to share out; try mesh.repeats={max(1, depth // stages)}"
            )


def _nearest(size: int, ways: int) -> str:
    above = -(-size // ways) * ways
    return f"try {above - ways} or {above}" if above > ways else f"try {above}"
