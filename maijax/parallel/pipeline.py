"""A stack of layers over the `stage` axis: micro-batches pass through groups of layers in turn, as often as need be.

The circular schedule: the layers are cut into repeats x stages runs of equal length, stage s holds the runs s,
s + stages, ...; at each tick all stages work, each on another micro-batch, and hand what they made to the next one;
from the last stage it goes back to the first for the next repeat. A step takes microbatches x repeats ticks and
stages - 1 more, in which some stand idle: the bubble. Source: GPipe, arXiv 1811.06965; the interleaving of
Megatron-LM, arXiv 2104.04473, as a loop that is differentiated as a whole (GSPMD, arXiv 2105.04663, section 3.3).

Letters beside the usual: Z stages, R repeats, C layers of a run, P micro-batches.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from maijax.parallel.sharding import Layout, constrain, spread, used
from maijax.weights import Weight

Layer = Callable[[Any, jax.Array, Any], tuple[jax.Array, Any]]  # (weights, x_BSD, sight) -> (x_BSD, stats)


def stages() -> int:
    """How many stages the layout in use has."""
    layout = spread()
    return 1 if layout is None else layout.mesh.shape["stage"]


def run(
    layer: Layer, params: Any, declared: Any, x_BSD: jax.Array, sight: Any, *, depth: int, dtype: Any
) -> tuple[jax.Array, Any]:
    """A stack's output, and its layers' stats: [depth, ...], the mean over micro-batches.

    `params` are the stack's weights, [depth, ...]; `declared` is the same tree of their declarations. `layer` is
    applied to one layer's weights, a micro-batch and its share of `sight`, whose arrays have a row per row of x.
    Layers that are missing to fill the last run pass x unchanged.
    """
    layout = spread()
    assert layout is not None
    count, repeats = layout.mesh.shape["stage"], layout.config.repeats
    micro = layout.config.microbatches or count
    length = -(-depth // (count * repeats))
    padded = length * count * repeats > depth
    w_ZRC = jax.tree.map(
        lambda w, one: _by_stage(w, one, layout, (repeats, count, length), dtype), params, declared
    )
    # Rows are dealt out in turn, so that each device keeps its own rows in every micro-batch.
    x_PBSD, sight_P = jax.tree.map(lambda a: a.reshape(-1, micro, *a.shape[1:]).swapaxes(0, 1), (x_BSD, sight))

    def visit(stage: jax.Array, w_RC: Any, pool_PBSD: jax.Array, came_BSD: jax.Array, total_RC: Any, tick: jax.Array):
        """What one stage does in one tick: put away what came back, take what is due, apply its layers."""
        item = tick - stage  # counts micro-batches through all repeats
        back = tick - count  # what came to the first stage from the last
        slot = jnp.maximum(back, 0) % micro
        kept_BSD = jax.lax.dynamic_index_in_dim(pool_PBSD, slot, keepdims=False)
        kept_BSD = jnp.where((stage == 0) & (back >= 0), came_BSD, kept_BSD)
        pool_PBSD = jax.lax.dynamic_update_index_in_dim(pool_PBSD, kept_BSD, slot, 0)

        due = jnp.clip(item, 0, micro * repeats - 1)
        which, turn = due % micro, due // micro
        first_BSD = jax.lax.dynamic_index_in_dim(pool_PBSD, which, keepdims=False)
        now_BSD = constrain(jnp.where(stage == 0, first_BSD, came_BSD), "batch", "residual_sequence", "embed")
        w_C = jax.tree.map(lambda w: _pick(w, turn), w_RC)
        sight = jax.tree.map(
            lambda a: constrain(_pick(a, which), "batch", "sequence", *(None,) * (a.ndim - 3)), sight_P
        )

        def one(x_BSD: jax.Array, at: tuple[Any, jax.Array]) -> tuple[jax.Array, Any]:
            weights, index = at
            new_BSD, stats = layer(weights, x_BSD, sight)
            if padded:
                new_BSD = jnp.where(index < depth, new_BSD, x_BSD)
            return new_BSD, stats

        first = (turn * count + stage) * length
        made_BSD, stats_C = jax.lax.scan(one, now_BSD, (w_C, first + jnp.arange(length)))
        counts = (item >= 0) & (item < micro * repeats)
        total_RC = jax.tree.map(lambda t, new: t.at[turn].add(jnp.where(counts, new, 0)), total_RC, stats_C)
        return pool_PBSD, made_BSD, total_RC

    visit_all = jax.vmap(visit, in_axes=(0, 0, 0, 0, 0, None), spmd_axis_name="stage")
    shapes = jax.eval_shape(
        lambda w, x, s: layer(w, x, s)[1],
        jax.tree.map(lambda w: w[0, 0, 0], w_ZRC), x_PBSD[0], jax.tree.map(lambda a: a[0], sight_P),
    )
    total = jax.tree.map(lambda s: jnp.zeros((count, repeats, length, *s.shape), s.dtype), shapes)
    pool = jnp.broadcast_to(x_PBSD[None], (count, *x_PBSD.shape))

    def tick(carry: Any, now: jax.Array) -> tuple[Any, None]:
        pool, made, total = carry
        came = jnp.roll(made, 1, axis=0)  # from each stage to the next, from the last to the first
        return visit_all(jnp.arange(count), w_ZRC, pool, came, total, now), None

    start = (pool, jnp.zeros_like(pool[:, 0]), total)
    (pool, made, total), _ = jax.lax.scan(tick, start, jnp.arange(micro * repeats + count - 1))
    # Of the pool of the first stage, all but the micro-batch that the last stage has just made.
    last = jnp.arange(micro)[:, None, None, None] == (micro * repeats - 1) % micro
    x_PBSD = jnp.where(last, _of_stage(made, count - 1)[None], _of_stage(pool, 0))
    x_BSD = x_PBSD.swapaxes(0, 1).reshape(x_BSD.shape)
    stats = jax.tree.map(lambda t: t.swapaxes(0, 1).reshape(-1, *t.shape[3:])[:depth] / micro, total)
    return constrain(x_BSD, "batch", "residual_sequence", "embed"), stats


def _by_stage(w: jax.Array, declared: Weight, layout: Layout, runs: tuple[int, int, int], dtype: Any) -> jax.Array:
    """[L, ...] weights at rest as [Z, R, C, ...]: each stage gets its own runs.

    At rest their rows are shared out over stages too, so this is an exchange, and the same whatever the repeats. Then
    they are gathered as for use; or they stay shared out over the other axes, in float32, as their gradients' sums do.
    """
    repeats, count, length = runs
    stored, at_once = w.dtype, layout.config.gather == "step"
    if declared.group == "hidden":
        w = w.astype(dtype)
    w = jnp.pad(w, ((0, repeats * count * length - w.shape[0]),) + ((0, 0),) * (w.ndim - 1))
    w = w.reshape(repeats, count, length, *w.shape[1:])
    rest = [_names(part) for part in layout.spec(declared.logical_axes, declared.sizes, declared.path)[1:]]
    split = next((3 + dim for dim, names in enumerate(rest) if "stage" in names), None)

    def exchange(w: jax.Array) -> jax.Array:
        if split is None:  # copied to every stage: each takes its own
            return jax.lax.dynamic_index_in_dim(w, jax.lax.axis_index("stage"), axis=1)
        return jax.lax.all_to_all(w, "stage", split_axis=1, concat_axis=split, tiled=True)

    # By hand: the compiler would copy all to everyone first.
    without = [tuple(a for a in names if a != "stage") or None for names in rest]
    w = jax.shard_map(
        exchange, mesh=layout.mesh, in_specs=PartitionSpec(None, None, None, *(names or None for names in rest)),
        out_specs=PartitionSpec(None, "stage", None, *without), check_vma=False,
    )(w).swapaxes(0, 1)
    axes = [None] * len(rest) if declared.group == "router" else used(declared.logical_axes[1:])
    gathered = layout.spec(axes, declared.sizes[1:], declared.path)
    where = PartitionSpec("stage", None, None, *(gathered if at_once else (names or None for names in without)))
    return jax.lax.with_sharding_constraint(w if at_once else w.astype(stored), NamedSharding(layout.mesh, where))


def _names(part: Any) -> tuple[str, ...]:
    return (part,) if isinstance(part, str) else tuple(part or ())


def _pick(a: jax.Array, index: jax.Array) -> jax.Array:
    return a[0] if a.shape[0] == 1 else jax.lax.dynamic_index_in_dim(a, index, keepdims=False)


def _of_stage(a: jax.Array, stage: int) -> jax.Array:
    """One stage's part, as a sum: it lies on that stage alone, and taking it by index would gather all."""
    mine = jnp.arange(a.shape[0]).reshape(-1, *(1,) * (a.ndim - 1)) == stage
    return jnp.sum(jnp.where(mine, a, 0), axis=0, dtype=a.dtype)
