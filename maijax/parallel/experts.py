"""Experts dealt out over the mesh: tokens travel to the devices of their experts and the results travel back.

Dropless with bounded memory. Each device has room for so many rows for each device of its `expert` group; they are
exchanged at once, and what does not fit goes in the next round. Rounds that nobody needs are not run, so that an
even router pays for one and a skewed one is slower but loses nothing.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from maijax.parallel.sharding import Layout, spread

Weights = tuple[jax.Array, jax.Array, jax.Array]  # w_gate_EDM, w_up_EDM, w_down_EMD
# Of x_TD, experts_TC, gates_TC and the weights: the sum over a token's choices of gate * expert(x), [T, D]. An expert
# past the last is none.
Whole = Callable[..., jax.Array]

_ALIGN = 8  # rows; the sublanes of a TPU's tile


def by_token(function: Callable[[jax.Array], jax.Array], x_BSE: jax.Array) -> jax.Array:
    """The function of each token's numbers, computed where the token is.

    For sorts: the compiler would bring all tokens to every device.
    """
    if (layout := spread()) is None:
        return function(x_BSE)
    where = layout.spec(("batch", "residual_sequence", None), x_BSE.shape, "tokens of a mixture")
    return jax.shard_map(function, mesh=layout.mesh, in_specs=where, out_specs=where, check_vma=False)(x_BSE)


def mixture(
    layout: Layout,
    x_BSD: jax.Array,
    experts_BSC: jax.Array,
    gates_BSC: jax.Array,
    weights: Weights,
    *,
    whole: Whole,
) -> jax.Array:
    """What `whole` gives on one device, [B, S, D], with experts over `expert` and their width over `tensor`.

    Tokens lie as the residual stream does: peers on `tensor` hold different ones. Without `expert` they gather
    their tokens, multiply with their slices of the width and scatter the sums; with it each sends its own tokens
    out, and the peers at the other end gather what arrives. The weights are in the compute dtype and need not be
    gathered.
    """
    where = layout.spec(("batch", "residual_sequence", None), x_BSD.shape, "tokens of a mixture")
    specs, shared = _weight_specs(layout, weights)

    def here(x_bsD: jax.Array, experts_bsC: jax.Array, gates_bsC: jax.Array, held: Weights) -> jax.Array:
        if shared:
            w_gate, w_up, w_down = held
            gather = functools.partial(lax.all_gather, axis_name=shared, tiled=True)
            held = gather(w_gate, axis=1), gather(w_up, axis=1), gather(w_down, axis=2)
        x_TD, experts_TC, gates_TC = (a.reshape(-1, a.shape[-1]) for a in (x_bsD, experts_bsC, gates_bsC))
        if layout.ways("expert") > 1:
            out_TD = _exchanged(layout, x_TD, experts_TC, gates_TC, held, whole)
        else:
            peers = [_gather(layout, a) for a in (x_TD, experts_TC, gates_TC)]
            out_TD = _scatter(layout, whole(*peers, *held))
        return out_TD.reshape(x_bsD.shape)

    return jax.shard_map(
        here, mesh=layout.mesh, in_specs=(where, where, where, specs), out_specs=where, check_vma=False
    )(x_BSD, experts_BSC, gates_BSC, weights)


def _weight_specs(layout: Layout, weights: Weights) -> tuple[tuple[PartitionSpec, ...], tuple[str, ...]]:
    """How the weights come in, and the mesh axes over which D is still to be gathered.

    They come as they lie, and are gathered inside: only so are their gradients scattered, where the compiler would
    sum them for every device and keep a part. A pipeline may have gathered them before; stages share out nothing here.
    """
    gathered = layout.ways("stage") > 1 and layout.config.gather == "step"
    D = "act_embed" if gathered else "embed"
    rows = tuple(a for a in layout.rules["embed"] if a != "stage")
    layout = dataclasses.replace(layout, rules=layout.rules | {"embed": rows})
    letters = (("expert", D, "mlp"), ("expert", D, "mlp"), ("expert", "mlp", D))
    specs = tuple(
        layout.spec(axes, w.shape, "experts of a mixture") for axes, w in zip(letters, weights, strict=True)
    )
    taken = layout.axes("expert")
    return specs, () if gathered else tuple(a for a in layout.axes("embed") if a not in taken)


def _gather(layout: Layout, rows: jax.Array) -> jax.Array:
    return lax.all_gather(rows, "tensor", tiled=True) if layout.ways("tensor") > 1 else rows


def _scatter(layout: Layout, rows: jax.Array) -> jax.Array:
    return lax.psum_scatter(rows, "tensor", tiled=True) if layout.ways("tensor") > 1 else rows


class _Plan(NamedTuple):
    """Where this device's P = T x C (token, choice) pairs go: to W devices, each in its own order."""

    expert_P: jax.Array  # of all E
    order_P: jax.Array  # pairs sorted by expert, and so by device
    index_P: jax.Array  # of a pair among those for its device
    count_W: jax.Array  # pairs for each device


