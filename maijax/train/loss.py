"""Cross-entropy of a vocabulary head (first version: plain)."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp


class CrossEntropy(NamedTuple):
    """Sums over tokens, each float32 []: divide by weight_sum for means."""

    loss_sum: jax.Array
    nll_sum: jax.Array
    z_sum: jax.Array
    weight_sum: jax.Array


def cross_entropy(
    hidden_ND: jax.Array,
    head: jax.Array,
    targets_N: jax.Array,
    weights_N: jax.Array,
    *,
    head_is_VD: bool,
    vocab_size: int,
    z_loss: float = 0.0,
    softcap: float | None = None,
    chunk: int | None = None,
) -> CrossEntropy:
    """Return the weighted sums of the loss, its negative log-likelihood part and its z-loss part."""
    head_DV = (head.T if head_is_VD else head).astype(hidden_ND.dtype)
    logits = jnp.dot(hidden_ND, head_DV).astype(jnp.float32)
    if softcap is not None:
        logits = softcap * jnp.tanh(logits / softcap)
    logits = jnp.where(jnp.arange(logits.shape[1])[None] < vocab_size, logits, -jnp.inf)
    lse = jax.nn.logsumexp(logits, axis=-1)
    nll = (lse - jnp.take_along_axis(logits, targets_N[:, None], axis=-1)[:, 0]) * weights_N
    z = z_loss * lse * lse * weights_N
    return CrossEntropy(nll.sum() + z.sum(), nll.sum(), z.sum(), weights_N.sum())


def token_losses(
    hidden_ND: jax.Array,
    head: jax.Array,
    targets_N: jax.Array,
    *,
    head_is_VD: bool,
    vocab_size: int,
    softcap: float | None = None,
    chunk: int | None = None,
) -> jax.Array:
    """Return the negative log-likelihood of each target, float32 [N]."""
    head_DV = (head.T if head_is_VD else head).astype(hidden_ND.dtype)
    logits = jnp.dot(hidden_ND, head_DV).astype(jnp.float32)
    if softcap is not None:
        logits = softcap * jnp.tanh(logits / softcap)
    logits = jnp.where(jnp.arange(logits.shape[1])[None] < vocab_size, logits, -jnp.inf)
    lse = jax.nn.logsumexp(logits, axis=-1)
    return lse - jnp.take_along_axis(logits, targets_N[:, None], axis=-1)[:, 0]
