"""Grouped products on an NVIDIA GPU: two Pallas kernels through Triton, each program one tile of the result.

XLA (jax 0.10.2) writes `lax.ragged_dot` out as one dense product whose operand repeats the rows for each group: two
products of 32,768 rows with 32 groups of 4096 x 1536 and their gradients take 24 GiB beside what goes in and out;
here they take 0.1 GiB (both compiled for an H100).
Source: own kernels; proven by interpretation, not timed on a GPU.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

_ROWS, _WIDE, _DEEP = 128, 128, 64  # largest tile: rows and columns of a result, and what a step adds up
_LEAST = 16  # of a tensor core's operand


def dot(x_PI: jax.Array, w_EIO: jax.Array, sizes_E: jax.Array, *, interpret: bool = False) -> jax.Array:
    """Row p times the matrix of its group, [P, O] in the dtype of x; rows past the groups give zeros."""
    return _rows_dot(x_PI, w_EIO, sizes_E, interpret, transpose=False)


def gradients(
    x_PI: jax.Array, w_EIO: jax.Array, sizes_E: jax.Array, g_PO: jax.Array, *, interpret: bool = False
) -> tuple[jax.Array, jax.Array]:
    """Of `dot` by x and by w, for the gradient of its result."""
    dx_PI = _rows_dot(g_PO, w_EIO, sizes_E, interpret, transpose=True)
    x, g = (_padded(a, (0, 1)) for a in (x_PI, g_PO))
    groups, deep, wide = w_EIO.shape[0], x.shape[1], g.shape[1]
    tiles = _tile_of_rows(x.shape[0], _DEEP), _tile(deep, _WIDE), _tile(wide, _WIDE)
    ends_E = jnp.cumsum(sizes_E)
    dw_EIO = _call(
        functools.partial(_weights_kernel, tiles), (wide // tiles[2], deep // tiles[1], groups),
        jax.ShapeDtypeStruct((groups, deep, wide), w_EIO.dtype), interpret,
    )(ends_E - sizes_E, ends_E, x, g)
    return dx_PI, dw_EIO[:, : w_EIO.shape[1], : w_EIO.shape[2]]


def _rows_dot(
    x_PI: jax.Array, w: jax.Array, sizes_E: jax.Array, interpret: bool, *, transpose: bool
) -> jax.Array:
    rows, width = x_PI.shape[0], w.shape[1 if transpose else 2]
    x, w = _padded(x_PI, (0, 1)), _padded(w, (1, 2))
    wide = w.shape[1 if transpose else 2]
    tiles = _tile_of_rows(x.shape[0], _ROWS), _tile(x.shape[1], _DEEP), _tile(wide, _WIDE)
    blocks = _blocks(x.shape[0], sizes_E, tiles[0])
    out_PO = _call(
        functools.partial(_rows_kernel, tiles, transpose), (wide // tiles[2], blocks[0].size),
        jax.ShapeDtypeStruct((x.shape[0], wide), x.dtype), interpret,
    )(*blocks, x, w)
    # The kernel writes no rows that no group owns.
    owned_P1 = jnp.arange(rows, dtype=jnp.int32)[:, None] < jnp.sum(sizes_E)
    return jnp.where(owned_P1, out_PO[:rows, :width], 0)


def _blocks(rows: int, sizes_E: jax.Array, size: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Of as many blocks of rows as there can be: the group, the first row and the end; no rows past the last."""
    groups = sizes_E.shape[0]
    blocks_E = -(-sizes_E // size)
    last_E, end_E = jnp.cumsum(blocks_E), jnp.cumsum(sizes_E)
    block_V = jnp.arange(rows // size + groups, dtype=jnp.int32)
    group_V = jnp.minimum(jnp.searchsorted(last_E, block_V, side="right"), groups - 1).astype(jnp.int32)
    first_V = (end_E - sizes_E)[group_V] + (block_V - (last_E - blocks_E)[group_V]) * size
    end_V = jnp.where(block_V < last_E[-1], jnp.minimum(first_V + size, end_E[group_V]), first_V)
    return group_V, first_V, end_V


def _call(kernel: Any, grid: tuple[int, ...], shape: jax.ShapeDtypeStruct, interpret: bool) -> Any:
    from jax.experimental.pallas import triton

    options = triton.CompilerParams(num_warps=8, num_stages=3)
    return pl.pallas_call(kernel, out_shape=shape, grid=grid, interpret=interpret, compiler_params=options)


def _rows_kernel(
    tiles: tuple[int, int, int], transpose: bool, group_V: Any, first_V: Any, end_V: Any, x_PI: Any, w: Any, out_PO: Any
) -> None:
    from jax.experimental.pallas import triton

    size, deep, wide = tiles
    column, block = pl.program_id(0), pl.program_id(1)
    group, first, end = group_V[block], first_V[block], end_V[block]
    columns = pl.ds(column * wide, wide)

    @pl.when(first < end)
    def _() -> None:
        start = jnp.minimum(first, x_PI.shape[0] - size)  # no tile reaches past the rows there are
        mine = _between(start, size, first, end, wide)

        def body(step: jax.Array, sum_PO: jax.Array) -> jax.Array:
            depth = pl.ds(step * deep, deep)
            tile = w[group, columns, depth] if transpose else w[group, depth, columns]
            return sum_PO + triton.dot(x_PI[pl.ds(start, size), depth], tile, trans_b=transpose)

        zeros = jnp.zeros((size, wide), jnp.float32)
        sum_PO = jax.lax.fori_loop(0, x_PI.shape[1] // deep, body, zeros)
        triton.store(out_PO.at[pl.ds(start, size), columns], sum_PO.astype(out_PO.dtype), mask=mine)


def _weights_kernel(
    tiles: tuple[int, int, int], first_E: Any, end_E: Any, x_PI: Any, g_PO: Any, out_EIO: Any
) -> None:
    from jax.experimental.pallas import triton

    size, deep, wide = tiles
    column, row, group = pl.program_id(0), pl.program_id(1), pl.program_id(2)
    first, end = first_E[group], end_E[group]
    depth, columns = pl.ds(row * deep, deep), pl.ds(column * wide, wide)

    def body(step: jax.Array, sum_IO: jax.Array) -> jax.Array:
        at = first + step * size
        start = jnp.minimum(at, x_PI.shape[0] - size)
        x = jnp.where(_between(start, size, at, end, deep), x_PI[pl.ds(start, size), depth], 0)
        return sum_IO + triton.dot(x, g_PO[pl.ds(start, size), columns], trans_a=True)

    steps = (end - first + size - 1) // size
    sum_IO = jax.lax.fori_loop(0, steps, body, jnp.zeros((deep, wide), jnp.float32))
    out_EIO[group, depth, columns] = sum_IO.astype(out_EIO.dtype)


def _between(start: jax.Array, size: int, first: jax.Array, end: jax.Array, wide: int) -> jax.Array:
    """Which of the rows from start on are from first to end, [size, wide]."""
    index = start + jax.lax.broadcasted_iota(jnp.int32, (size, wide), 0)
    return (index >= first) & (index < end)


def _tile(size: int, most: int) -> int:
    """The largest power of 2 that divides a padded dim, up to `most`."""
    return min(most, size & -size)


def _tile_of_rows(rows: int, most: int) -> int:
    """The largest power of 2 that there are rows for, up to `most`; tiles may overlap, so that it need not divide."""
    return min(most, 1 << (rows.bit_length() - 1))


def _padded(array: jax.Array, dims: tuple[int, ...]) -> jax.Array:
    short = [(0, -size % _LEAST if dim in dims else 0) for dim, size in enumerate(array.shape)]
    return jnp.pad(array, short) if any(more for _, more in short) else array
