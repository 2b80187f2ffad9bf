"""From logits to a token: temperature, then top-k, then top-p, then one draw per row."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def kept_probabilities(
    logits_BV: jax.Array, temperature: jax.Array, top_k: jax.Array, top_p: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Token ids by falling probability, and their probabilities after the cuts, both [B, V]; sums are 1.

    top-k keeps the k likeliest. top-p then keeps the shortest run of likeliest tokens whose probabilities,
    among those that top-k left, reach p; at least one. Ties go to the lower id. Source: Holtzman et al. 2020,
    arXiv 1904.09751; the order of cuts is that of transformers' generate.
    """
    vocab = logits_BV.shape[-1]
    order_BV = jnp.argsort(-logits_BV, axis=-1, stable=True)
    sorted_BV = jnp.take_along_axis(logits_BV, order_BV, axis=-1).astype(jnp.float32) / temperature
    rank_1V = jnp.arange(vocab)[None]
    probs_BV = jax.nn.softmax(jnp.where(rank_1V < top_k, sorted_BV, -jnp.inf), axis=-1)
    before_BV = jnp.cumsum(probs_BV, axis=-1) - probs_BV
    # With top_p = 1 nothing is cut, though rounding may let the sum reach 1 before the end.
    kept_BV = jnp.where((before_BV < top_p) | (top_p >= 1.0) | (rank_1V == 0), probs_BV, 0.0)
    return order_BV, kept_BV / jnp.sum(kept_BV, axis=-1, keepdims=True)


def draw(
    logits_BV: jax.Array, keys_B: jax.Array, temperature: jax.Array, top_k: jax.Array, top_p: jax.Array
) -> jax.Array:
    """One token per row, int32 [B]; temperature 0 takes the likeliest.

    Each row has a key of its own, and spends one uniform number on its inverse cumulative distribution.
    """
    warm = jnp.where(temperature > 0, temperature, 1.0)
    order_BV, probs_BV = kept_probabilities(logits_BV, warm, top_k, top_p)
    uniform_B1 = jax.vmap(jax.random.uniform)(keys_B)[:, None]
    rank_B1 = jnp.sum(jnp.cumsum(probs_BV, axis=-1) <= uniform_B1, axis=-1, keepdims=True)
    last_B1 = jnp.sum(probs_BV > 0, axis=-1, keepdims=True) - 1  # rounding may leave the total below uniform
    drawn_B = jnp.take_along_axis(order_BV, jnp.minimum(rank_B1, last_B1), axis=-1)[:, 0]
    return jnp.where(temperature > 0, drawn_B, jnp.argmax(logits_BV, axis=-1)).astype(jnp.int32)
