"""Causal attention over grouped heads, as one pure function with interchangeable implementations.

Letters: B batch, S queries, T keys, H query heads, G key/value heads, R = H // G query heads per group, K head dim,
N = R times the queries of one block (the rows of one batched product).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp

from maijax.models.flash import FLOOR, HIDDEN, Rule, bend, flash
from maijax.parallel.remat import attended

Impl = Literal["auto", "dense", "blocked", "tiled"]

# Queries per block. 64 and 128 are equally fast on CPU at 256 keys; more blocks only cost compile time.
_BLOCK = 128
_MOST_BLOCKS = 16


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
    """Return softmax(mask(softcap(scale * q k^T))) v for each query, o_BSHK in the dtype of q.

    H is a multiple of G; query head h reads key/value head h // (H // G).
    A query sees the keys at or before it. Without positions, "before" is by index within the row (query i sees
    keys 0..i), which is also right for packed documents, whose segment ids keep them apart. With positions
    (decoding from a cache: S queries, T slots) it is by position; an unused slot is hidden by a position
    larger than any query's, or by its segment.
    ``window``: query at i sees keys at j with 0 <= i - j < window. ``softcap``: scores become
    softcap * tanh(scores / softcap) before the mask. A query that sees no key gets 0.
    Whatever the dtype of the inputs, scores, mask and softmax are float32; the weights are rounded to the
    dtype of v for the product with v, which accumulates in float32.

    ``impl``: "dense" holds all scores, [B, H, S, T] float32; "blocked" goes by blocks of queries, skips keys
    that no query of the block can see, and keeps only the row sums for the gradient, which recomputes the
    scores (no forward-mode or second derivatives); "auto" takes "blocked" where it applies: no positions, S = T.

    Raises: ValueError for shapes that do not fit, a lone segment or position array, an impossible ``impl``.
    Source: Dao et al. 2022, "FlashAttention" (recomputation from row sums); Jiang et al. 2023, "Mistral 7B"
    (window); Gemma Team 2024, "Gemma 2" (softcap).
    """
    B, S, H, K = q_BSHK.shape
    T, G = k_BTGK.shape[1:3]
    if k_BTGK.shape != (B, T, G, K) or v_BTGK.shape != k_BTGK.shape or H % G:
        raise ValueError(f"attend: q {q_BSHK.shape}, k {k_BTGK.shape}, v {v_BTGK.shape} do not fit together")
    if (q_segments_BS is None) != (k_segments_BT is None) or (q_positions_BS is None) != (k_positions_BT is None):
        raise ValueError("attend: segments and positions must be given for queries and keys alike")
    if window is not None and window < 1:
        raise ValueError(f"attend: window={window} must be at least 1; None means no window")
    by_index = q_positions_BS is None and S == T
    if impl not in ("auto", "dense", "blocked", "tiled") or (impl in ("blocked", "tiled") and not by_index):
        raise ValueError(f"attend: impl={impl!r} does not apply with S={S}, T={T}, positions={not by_index}")

    rule = Rule(scale=float(scale), window=window, softcap=softcap)
    if impl == "dense" or not by_index:
        masks = (q_segments_BS, k_segments_BT, q_positions_BS, k_positions_BT)
        return _dense(q_BSHK, k_BTGK, v_BTGK, masks, rule)
    if impl == "tiled" or (impl == "auto" and S > _BLOCK * _MOST_BLOCKS):
        return flash(q_BSHK, k_BTGK, v_BTGK, q_segments_BS, k_segments_BT, jnp.zeros(1, jnp.int32), rule)
    return _blocked(q_BSHK, k_BTGK, v_BTGK, q_segments_BS, k_segments_BT, rule)


def _dense(
    q_BSHK: jax.Array,
    k_BTGK: jax.Array,
    v_BTGK: jax.Array,
    masks: tuple[jax.Array | None, jax.Array | None, jax.Array | None, jax.Array | None],
    rule: Rule,
) -> jax.Array:
    """Return o_BSHK from the whole score matrix: the definition, differentiable in every mode."""
    q_seg_BS, k_seg_BT, q_pos_BS, k_pos_BT = masks
    B, S, H, K = q_BSHK.shape
    T, G = k_BTGK.shape[1:3]
    if q_pos_BS is None or k_pos_BT is None:
        q_pos_BS, k_pos_BT = jnp.arange(S)[None], jnp.arange(T)[None]
    age_BST = q_pos_BS[:, :, None] - k_pos_BT[:, None, :]
    seen_BST = age_BST >= 0
    if rule.window is not None:
        seen_BST &= age_BST < rule.window
    if q_seg_BS is not None and k_seg_BT is not None:
        seen_BST = seen_BST & (q_seg_BS[:, :, None] == k_seg_BT[:, None, :])

    q_BSGRK = q_BSHK.reshape(B, S, G, H // G, K)
    s_BGRST = jnp.einsum("BSGRK,BTGK->BGRST", q_BSGRK, k_BTGK, preferred_element_type=jnp.float32)
    s_BGRST = jnp.where(seen_BST[:, None, None], bend(s_BGRST * rule.scale, rule.softcap), HIDDEN)
    top = jax.lax.stop_gradient(jnp.maximum(jnp.max(s_BGRST, axis=-1, keepdims=True), FLOOR))
    p_BGRST = jnp.exp(s_BGRST - top)
    total = jnp.sum(p_BGRST, axis=-1, keepdims=True)
    p_BGRST = (p_BGRST / jnp.where(total == 0, 1.0, total)).astype(v_BTGK.dtype)
    o_BSGRK = jnp.einsum("BGRST,BTGK->BSGRK", p_BGRST, v_BTGK, preferred_element_type=jnp.float32)
    return o_BSGRK.astype(q_BSHK.dtype).reshape(B, S, H, K)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Block:
    """Queries [start, stop) and the keys [first_key, stop) that any of them can see."""

    start: int
    stop: int
    first_key: int


def _blocks(length: int, window: int | None) -> list[_Block]:
    size = max(_BLOCK, -(-length // _MOST_BLOCKS))
    starts = range(0, length, size)
    first_key = (lambda start: 0) if window is None else (lambda start: max(0, start - window + 1))
    return [_Block(start=i, stop=min(i + size, length), first_key=first_key(i)) for i in starts]


def _rows(x_BSHK: jax.Array, heads: int, block: _Block) -> jax.Array:
    """Return the block's queries, all the ``heads`` of a group below one another, as [B, G, N, K].

    Slices first and moves dims after, so that XLA makes one copy and not two.
    """
    B, _, H, K = x_BSHK.shape
    x_BNGRK = x_BSHK[:, block.start : block.stop].reshape(B, block.stop - block.start, H // heads, heads, K)
    return x_BNGRK.transpose(0, 2, 3, 1, 4).reshape(B, H // heads, heads * (block.stop - block.start), K)


def _unrows(blocks_BGNK: list[jax.Array], heads: int) -> jax.Array:
    """Undo `_rows` for the results of all blocks: [B, S, H, K]."""
    parts = []
    for x_BGNK in blocks_BGNK:
        B, G, N, K = x_BGNK.shape
        x_BGRSK = x_BGNK.reshape(B, G, heads, N // heads, K)
        parts.append(x_BGRSK.transpose(0, 3, 1, 2, 4).reshape(B, N // heads, G * heads, K))
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1)


def _block_mask(
    q_seg_BS: jax.Array | None, k_seg_BT: jax.Array | None, heads: int, rule: Rule, block: _Block
) -> jax.Array:
    """Return which keys each row of the block sees, bool [1 or B, 1, N, T]; the rows are those of `_rows`."""
    age = jnp.arange(block.start, block.stop)[:, None] - jnp.arange(block.first_key, block.stop)[None, :]
    seen = age >= 0
    if rule.window is not None:
        seen &= age < rule.window
    seen_BST = seen[None]
    if q_seg_BS is not None and k_seg_BT is not None:
        q_seg, k_seg = q_seg_BS[:, block.start : block.stop], k_seg_BT[:, block.first_key : block.stop]
        seen_BST = seen_BST & (q_seg[:, :, None] == k_seg[:, None, :])
    return jnp.tile(seen_BST, (1, heads, 1))[:, None] if heads > 1 else seen_BST[:, None]


def _block_scores(
    q_BGNK: jax.Array, k_BGTK: jax.Array, seen_BGNT: jax.Array, rule: Rule
) -> tuple[jax.Array, jax.Array]:
    """Return the block's float32 scores [B, G, N, T] after the softcap, and the same with hidden ones masked."""
    raw = jnp.einsum("BGNK,BGTK->BGNT", q_BGNK, k_BGTK, preferred_element_type=jnp.float32)
    bent = bend(raw * rule.scale, rule.softcap)
    return bent, jnp.where(seen_BGNT, bent, HIDDEN)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _blocked(
    q_BSHK: jax.Array,
    k_BTGK: jax.Array,
    v_BTGK: jax.Array,
    q_seg_BS: jax.Array | None,
    k_seg_BT: jax.Array | None,
    rule: Rule,
) -> jax.Array:
    """Return o_BSHK by blocks of queries, keeping nothing of size S x T for the gradient."""
    return _blocked_forward(q_BSHK, k_BTGK, v_BTGK, q_seg_BS, k_seg_BT, rule)[0]


