"""Causal attention over grouped heads, as one pure function."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

Impl = Literal["auto", "dense", "blocked"]


def attend(
    q_BSHK: jax.Array,
    k_BTGK: jax.Array,
    v_BTGK: jax.Array,
    *,
    q_segments_BS: jax.Array | None = None,
    k_segments_BT: jax.Array | None = None,
    q_positions_BS: jax.Array | None = None,
    k_positions_BT: jax.Array | None = None,
    window: int | None = None,
    softcap: float | None = None,
    scale: float,
    impl: Impl = "auto",
) -> jax.Array:
    """Return the attention output o_BSHK (first version: dense)."""
    B, S, H, K = q_BSHK.shape
    T, G = k_BTGK.shape[1:3]
    q_BGRSK = (q_BSHK * scale).reshape(B, S, G, H // G, K).transpose(0, 2, 3, 1, 4)
    s = jnp.einsum("BGRSK,BTGK->BGRST", q_BGRSK, k_BTGK, preferred_element_type=jnp.float32)
    if softcap is not None:
        s = softcap * jnp.tanh(s / softcap)
    if q_positions_BS is None:
        q_pos, k_pos = jnp.arange(S)[None], jnp.arange(T)[None]
    else:
        q_pos, k_pos = q_positions_BS, k_positions_BT
    age = q_pos[:, :, None] - k_pos[:, None, :]
    seen = age >= 0
    if window is not None:
        seen &= age < window
    if q_segments_BS is not None:
        seen = seen & (q_segments_BS[:, :, None] == k_segments_BT[:, None, :])
    seen = seen[:, None, None]
    m = jnp.max(jnp.where(seen, s, -1e30), axis=-1, keepdims=True)
    p = jnp.where(seen, jnp.exp(jnp.minimum(s - m, 0.0)), 0.0)
    z = p.sum(-1, keepdims=True)
    p = (p / jnp.where(z == 0, 1.0, z)).astype(v_BTGK.dtype)
    o = jnp.einsum("BGRST,BTGK->BSGRK", p, v_BTGK)
    return o.reshape(B, S, H, K)
