"""Mixture of experts: a sigmoid router, dropless grouped matmuls, and two ways to keep experts evenly used.

Source: DeepSeek-V3, arXiv 2412.19437, section 2.1.2 (equations by their numbers below).
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from maijax.config import MoEConfig
from maijax.models.grouped import Kernels, grouped_dot, sort_rows
from maijax.models.mlp import Activation, activate
from maijax.parallel.experts import by_token, collect, deal, deal_gates, mixture
from maijax.parallel.sharding import spread


class Routing(NamedTuple):
    """The router's choice for each token: k experts (here the letter C, for choice)."""

    experts_BSC: jax.Array  # int32
    gates_BSC: jax.Array  # float32, sum to route_scale
    scores_BSE: jax.Array  # float32, sigmoid affinities


class RouterStats(NamedTuple):
    """What balancing needs; scalars and loads are float32."""

    balance_loss: jax.Array  # eq. 17 without its weight alpha, mean over rows
    load_E: jax.Array  # share of all (position, choice) pairs; sums to the share that is not padding


def route(x_BSD: jax.Array, w_router_DE: jax.Array, bias_E: jax.Array, moe: MoEConfig) -> Routing:
    """Chooses by score + bias, weighs by score alone (eq. 12-16); all in float32.

    The bias gets no gradient: `update_bias` moves it.
    """
    logits_BSE = jnp.einsum(
        "BSD,DE->BSE", x_BSD.astype(jnp.float32), w_router_DE.astype(jnp.float32),
        precision=jax.lax.Precision.HIGHEST,
    )
    scores_BSE = jax.nn.sigmoid(logits_BSE)
    biased_BSE = jax.lax.stop_gradient(scores_BSE + bias_E.astype(jnp.float32)[None, None])
    experts_BSC = _highest(biased_BSE, moe.top_k)
    chosen_BSC = jnp.take_along_axis(scores_BSE, experts_BSC, axis=-1)
    # A sigmoid in float32 can reach 0 for every choice; the least normal number keeps 0/0 away.
    total_BS1 = jnp.maximum(jnp.sum(chosen_BSC, axis=-1, keepdims=True), jnp.finfo(jnp.float32).tiny)
    gates_BSC = chosen_BSC / total_BS1 * moe.route_scale
    return Routing(experts_BSC=experts_BSC, gates_BSC=gates_BSC, scores_BSE=scores_BSE)


def router_stats(routing: Routing, valid_BS: jax.Array | None, moe: MoEConfig) -> RouterStats:
    """Balance loss of each row of a [B, S] batch (eq. 17-20, T = the row's tokens), and the experts' load.

    Padding (`valid_BS` False) counts in neither. Equation 18 ranks the scores without the bias: the loss
    speaks of what the router itself prefers. A row without tokens adds 0 to the mean.
    """
    scores_BSE = routing.scores_BSE
    batch, length, _ = scores_BSE.shape
    valid_BS = jnp.ones((batch, length), bool) if valid_BS is None else valid_BS
    mask_BS1 = valid_BS.astype(jnp.float32)[:, :, None]
    tokens_B1 = jnp.maximum(jnp.sum(mask_BS1, axis=1), 1.0)

    preferred_BSC = _highest(jax.lax.stop_gradient(scores_BSE), moe.top_k)
    hits_BE = jnp.sum(_one_hot_sum(preferred_BSC, moe.num_experts) * mask_BS1, axis=1)
    f_BE = moe.num_experts / moe.top_k * hits_BE / tokens_B1  # eq. 18
    shares_BSE = scores_BSE / jnp.maximum(
        jnp.sum(scores_BSE, axis=-1, keepdims=True), jnp.finfo(jnp.float32).tiny
    )  # eq. 19
    # Eq. 17 with eq. 20 put in, summed over rows and tokens at once: one sum over devices in place of two, and libtpu
    # 0.0.52 cannot compile that over rows alone where they are shared out to two groups of 4,096 chips.
    balance_loss = jnp.sum(f_BE[:, None] * shares_BSE * (mask_BS1 / tokens_B1[:, None])) / batch

    counts_E = jnp.sum(_one_hot_sum(routing.experts_BSC, moe.num_experts) * mask_BS1, axis=(0, 1))
    return RouterStats(balance_loss=balance_loss, load_E=counts_E / (batch * length * moe.top_k))


