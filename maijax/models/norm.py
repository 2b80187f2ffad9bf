"""Normalisations over the last dim, with statistics in float32 whatever the dtype of the activations."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def _along_last(vector_D: jax.Array, ndim: int) -> jax.Array:
    """Return a [D] vector as [1, ..., 1, D], so that no rank promotion is left implicit."""
    return vector_D.astype(jnp.float32).reshape((1,) * (ndim - 1) + vector_D.shape)


def rms_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
    """Return x / rms(x) * scale over the last dim.

    x is [..., D], scale is [D]; the result has the dtype of x, the arithmetic is float32.
    Source: Zhang and Sennrich 2019, "Root Mean Square Layer Normalization".
    """
    x32 = x.astype(jnp.float32)
    rstd = jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + eps)
    return (x32 * rstd * _along_last(scale, x.ndim)).astype(x.dtype)


def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, eps: float) -> jax.Array:
    """Return (x - mean) / std * scale + bias over the last dim.

    x is [..., D], scale and bias are [D]; the result has the dtype of x, the arithmetic is float32.
    Source: Ba, Kiros and Hinton 2016, "Layer Normalization".
    """
    x32 = x.astype(jnp.float32)
    centred = x32 - jnp.mean(x32, axis=-1, keepdims=True)
    rstd = jax.lax.rsqrt(jnp.mean(centred * centred, axis=-1, keepdims=True) + eps)
    normed = centred * rstd * _along_last(scale, x.ndim) + _along_last(bias, x.ndim)
    return normed.astype(x.dtype)