def _blocked_forward(q_BSHK, k_BTGK, v_BTGK, q_seg_BS, k_seg_BT, rule):  # noqa: ANN001, ANN202
    heads = q_BSHK.shape[2] // k_BTGK.shape[2]
    k_BGTK, v_BGTK = k_BTGK.swapaxes(1, 2), v_BTGK.swapaxes(1, 2)
    outputs, log_totals = [], []
    for block in _blocks(q_BSHK.shape[1], rule.window):
        k, v = k_BGTK[:, :, block.first_key : block.stop], v_BGTK[:, :, block.first_key : block.stop]
        seen = _block_mask(q_seg_BS, k_seg_BT, heads, rule, block)
        _, s_BGNT = _block_scores(_rows(q_BSHK, heads, block), k, seen, rule)
        top = jnp.maximum(jnp.max(s_BGNT, axis=-1, keepdims=True), FLOOR)
        p_BGNT = jnp.exp(s_BGNT - top)
        total = jnp.sum(p_BGNT, axis=-1, keepdims=True)
        total = jnp.where(total == 0, 1.0, total)
        # Divide after the product with v: K numbers per row in place of T.
        o_BGNK = jnp.einsum("BGNT,BGTK->BGNK", p_BGNT.astype(v.dtype), v, preferred_element_type=jnp.float32)
        outputs.append((o_BGNK / total).astype(q_BSHK.dtype))
        log_totals.append(top + jnp.log(total))
    o_BSHK, log_totals = attended((_unrows(outputs, heads), log_totals))
    return o_BSHK, (q_BSHK, k_BGTK, v_BGTK, q_seg_BS, k_seg_BT, o_BSHK, log_totals)