def _plan(experts_TC: jax.Array, ways: int, held: int) -> _Plan:
    expert_P = experts_TC.reshape(-1)
    order_P = jnp.argsort(expert_P, stable=True).astype(jnp.int32)
    device_P = expert_P // held
    count_W = jnp.bincount(device_P, length=ways).astype(jnp.int32)
    first_W = jnp.cumsum(count_W) - count_W
    return _Plan(expert_P, order_P, _inverse(order_P) - first_W[device_P], count_W)


def _inverse(order: jax.Array) -> jax.Array:
    return jnp.zeros_like(order).at[order].set(jnp.arange(order.size, dtype=order.dtype), unique_indices=True)


def _exchanged(
    layout: Layout, x_TD: jax.Array, experts_TC: jax.Array, gates_TC: jax.Array, weights: Weights, whole: Whole
) -> jax.Array:
    tokens, choices = experts_TC.shape
    ways, held = layout.ways("expert"), weights[0].shape[0]
    plan = _plan(experts_TC, ways, held)
    # A token chooses an expert once: no device is sent more rows than this.
    most = tokens * min(choices, held)
    room = math.ceil(layout.config.exchange_room * tokens * choices / ways / _ALIGN) * _ALIGN
    one = functools.partial(_round, layout, min(room, most), whole)
    if room >= most:
        out_TD = one(jnp.int32(0), x_TD, gates_TC, weights, plan)
    else:
        # All must agree who take part in an exchange; stages are vmapped and never do so with each other.
        axes = tuple(a for a, size in layout.mesh.shape.items() if size > 1 and a != "stage")
        rounds = -(-lax.pmax(jnp.max(plan.count_W), axes) // room)
        out_TD = _rounds(one, x_TD, gates_TC, weights, plan, rounds)
    return out_TD.astype(x_TD.dtype)


def _sum_of_rounds(
    one: Any, x_TD: jax.Array, gates_TC: jax.Array, weights: Weights, plan: _Plan, rounds: jax.Array
) -> jax.Array:
    """The sum of rounds 0, 1, ..., [T, D] float32.

    By hand, since a loop of unknown length has no gradient of its own: going back, each round is computed again.
    Under vmap a loop still ends when it is done, while `lax.cond` would compute what it was to skip.
    """

    def body(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        step, out_TD = state
        return step + 1, out_TD + one(step, x_TD, gates_TC, weights, plan)

    start = (jnp.int32(0), jnp.zeros(x_TD.shape, jnp.float32))
    return lax.while_loop(lambda state: state[0] < rounds, body, start)[1]


_rounds = jax.custom_vjp(_sum_of_rounds, nondiff_argnums=(0,))


def _rounds_forward(one: Any, *given: Any) -> tuple[jax.Array, Any]:
    return _rounds(one, *given), given


def _rounds_backward(one: Any, given: Any, g_TD: jax.Array) -> tuple[Any, ...]:
    *values, plan, rounds = given

    def body(state: tuple[jax.Array, Any]) -> tuple[jax.Array, Any]:
        step, found = state
        more = jax.vjp(lambda *values: one(step, *values, plan), *values)[1](g_TD)
        return step + 1, jax.tree.map(lambda a, b: a + b.astype(jnp.float32), found, more)

    zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, jnp.float32), tuple(values))
    _, found = lax.while_loop(lambda state: state[0] < rounds, body, (jnp.int32(0), zeros))
    return *jax.tree.map(lambda a, b: a.astype(b.dtype), found, tuple(values)), None, None


_rounds.defvjp(_rounds_forward, _rounds_backward)


