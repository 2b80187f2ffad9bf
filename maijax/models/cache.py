"""Keys and values of the tokens seen so far: a token at position p lies in slot p of its row."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from maijax.config import ModelConfig


class Cache(NamedTuple):
    """Since slot and position agree, causality alone hides what was not written yet, and no mask is kept."""

    k_LBTGK: jax.Array
    v_LBTGK: jax.Array
    total_B: jax.Array  # int32, tokens the row will hold in the end; decides between LongRoPE's factors


def init_cache(
    cfg: ModelConfig, batch: int, length: int, dtype: jnp.dtype | type, *, total_B: jax.Array | None = None
) -> Cache:
    """An empty cache for `length` positions of `batch` rows; `total_B` defaults to `length` for each row."""
    attention = cfg.attention
    shape = (cfg.num_layers, batch, length, attention.kv_heads, attention.head_dim)
    if total_B is None:
        total_B = jnp.full((batch,), length, jnp.int32)
    return Cache(k_LBTGK=jnp.zeros(shape, dtype), v_LBTGK=jnp.zeros(shape, dtype), total_B=total_B)


def write(stored_BTGK: jax.Array, new_BSGK: jax.Array, positions_BS: jax.Array) -> jax.Array:
    """Puts each new row into the slot of its position; a negative position marks padding and is dropped."""
    length = stored_BTGK.shape[1]
    slots_BS = jnp.where(positions_BS < 0, length, positions_BS)
    rows_B1 = jnp.arange(stored_BTGK.shape[0])[:, None]
    return stored_BTGK.at[rows_B1, slots_BS].set(new_BSGK.astype(stored_BTGK.dtype), mode="drop")


def extend(cache: Cache, k_LBSGK: jax.Array, v_LBSGK: jax.Array, positions_BS: jax.Array) -> Cache:
    """The cache with the new keys and values of all layers; in place where XLA owns the old one."""
    put = jax.vmap(write, in_axes=(0, 0, None))
    return cache._replace(
        k_LBTGK=put(cache.k_LBTGK, k_LBSGK, positions_BS), v_LBTGK=put(cache.v_LBTGK, v_LBSGK, positions_BS)
    )