def _blocked_backward(rule, saved, g_BSHK):  # noqa: ANN001, ANN202
    q_BSHK, k_BGTK, v_BGTK, q_seg_BS, k_seg_BT, o_BSHK, log_totals = saved
    B, G, T, K = k_BGTK.shape
    heads = q_BSHK.shape[2] // G
    dk_BGKT = dv_BGKT = jnp.zeros((B, G, K, T), jnp.float32)
    o_dot_g = jnp.sum(o_BSHK.astype(jnp.float32) * g_BSHK.astype(jnp.float32), axis=-1, keepdims=True)
    dq_blocks = []
    for block, log_total in zip(_blocks(q_BSHK.shape[1], rule.window), log_totals, strict=True):
        keys = slice(block.first_key, block.stop)
        q, g, k, v = _rows(q_BSHK, heads, block), _rows(g_BSHK, heads, block), k_BGTK[:, :, keys], v_BGTK[:, :, keys]
        seen = _block_mask(q_seg_BS, k_seg_BT, heads, rule, block)
        bent, s_BGNT = _block_scores(q, k, seen, rule)
        p_BGNT = jnp.exp(s_BGNT - log_total)
        dp_BGNT = jnp.einsum("BGNK,BGTK->BGNT", g, v, preferred_element_type=jnp.float32)
        ds_BGNT = p_BGNT * (dp_BGNT - _rows(o_dot_g, heads, block))
        if rule.softcap is not None:
            ds_BGNT *= 1.0 - jnp.square(bent / rule.softcap)
        ds_BGNT = ds_BGNT.astype(q.dtype)
        dq_BGNK = jnp.einsum("BGNT,BGTK->BGNK", ds_BGNT, k, preferred_element_type=jnp.float32)
        dq_blocks.append((dq_BGNK * rule.scale).astype(q.dtype))
        # [K, T] and not [T, K]: XLA's CPU product is up to twice as fast with the narrow operand on the left.
        dk = jnp.einsum("BGNK,BGNT->BGKT", q, ds_BGNT, preferred_element_type=jnp.float32)
        dv = jnp.einsum("BGNK,BGNT->BGKT", g, p_BGNT.astype(g.dtype), preferred_element_type=jnp.float32)
        dk_BGKT = dk_BGKT.at[..., keys].add(dk)
        dv_BGKT = dv_BGKT.at[..., keys].add(dv)
    dk_BTGK = (dk_BGKT * rule.scale).transpose(0, 3, 1, 2).astype(k_BGTK.dtype)
    dv_BTGK = dv_BGKT.transpose(0, 3, 1, 2).astype(v_BGTK.dtype)
    return _unrows(dq_blocks, heads), dk_BTGK, dv_BTGK, None, None


_blocked.defvjp(_blocked_forward, _blocked_backward)
