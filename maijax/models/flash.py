"""Attention by tiles of queries and keys in plain XLA loops: memory of one tile of scores, whatever the lengths.

Queries and keys are pieces of a row, each with the index at which it starts; starts may differ from device to
device, so that a ring or a share of the queries is the same computation. Tiles that no query sees are not visited.

Letters: B batch, S queries, T keys, G key/value heads, R query heads per group, K head dim; P pieces of the
queries, Q of the keys.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from maijax.parallel.remat import attended

# A finite stand-in for minus infinity: differences of two of them stay finite, so no row can become NaN.
HIDDEN = -1e30
# The least row maximum that is believed: exp(HIDDEN - FLOOR) is 0, so a row that sees nothing sums to 0.
FLOOR = -1e29
# Queries and keys of a tile: a tile of float32 scores is 1 MiB per row and head.
TILE = 512
# The index of a key that is not there: later than any query.
_NOWHERE = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
    """Which scores count and how they are bent; hashable, so that it can be a static argument."""

    scale: float
    window: int | None
    softcap: float | None


Look = tuple[jax.Array, jax.Array]
Whole = tuple[jax.Array, jax.Array, jax.Array]  # what `look_back` knows of the look at all keys


class Part(NamedTuple):
    """Queries, or keys and values, by head: what one device holds of a row."""

    heads: tuple[jax.Array, ...]  # q [B, G, R, S, K], or k and v [B, G, T, K]
    segments: jax.Array | None  # [B, S] or [B, T]
    starts: jax.Array  # int32 [P]: the index in the row of each piece; pieces are equally long


def bend(scores: jax.Array, softcap: float | None) -> jax.Array:
    return scores if softcap is None else softcap * jnp.tanh(scores / softcap)


def by_group(x_BSHK: jax.Array, groups: int) -> jax.Array:
    """[B, S, H, K] as [B, G, R, S, K]."""
    B, S, H, K = x_BSHK.shape
    return x_BSHK.reshape(B, S, groups, H // groups, K).transpose(0, 2, 3, 1, 4)


def by_token(x_BGRSK: jax.Array) -> jax.Array:
    """Undo `by_group`."""
    B, G, R, S, K = x_BGRSK.shape
    return x_BGRSK.transpose(0, 3, 1, 2, 4).reshape(B, S, G * R, K)


@dataclasses.dataclass(frozen=True)
class _Cut:
    """How the tokens of a part lie in tiles: each piece padded to whole tiles."""

    pieces: int
    length: int  # tokens of a piece

    @property
    def tile(self) -> int:
        return min(TILE, self.length)

    @property
    def tiles(self) -> int:
        """Of a piece."""
        return -(-self.length // self.tile)

    @property
    def padded(self) -> int:
        return self.pieces * self.tiles * self.tile

    def pad(self, x: jax.Array, axis: int) -> jax.Array:
        short = self.tiles * self.tile - self.length
        if not short:
            return x
        split = x.reshape(*x.shape[:axis], self.pieces, self.length, *x.shape[axis + 1 :])
        widths = [(0, 0)] * split.ndim
        widths[axis + 1] = (0, short)
        return jnp.pad(split, widths).reshape(*x.shape[:axis], self.padded, *x.shape[axis + 1 :])

    def unpad(self, x: jax.Array, axis: int) -> jax.Array:
        if self.tiles * self.tile == self.length:
            return x
        split = x.reshape(*x.shape[:axis], self.pieces, -1, *x.shape[axis + 1 :])
        kept = jax.lax.slice_in_dim(split, 0, self.length, axis=axis + 1)
        return kept.reshape(*x.shape[:axis], self.pieces * self.length, *x.shape[axis + 1 :])

    def take(self, x: jax.Array, n: jax.Array, axis: int) -> jax.Array:
        return jax.lax.dynamic_slice_in_dim(x, n * self.tile, self.tile, axis)

    def put(self, x: jax.Array, tile: jax.Array, n: jax.Array, axis: int) -> jax.Array:
        return jax.lax.dynamic_update_slice_in_dim(x, tile, n * self.tile, axis)

    def first(self, starts: jax.Array, n: jax.Array) -> jax.Array:
        """The index in the row of tile n's first token."""
        return starts[n // self.tiles] + n % self.tiles * self.tile

    def index(self, starts: jax.Array, n: jax.Array) -> jax.Array:
        """The index in the row of each token of tile n; padding lies nowhere."""
        within = n % self.tiles * self.tile + jnp.arange(self.tile)
        return jnp.where(within < self.length, starts[n // self.tiles] + within, _NOWHERE)


def _cut(part: Part, axis: int) -> _Cut:
    pieces, tokens = part.starts.shape[0], part.heads[0].shape[axis]
    return _Cut(pieces, tokens // pieces)


@dataclasses.dataclass(frozen=True)
class _Tiling:
    """All tiles of queries against keys, under a rule."""

    queries: _Cut
    keys: _Cut
    rule: Rule

    def spans(self, q: Part, k: Part, n: jax.Array) -> list[tuple[jax.Array, jax.Array]]:
        """For each piece of the keys, its tiles [first, last) that some query of tile n can see."""
        start = self.queries.first(q.starts, n)
        found = []
        for piece in range(self.keys.pieces):
            offset, size = k.starts[piece], self.keys.tile
            last = jnp.clip(-((offset - start - self.queries.tile) // size), 0, self.keys.tiles)
            first = jnp.zeros_like(last)
            if self.rule.window is not None:
                first = jnp.clip((start - self.rule.window + 1 - offset) // size, 0, last)
            base = piece * self.keys.tiles
            found.append((base + first, base + last))
        return found

    def scores(
        self, q: Part, k: Part, q_BGRSK: jax.Array, k_BGTK: jax.Array, n: jax.Array, m: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Float32 scores of tiles n and m after the softcap, [B, G, R, S, T], and the same with hidden ones masked."""
        age_ST = self.queries.index(q.starts, n)[:, None] - self.keys.index(k.starts, m)[None, :]
        seen_BST = (age_ST >= 0)[None]
        if self.rule.window is not None:
            seen_BST &= (age_ST < self.rule.window)[None]
        if q.segments is not None and k.segments is not None:
            q_BS, k_BT = self.queries.take(q.segments, n, 1), self.keys.take(k.segments, m, 1)
            seen_BST = seen_BST & (q_BS[:, :, None] == k_BT[:, None, :])
        raw = jnp.einsum("BGRSK,BGTK->BGRST", q_BGRSK, k_BGTK, preferred_element_type=jnp.float32)
        bent = bend(raw * self.rule.scale, self.rule.softcap)
        return bent, jnp.where(seen_BST[:, None, None], bent, HIDDEN)


def _tiled(q: Part, k: Part, rule: Rule) -> tuple[_Tiling, Part, Part]:
    """The tiling of these parts, and the parts padded to it."""
    tiling = _Tiling(_cut(q, 3), _cut(k, 2), rule)

    def pad(part: Part, cut: _Cut, axis: int) -> Part:
        segments = None if part.segments is None else cut.pad(part.segments, 1)
        return Part(tuple(cut.pad(x, axis) for x in part.heads), segments, part.starts)

    return tiling, pad(q, tiling.queries, 3), pad(k, tiling.keys, 2)


def look(q: Part, k: Part, rule: Rule) -> Look:
    """What the queries see of these keys alone: o_BGRSK, and the log of its softmax's sum [B, G, R, S], both float32.

    A query that sees none of them gets 0 and the log `FLOOR`; `merge` adds up the looks at several sets of keys.
    Source: Dao et al. 2022, "FlashAttention".
    """
    tiling, q, k = _tiled(q, k, rule)
    (q_BGRSK,), (k_BGTK, v_BGTK) = q.heads, k.heads

    def queries(n: jax.Array, done: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        mine = tiling.queries.take(q_BGRSK, n, 3)

        def keys(m: jax.Array, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            o, top, total = state
            _, s = tiling.scores(q, k, mine, tiling.keys.take(k_BGTK, m, 2), n, m)
            higher = jnp.maximum(top, jnp.max(s, axis=-1))
            fade = jnp.exp(top - higher)
            p = jnp.exp(s - higher[..., None])
            v = tiling.keys.take(v_BGTK, m, 2)
            new = jnp.einsum("BGRST,BGTK->BGRSK", p.astype(v.dtype), v, preferred_element_type=jnp.float32)
            return o * fade[..., None] + new, higher, total * fade + jnp.sum(p, axis=-1)

        zeros = jnp.zeros(mine.shape[:-1], jnp.float32)
        state = (jnp.zeros(mine.shape, jnp.float32), zeros + FLOOR, zeros)
        for first, last in tiling.spans(q, k, n):
            state = jax.lax.fori_loop(first, last, keys, state)
        o, top, total = state
        total = jnp.where(total == 0, 1.0, total)
        found = (o / total[..., None], top + jnp.log(total))
        outs, logs = (tiling.queries.put(x, tile, n, 3) for x, tile in zip(done, found, strict=True))
        return outs, logs

    done = (jnp.zeros(q_BGRSK.shape, jnp.float32), jnp.zeros(q_BGRSK.shape[:-1], jnp.float32))
    tiles = tiling.queries.pieces * tiling.queries.tiles
    o_BGRSK, log_BGRS = jax.lax.fori_loop(0, tiles, queries, done)
    return tiling.queries.unpad(o_BGRSK, 3), tiling.queries.unpad(log_BGRS, 3)


def merge(one: Look, other: Look) -> Look:
    """The look at the keys of both looks."""
    log = jnp.logaddexp(one[1], other[1])
    o = sum(o * jnp.exp(part - log)[..., None] for o, part in (one, other))
    return jnp.asarray(o), log


def look_back(
    q: Part, k: Part, g_BGRSK: jax.Array, log_BGRS: jax.Array, o_dot_g_BGRS: jax.Array, rule: Rule
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Float32 gradients of q, and of these keys and values, given those of the whole output.

    ``log``: of the look at all keys; ``o_dot_g``: of the whole output with its gradient.
    """
    tiling, q, k = _tiled(q, k, rule)
    (q_BGRSK,), (k_BGTK, v_BGTK) = q.heads, k.heads
    g_BGRSK, log_BGRS, o_dot_g_BGRS = (tiling.queries.pad(x, 3) for x in (g_BGRSK, log_BGRS, o_dot_g_BGRS))

    def queries(n: jax.Array, done: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        mine, g, log, o_dot_g = (
            tiling.queries.take(x, n, 3) for x in (q_BGRSK, g_BGRSK, log_BGRS, o_dot_g_BGRS)
        )

        def keys(m: jax.Array, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            dq, dk, dv = state
            theirs, v = tiling.keys.take(k_BGTK, m, 2), tiling.keys.take(v_BGTK, m, 2)
            bent, s = tiling.scores(q, k, mine, theirs, n, m)
            p = jnp.exp(s - log[..., None])
            dp = jnp.einsum("BGRSK,BGTK->BGRST", g, v, preferred_element_type=jnp.float32)
            ds = p * (dp - o_dot_g[..., None])
            if rule.softcap is not None:
                ds *= 1.0 - jnp.square(bent / rule.softcap)
            ds = (ds * rule.scale).astype(mine.dtype)
            dq += jnp.einsum("BGRST,BGTK->BGRSK", ds, theirs, preferred_element_type=jnp.float32)
            dk_tile = jnp.einsum("BGRST,BGRSK->BGTK", ds, mine, preferred_element_type=jnp.float32)
            dv_tile = jnp.einsum("BGRST,BGRSK->BGTK", p.astype(g.dtype), g, preferred_element_type=jnp.float32)
            dk = tiling.keys.put(dk, tiling.keys.take(dk, m, 2) + dk_tile, m, 2)
            dv = tiling.keys.put(dv, tiling.keys.take(dv, m, 2) + dv_tile, m, 2)
            return dq, dk, dv

        dqs, dk, dv = done
        state = (jnp.zeros(mine.shape, jnp.float32), dk, dv)
        for first, last in tiling.spans(q, k, n):
            state = jax.lax.fori_loop(first, last, keys, state)
        return tiling.queries.put(dqs, state[0], n, 3), *state[1:]

    done = tuple(jnp.zeros(x.shape, jnp.float32) for x in (q_BGRSK, k_BGTK, v_BGTK))
    dq, dk, dv = jax.lax.fori_loop(0, tiling.queries.pieces * tiling.queries.tiles, queries, done)
    return tiling.queries.unpad(dq, 3), tiling.keys.unpad(dk, 2), tiling.keys.unpad(dv, 2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(6,))
def flash(
    q_BSHK: jax.Array,
    k_BTGK: jax.Array,
    v_BTGK: jax.Array,
    q_segments_BS: jax.Array | None,
    k_segments_BT: jax.Array | None,
    q_starts_P: jax.Array,
    rule: Rule,
) -> jax.Array:
    """Attention of pieces of a row to all its keys, o_BSHK; the gradient computes the scores again.

    Keys are those from the row's start on. First derivatives in reverse mode only.
    """
    return _forward(q_BSHK, k_BTGK, v_BTGK, q_segments_BS, k_segments_BT, q_starts_P, rule)[0]


def _parts(q_BSHK, k_BTGK, v_BTGK, q_segments_BS, k_segments_BT, q_starts_P):  # noqa: ANN001, ANN202
    q = Part((by_group(q_BSHK, k_BTGK.shape[2]),), q_segments_BS, q_starts_P)
    keys = (k_BTGK.swapaxes(1, 2), v_BTGK.swapaxes(1, 2))
    return q, Part(keys, k_segments_BT, jnp.zeros(1, jnp.int32))


def _forward(q_BSHK, k_BTGK, v_BTGK, q_segments_BS, k_segments_BT, q_starts_P, rule):  # noqa: ANN001, ANN202
    given = (q_BSHK, k_BTGK, v_BTGK, q_segments_BS, k_segments_BT, q_starts_P)
    o_BGRSK, log_BGRS = look(*_parts(*given), rule)
    o_BSHK, log_BGRS = attended((by_token(o_BGRSK.astype(q_BSHK.dtype)), log_BGRS))
    return o_BSHK, (given, o_BSHK, log_BGRS)


def _backward(rule, saved, g_BSHK):  # noqa: ANN001, ANN202
    given, o_BSHK, log_BGRS = saved
    q, k = _parts(*given)
    groups = k.heads[0].shape[1]
    o_dot_g = jnp.sum(o_BSHK.astype(jnp.float32) * g_BSHK.astype(jnp.float32), axis=-1, keepdims=True)
    dq, dk, dv = look_back(q, k, by_group(g_BSHK, groups), log_BGRS, by_group(o_dot_g, groups)[..., 0], rule)
    dk, dv = (x.swapaxes(1, 2).astype(like.dtype) for x, like in ((dk, given[1]), (dv, given[2])))
    return by_token(dq.astype(given[0].dtype)), dk, dv, None, None, None


flash.defvjp(_forward, _backward)
