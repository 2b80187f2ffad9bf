"""Rotary positions: plain, partial, and LongRoPE's two sets of frequencies."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from maijax.config import RopeConfig
from maijax.parallel.sharding import spread


class Rotation(NamedTuple):
    """Cosines and sines of every position, [B, S, R] float32; R pairs of numbers rotate in each head."""

    cos_BSR: jax.Array
    sin_BSR: jax.Array


def frequencies(rope: RopeConfig, head_dim: int, *, long: bool) -> np.ndarray:
    """Radians per token of each rotating pair, [R] float32.

    `long` picks LongRoPE's factors for sequences beyond `original_context`; without factors it does nothing.
    Source: arXiv 2104.09864 eq. 15; arXiv 2402.13753 as in transformers' Phi-3.
    """
    rotated = round(head_dim * rope.fraction)
    exponents = np.arange(0, rotated, 2, dtype=np.float64) / rotated
    factors = rope.long_factor if long else rope.short_factor
    scale = np.asarray(factors, np.float64) if factors else 1.0
    return (1.0 / (scale * rope.theta**exponents)).astype(np.float32)


def magnitude(rope: RopeConfig, context: int) -> float:
    """LongRoPE's factor on cosines and sines: sqrt(1 + ln(context / original) / ln(original)), else 1."""
    if rope.original_context is None or not rope.short_factor or context <= rope.original_context:
        return 1.0
    stretch = context / rope.original_context
    return math.sqrt(1.0 + math.log(stretch) / math.log(rope.original_context))


def rotation(
    rope: RopeConfig, positions_BS: jax.Array, *, head_dim: int, context: int, total: int | jax.Array
) -> Rotation:
    """Cosines and sines for int32 positions.

    `total` is the length in tokens of the sequence that the positions belong to, which decides between
    LongRoPE's factors: one number for all, or [B], one per row.
    """
    inverse_BSR = jnp.asarray(frequencies(rope, head_dim, long=False))[None, None]
    if rope.original_context is not None and rope.long_factor:
        long_BSR = jnp.asarray(frequencies(rope, head_dim, long=True))[None, None]
        is_long_BSR = jnp.reshape(jnp.asarray(total) > rope.original_context, (-1, 1, 1))
        inverse_BSR = jnp.where(is_long_BSR, long_BSR, inverse_BSR)
    angles_BSR = positions_BS.astype(jnp.float32)[:, :, None] * inverse_BSR
    scale = magnitude(rope, context)
    cos_BSR, sin_BSR = _cos_and_sin(angles_BSR)
    return Rotation(cos_BSR=cos_BSR * scale, sin_BSR=sin_BSR * scale)


def _cos_and_sin(angles_BSR: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine, once: on one CPU, row by row.

    XLA's CPU back end would compute them again inside each rotation of each layer, 6% of a step of phi_tiny, and
    drops optimisation barriers before it fuses; what a loop has made it takes as it is.
    """

    def whole(angles: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jnp.cos(angles), jnp.sin(angles)

    if spread() is not None:
        return whole(angles_BSR)
    return jax.lax.platform_dependent(angles_BSR, cpu=lambda a: jax.lax.map(whole, a), default=whole)


@jax.custom_vjp
def rotate(x_BSHK: jax.Array, turn: Rotation) -> jax.Array:
    """Rotates the first 2R numbers of each head, pairing number i with number i + R; the rest pass unchanged.

    Computed in float32, returned in the dtype of `x`. Source: the rotate-half convention of Llama and Phi in
    transformers (GPT-NeoX's), which differs from the paper's interleaved pairs by a fixed permutation.

    The gradient is the opposite rotation, written by hand: derived, it is sums of padded slices, which cost
    a CPU step 3%. `turn` has no gradient. Reverse mode only.
    """
    pairs = turn.cos_BSR.shape[-1]
    cos_BS1R, sin_BS1R = turn.cos_BSR[:, :, None, :], turn.sin_BSR[:, :, None, :]
    first = x_BSHK[..., :pairs].astype(jnp.float32)
    second = x_BSHK[..., pairs : 2 * pairs].astype(jnp.float32)
    turned = [first * cos_BS1R - second * sin_BS1R, second * cos_BS1R + first * sin_BS1R]
    parts = [part.astype(x_BSHK.dtype) for part in turned]
    return jnp.concatenate([*parts, x_BSHK[..., 2 * pairs :]], axis=-1)


def _rotate_forward(x_BSHK: jax.Array, turn: Rotation) -> tuple[jax.Array, Rotation]:
    return rotate(x_BSHK, turn), turn


def _rotate_backward(turn: Rotation, g_BSHK: jax.Array) -> tuple[jax.Array, None]:
    return rotate(g_BSHK, Rotation(turn.cos_BSR, -turn.sin_BSR)), None


rotate.defvjp(_rotate_forward, _rotate_backward)