def _highest(scores_BSE: jax.Array, count: int) -> jax.Array:
    return by_token(lambda scores: jax.lax.top_k(scores, count)[1], scores_BSE)


def _one_hot_sum(experts_BSC: jax.Array, num_experts: int) -> jax.Array:
    """1 at each chosen expert, [B, S, E] float32; choices of one token are distinct."""
    return jnp.sum(jax.nn.one_hot(experts_BSC, num_experts, dtype=jnp.float32), axis=-2)


def experts(
    x_BSD: jax.Array,
    routing: Routing,
    w_gate_EDM: jax.Array,
    w_up_EDM: jax.Array,
    w_down_EMD: jax.Array,
    *,
    activation: Activation,
    kernels: Kernels,
) -> jax.Array:
    """Sum over the chosen experts of gate * expert(x), [B, S, D] in the dtype of `x`; no token is dropped."""
    whole = functools.partial(_experts_of_tokens, activation=activation, kernels=kernels)
    weights = (w_gate_EDM, w_up_EDM, w_down_EMD)
    if (layout := spread()) is not None:
        return mixture(layout, x_BSD, routing.experts_BSC, routing.gates_BSC, weights, whole=whole)
    x_ND, experts_NC, gates_NC = (
        a.reshape(-1, a.shape[-1]) for a in (x_BSD, routing.experts_BSC, routing.gates_BSC)
    )
    return whole(x_ND, experts_NC, gates_NC, *weights).reshape(x_BSD.shape)


def _experts_of_tokens(
    x_ND: jax.Array,
    experts_NC: jax.Array,
    gates_NC: jax.Array,
    w_gate_EDM: jax.Array,
    w_up_EDM: jax.Array,
    w_down_EMD: jax.Array,
    *,
    activation: Activation,
    kernels: Kernels,
) -> jax.Array:
    """Of N tokens, flat: each expert multiplies the rows of its (token, choice) pairs, however many they are, and the
    results go back to their tokens, [N, D]. An expert past the last is none: such a pair adds nothing.

    A gate weighs what goes into its expert's last product: its gradient needs no result of that product, so that
    nothing keeps it, and remat does not multiply again.
    """
    order = sort_rows(experts_NC.reshape(-1), w_gate_EDM.shape[0], kernels)
    slot_NC = order.slot_P.reshape(experts_NC.shape)
    rows_QD = deal(x_ND, order.pair_Q, slot_NC)
    gates_Q1 = deal_gates(gates_NC, order.pair_Q, slot_NC)[:, None]
    dot = functools.partial(grouped_dot, sizes_E=order.sizes_E, kernels=kernels, tile=order.tile)
    inner_QM = activate(dot(rows_QD, w_gate_EDM), activation) * dot(rows_QD, w_up_EDM)
    inner_QM = (inner_QM.astype(jnp.float32) * gates_Q1).astype(x_ND.dtype)
    out_NCD = collect(dot(inner_QM, w_down_EMD), slot_NC, order.pair_Q)
    return jnp.sum(out_NCD, axis=1, dtype=jnp.float32).astype(x_ND.dtype)


def update_bias(bias: jax.Array, load: jax.Array, speed: jax.Array | float) -> jax.Array:
    """The router's bias after a step: up by `speed` for experts below the mean load, down for those above.

    Shapes [..., E]; each layer has its own mean. Source: arXiv 2412.19437 section 2.1.2, arXiv 2408.15664.
    """
    mean = jnp.mean(load, axis=-1, keepdims=True)
    return bias + speed * jnp.sign(mean - load)
