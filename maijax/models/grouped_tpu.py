"""Grouped products on a TPU: megablox, the Pallas kernels that come with jax.

The kernels visit only the tiles in which a group has rows: empty room costs nothing.
Source: Gale et al. 2022, "MegaBlocks", arXiv 2211.15841; jax.experimental.pallas.ops.tpu.megablox.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

_ROWS = (512, 256, 128)  # of a tile, largest first
_WIDE = 2048  # bytes of a tile's row at most: more, and the 16 MiB of a v5e's fast memory overflow


def dot(
    x_PI: jax.Array, w_EIO: jax.Array, sizes_E: jax.Array, *, tile: int | None = None, interpret: bool = False
) -> jax.Array:
    """Row p times the matrix of its group, [P, O] in the dtype of x; rows past the groups give zeros.

    `tile` is rows of a tile (default: `tile_of_rows`).
    """
    return _rows_dot(x_PI, w_EIO, sizes_E, tile, interpret, transpose=False)


def gradients(
    x_PI: jax.Array,
    w_EIO: jax.Array,
    sizes_E: jax.Array,
    g_PO: jax.Array,
    *,
    tile: int | None = None,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Of `dot` by x and by w, for the gradient of its result."""
    from jax.experimental.pallas.ops.tpu.megablox.gmm import tgmm

    dx_PI = _rows_dot(g_PO, w_EIO, sizes_E, tile, interpret, transpose=True)
    size = tile or tile_of_rows(x_PI.shape[0], sizes_E.shape[0])
    x_PI, g_PO = _padded(x_PI, size), _padded(g_PO, size)
    tiling = (size, _tile(x_PI.shape[1], x_PI.dtype), _tile(g_PO.shape[1], x_PI.dtype))
    dw_EIO = tgmm(x_PI.T, g_PO, sizes_E, w_EIO.dtype, tiling, interpret=interpret)
    return dx_PI, dw_EIO


def _rows_dot(
    x_PI: jax.Array, w: jax.Array, sizes_E: jax.Array, tile: int | None, interpret: bool, *, transpose: bool
) -> jax.Array:
    from jax.experimental.pallas.ops.tpu.megablox.gmm import gmm

    rows, wide = x_PI.shape
    size = tile or tile_of_rows(rows, sizes_E.shape[0])
    tiling = (size, _tile(wide, x_PI.dtype), _tile(w.shape[1 if transpose else 2], x_PI.dtype))
    out_PO: Any = gmm(
        _padded(x_PI, size), w, sizes_E, x_PI.dtype, tiling, transpose_rhs=transpose, interpret=interpret
    )
    # The kernel leaves what no group owns as it found it.
    owned_P1 = jnp.arange(rows, dtype=jnp.int32)[:, None] < jnp.sum(sizes_E)
    return jnp.where(owned_P1, out_PO[:rows], 0)


def tile_of_rows(rows: int, groups: int) -> int:
    """The largest of which an even group has two: the tile in which two groups meet is computed for both."""
    return next((size for size in _ROWS if 2 * size * groups <= rows), _ROWS[-1])


def _tile(size: int, dtype: Any) -> int:
    """The whole dim if it is small, else the largest tile that divides it, else one with a rest."""
    most = _WIDE // jnp.dtype(dtype).itemsize
    if size <= most:
        return size
    return next((tile for tile in range(most, most // 2 - 1, -128) if size % tile == 0), most)


def _padded(rows: jax.Array, size: int) -> jax.Array:
    return jnp.pad(rows, ((0, -rows.shape[0] % size), (0, 0)))
