"""Mixture of experts: a sigmoid router, dropless grouped matmuls, and two ways to keep experts evenly used.

Source: DeepSeek-V3, arXiv 2412.19437, section 2.1.2 (equations by their numbers below).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from maijax.config import MoEConfig
from maijax.models.grouped import grouped_dot
from maijax.models.mlp import Activation, activate


class Routing(NamedTuple):
    """The router's choice for N tokens: k experts each (here the letter C, for choice)."""

    experts_NC: jax.Array  # int32
    gates_NC: jax.Array  # float32, sum to route_scale
    scores_NE: jax.Array  # float32, sigmoid affinities


class RouterStats(NamedTuple):
    """What balancing needs; scalars and loads are float32."""

    balance_loss: jax.Array  # eq. 17 without its weight alpha, mean over rows
    load_E: jax.Array  # share of all (position, choice) pairs; sums to the share that is not padding


def route(x_ND: jax.Array, w_router_DE: jax.Array, bias_E: jax.Array, moe: MoEConfig) -> Routing:
    """Chooses by score + bias, weighs by score alone (eq. 12-16); all in float32.

    The bias gets no gradient: `update_bias` moves it.
    """
    logits_NE = jnp.einsum(
        "ND,DE->NE", x_ND.astype(jnp.float32), w_router_DE.astype(jnp.float32),
        precision=jax.lax.Precision.HIGHEST,
    )
    scores_NE = jax.nn.sigmoid(logits_NE)
    biased_NE = jax.lax.stop_gradient(scores_NE + bias_E.astype(jnp.float32)[None])
    _, experts_NC = jax.lax.top_k(biased_NE, moe.top_k)
    chosen_NC = jnp.take_along_axis(scores_NE, experts_NC, axis=-1)
    # A sigmoid in float32 can reach 0 for every choice; the least normal number keeps 0/0 away.
    total_N1 = jnp.maximum(jnp.sum(chosen_NC, axis=-1, keepdims=True), jnp.finfo(jnp.float32).tiny)
    gates_NC = chosen_NC / total_N1 * moe.route_scale
    return Routing(experts_NC=experts_NC, gates_NC=gates_NC, scores_NE=scores_NE)


def router_stats(
    routing: Routing, valid_BS: jax.Array | None, shape: tuple[int, int], moe: MoEConfig
) -> RouterStats:
    """Balance loss of each row of a [B, S] batch (eq. 17-20, T = the row's tokens), and the experts' load.

    Padding (`valid_BS` False) counts in neither. Equation 18 ranks the scores without the bias: the loss
    speaks of what the router itself prefers. A row without tokens adds 0 to the mean.
    """
    batch, length = shape
    valid_BS = jnp.ones(shape, bool) if valid_BS is None else valid_BS
    mask_BS1 = valid_BS.astype(jnp.float32)[:, :, None]
    scores_BSE = routing.scores_NE.reshape(batch, length, moe.num_experts)
    tokens_B1 = jnp.maximum(jnp.sum(mask_BS1, axis=1), 1.0)

    _, preferred_BSC = jax.lax.top_k(jax.lax.stop_gradient(scores_BSE), moe.top_k)
    hits_BE = jnp.sum(_one_hot_sum(preferred_BSC, moe.num_experts) * mask_BS1, axis=1)
    f_BE = moe.num_experts / moe.top_k * hits_BE / tokens_B1  # eq. 18
    shares_BSE = scores_BSE / jnp.maximum(
        jnp.sum(scores_BSE, axis=-1, keepdims=True), jnp.finfo(jnp.float32).tiny
    )  # eq. 19
    p_BE = jnp.sum(shares_BSE * mask_BS1, axis=1) / tokens_B1  # eq. 20

    chosen_BSC = routing.experts_NC.reshape(batch, length, moe.top_k)
    counts_E = jnp.sum(_one_hot_sum(chosen_BSC, moe.num_experts) * mask_BS1, axis=(0, 1))
    return RouterStats(
        balance_loss=jnp.sum(f_BE * p_BE) / batch, load_E=counts_E / (batch * length * moe.top_k)
    )


def _one_hot_sum(experts_BSC: jax.Array, num_experts: int) -> jax.Array:
    """1 at each chosen expert, [B, S, E] float32; choices of one token are distinct."""
    return jnp.sum(jax.nn.one_hot(experts_BSC, num_experts, dtype=jnp.float32), axis=-2)


def experts(
    x_ND: jax.Array,
    routing: Routing,
    w_gate_EDM: jax.Array,
    w_up_EDM: jax.Array,
    w_down_EMD: jax.Array,
    *,
    activation: Activation,
) -> jax.Array:
    """Sum over the chosen experts of gate * expert(x), [N, D] in the dtype of `x`.

    Dropless: (token, choice) pairs are sorted by expert, each expert multiplies its own run of rows however
    long it is, and the results go back to their tokens.
    """
    tokens, choices = routing.experts_NC.shape
    flat = routing.experts_NC.reshape(-1)
    order = jnp.argsort(flat, stable=True)
    back = jnp.zeros_like(order).at[order].set(jnp.arange(tokens * choices), unique_indices=True)
    sizes_E = jnp.bincount(flat, length=w_gate_EDM.shape[0]).astype(jnp.int32)
    sorted_PD = x_ND[order // choices]
    gate_PM = grouped_dot(sorted_PD, w_gate_EDM, sizes_E)
    up_PM = grouped_dot(sorted_PD, w_up_EDM, sizes_E)
    inner_PM = activate(gate_PM, activation) * up_PM
    out_PD = grouped_dot(inner_PM, w_down_EMD, sizes_E)
    out_NCD = out_PD[back].reshape(tokens, choices, -1).astype(jnp.float32)
    return jnp.einsum("NCD,NC->ND", out_NCD, routing.gates_NC).astype(x_ND.dtype)


def update_bias(bias: jax.Array, load: jax.Array, speed: jax.Array | float) -> jax.Array:
    """The router's bias after a step: up by `speed` for experts below the mean load, down for those above.

    Shapes [..., E]; each layer has its own mean. Source: arXiv 2412.19437 section 2.1.2, arXiv 2408.15664.
    """
    mean = jnp.mean(load, axis=-1, keepdims=True)
    return bias + speed * jnp.sign(mean - load)