def _round(
    layout: Layout,
    room: int,
    whole: Whole,
    step: jax.Array,
    x_TD: jax.Array,
    gates_TC: jax.Array,
    weights: Weights,
    plan: _Plan,
) -> jax.Array:
    """What the pairs number step x room and on for each device add to their tokens, [T, D] float32.

    R = W x room slots travel, and come back in the same order.
    """
    pairs, ways, held = plan.expert_P.size, plan.count_W.size, weights[0].shape[0]
    index_P = plan.index_P - step * room
    slot_P = plan.expert_P // held * room + index_P
    slot_P = jnp.where((index_P >= 0) & (index_P < room), slot_P, ways * room)
    index_WR = jnp.broadcast_to(step * room + jnp.arange(room, dtype=jnp.int32), (ways, room))
    first_W = jnp.cumsum(plan.count_W) - plan.count_W
    filled_WR = index_WR < plan.count_W[:, None]
    sorted_WR = jnp.minimum(first_W[:, None] + index_WR, pairs - 1)
    pair_R = jnp.where(filled_WR, plan.order_P[sorted_WR], pairs).reshape(-1)
    # An empty slot's expert is one past those there are: it sorts to the end.
    expert_R = plan.expert_P.at[pair_R].get(mode="fill", fill_value=0) % held
    expert_R = jnp.where(pair_R < pairs, expert_R, held)

    travel = functools.partial(lax.all_to_all, axis_name="expert", split_axis=0, concat_axis=0, tiled=True)
    slot_TC = slot_P.reshape(gates_TC.shape)
    came_RD, came_R, gate_R = (
        _gather(layout, travel(sent))
        for sent in (deal(x_TD, pair_R, slot_TC), expert_R, deal_gates(gates_TC, pair_R, slot_TC))
    )
    done_RD = whole(came_RD, came_R[:, None], gate_R[:, None], *weights)
    done_RD = travel(_scatter(layout, done_RD))
    return jnp.sum(collect(done_RD, slot_TC, pair_R), axis=1, dtype=jnp.float32)


# Rows that are moved and not added up. Plain differentiation would scatter the gradients, row by row; here both ways
# are gathers, since each side knows its partner. Past the end stands for none.


@jax.custom_vjp
def deal(x_TD: jax.Array, pair_R: jax.Array, slot_TC: jax.Array) -> jax.Array:
    """Each slot's token, [R, D]; zeros where there is none."""
    return x_TD.at[pair_R // slot_TC.shape[1]].get(mode="fill", fill_value=0)


def _deal_backward(kept: tuple[jax.Array, jax.Array], g_RD: jax.Array) -> tuple[Any, ...]:
    pair_R, slot_TC = kept
    return jnp.sum(collect(g_RD, slot_TC, pair_R), axis=1, dtype=jnp.float32).astype(g_RD.dtype), None, None


deal.defvjp(lambda x, pair, slot: (deal(x, pair, slot), (pair, slot)), _deal_backward)


@jax.custom_vjp
def deal_gates(gates_TC: jax.Array, pair_R: jax.Array, slot_TC: jax.Array) -> jax.Array:
    """The gate of each slot's pair, [R]; zero where there is none."""
    return gates_TC.reshape(-1).at[pair_R].get(mode="fill", fill_value=0)


def _deal_gates_backward(slot_TC: jax.Array, g_R: jax.Array) -> tuple[Any, ...]:
    return g_R.at[slot_TC].get(mode="fill", fill_value=0), None, None


deal_gates.defvjp(lambda gates, pair, slot: (deal_gates(gates, pair, slot), slot), _deal_gates_backward)


@jax.custom_vjp
def collect(rows_RD: jax.Array, slot_TC: jax.Array, pair_R: jax.Array) -> jax.Array:
    """Each pair's row, [T, C, D]; zeros where it has none."""
    return rows_RD.at[slot_TC].get(mode="fill", fill_value=0)


def _collect_backward(pair_R: jax.Array, g_TCD: jax.Array) -> tuple[Any, ...]:
    return g_TCD.reshape(-1, g_TCD.shape[-1]).at[pair_R].get(mode="fill", fill_value=0), None, None


collect.defvjp(lambda rows, slot, pair: (collect(rows, slot, pair), pair), _collect_backward)
