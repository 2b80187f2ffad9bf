"""Attention on many devices: an island where each has some rows, some heads and some tokens of each row.

Heads need no others, and rows none either. Where the mesh's context axis shares out the tokens of a row, the keys
come to the queries: round a ring, or all at once ("gather").
Source: Llama Team 2024, "The Llama 3 Herd of Models", section 3.3.2 (gather).
"""

from __future__ import annotations

from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from maijax.parallel import order
from maijax.parallel.ring import Looks, ring
from maijax.parallel.sharding import Layout, spread


class Local(Looks, Protocol):
    """Attention on one device. Arrays as in `over_devices`; queries see keys up to their own index in the row."""

    def whole(
        self, q_BSHK: jax.Array, k_BSGK: jax.Array, v_BSGK: jax.Array, segments_BS: jax.Array | None
    ) -> jax.Array: ...

    def share(
        self,
        q_BSHK: jax.Array,
        k_BTGK: jax.Array,
        v_BTGK: jax.Array,
        q_segments_BS: jax.Array | None,
        k_segments_BT: jax.Array | None,
        pieces: np.ndarray,
        device: jax.Array,
    ) -> jax.Array:
        """Of the queries in `pieces[device]` to the keys of the whole row; pieces are counted in their own length."""
        ...


def over_devices(
    q_BSHK: jax.Array, k_BSGK: jax.Array, v_BSGK: jax.Array, segments_BS: jax.Array | None, local: Local
) -> jax.Array:
    """o_BSHK: each token's attention to itself and to those of its row and segment before it.

    Where rows are shared out, their tokens are in the order of `maijax.parallel.order`.
    """
    layout = spread()
    if layout is None:
        return local.whole(q_BSHK, k_BSGK, v_BSGK, segments_BS)
    queries = layout.spec(("batch", "sequence", "act_heads", None), q_BSHK.shape, "queries")
    keys = layout.spec(("batch", "sequence", "act_kv_heads", None), k_BSGK.shape, "keys")
    rows = None if segments_BS is None else layout.spec(("batch", "sequence"), segments_BS.shape, "segments")

    def island(q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array | None) -> jax.Array:
        return _one_device(layout, local, q, k, v, segments)

    return jax.shard_map(
        island, mesh=layout.mesh, in_specs=(queries, keys, keys, rows), out_specs=queries, check_vma=False
    )(q_BSHK, k_BSGK, v_BSGK, segments_BS)


def _one_device(
    layout: Layout, local: Local, q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array | None
) -> jax.Array:
    ways = layout.ways("context")
    if ways == 1:
        return local.whole(q, k, v, segments)
    if layout.config.attention == "gather":
        # Half as many collectives: keys and values travel as one array.
        kv = _gather(jnp.stack([k, v]), ways, axis=2)
        theirs = None if segments is None else _gather(segments, ways, axis=1)
        pieces = order.pieces(ways).reshape(ways, 2)
        return local.share(q, kv[0], kv[1], segments, theirs, pieces, jax.lax.axis_index("context"))
    (B, S, H, K), G = q.shape, k.shape[2]
    q_BGRSK = q.reshape(B, S, G, H // G, K).transpose(0, 2, 3, 1, 4)
    o_BGRSK: Any = ring(q_BGRSK, k.swapaxes(1, 2), v.swapaxes(1, 2), segments, local, ways)
    return o_BGRSK.transpose(0, 3, 1, 2, 4).reshape(B, S, H, K)


def _gather(x: jax.Array, ways: int, axis: int) -> jax.Array:
    """The tokens of all devices, in the order of the row."""
    every = jax.lax.all_gather(x, "context", axis=axis, tiled=True)
    cut = every.reshape(*x.shape[:axis], 2 * ways, x.shape[axis] // 2, *x.shape[axis + 1 :])
    back = np.argsort(order.pieces(ways))
    return jnp.take(cut, back, axis=axis).reshape(every.shape)
