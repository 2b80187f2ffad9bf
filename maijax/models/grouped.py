"""Products of rows with the matrix of their group: a kernel for each kind of device, and a loop over blocks of rows.

The loop is for CPUs, where XLA writes `lax.ragged_dot` out as one dense product per group over all rows: with 8
experts a training step's experts take 9 times the arithmetic they need, with 64 experts 60 times (measured on 2
cores). libtpu 0.0.52 does the same for v5e and v6e, and XLA for GPUs: hence the kernels.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from maijax.models import grouped_gpu, grouped_tpu

Kernels = Literal["xla", "tpu", "gpu"]

_MOST, _LEAST = 256, 8  # rows of a block


class Order(NamedTuple):
    """Where P rows go, to be sorted by group: to Q slots, of which some may stay empty."""

    slot_P: jax.Array  # int32; Q for a row of no group
    pair_Q: jax.Array  # int32, the row in each slot; P for none
    sizes_E: jax.Array  # int32, slots of each group
    tile: int | None = None  # rows of a tile at which every group starts; None: groups lie close to one another


def sort_rows(group_P: jax.Array, groups: int, kernels: Kernels) -> Order:
    """The order in which `grouped_dot` multiplies rows best; a group past the last is none.

    On a TPU each group starts a tile of its own where groups are large enough for it: a tile in which two meet would
    be multiplied once for each, which takes a whole tile more per group and not half of one.
    """
    rows = group_P.shape[0]
    tile = grouped_tpu.tile_of_rows(rows, groups)
    aligned = kernels == "tpu" and 2 * tile * groups <= rows
    tile = tile if aligned else 1
    slots = rows + groups * (tile - 1)
    slots += -slots % tile
    count_E = jnp.bincount(group_P, length=groups).astype(jnp.int32)
    sizes_E = -(-count_E // tile) * tile
    order_P = jnp.argsort(group_P, stable=True).astype(jnp.int32)
    # How far the group's first slot lies behind its first row in the order.
    ahead_E = (jnp.cumsum(sizes_E) - sizes_E) - (jnp.cumsum(count_E) - count_E)
    sorted_P = group_P[order_P]
    slot_P = jnp.arange(rows, dtype=jnp.int32) + ahead_E.at[sorted_P].get(mode="clip")
    slot_P = jnp.where(sorted_P < groups, slot_P, slots)
    back_P = jnp.zeros_like(order_P).at[order_P].set(slot_P, unique_indices=True)
    pair_Q = jnp.full((slots,), rows, jnp.int32).at[slot_P].set(order_P, mode="drop")
    return Order(back_P, pair_Q, sizes_E, tile if aligned else None)


def grouped_dot(
    x_PI: jax.Array, w_EIO: jax.Array, sizes_E: jax.Array, kernels: Kernels, tile: int | None = None
) -> jax.Array:
    """Rows in, sorted by group; row p times the matrix of its group out, [P, O] in the dtype of x.

    `sizes_E` are int32 and sum to P or less: rows past their sum must be zeros, and give zeros. `tile` is that of
    their `Order`.
    """
    return _product(x_PI, w_EIO, sizes_E, kernels, tile)


def _dot(x_PI: jax.Array, w_EIO: jax.Array, sizes_E: jax.Array, kernels: Kernels, tile: int | None) -> jax.Array:
    if kernels == "tpu":
        return grouped_tpu.dot(x_PI, w_EIO, sizes_E, tile=tile)
    return (grouped_gpu.dot if kernels == "gpu" else _blocks_dot)(x_PI, w_EIO, sizes_E)


def _forward(
    x_PI: jax.Array, w_EIO: jax.Array, sizes_E: jax.Array, kernels: Kernels, tile: int | None
) -> tuple[jax.Array, Any]:
    return _dot(x_PI, w_EIO, sizes_E, kernels, tile), (x_PI, w_EIO, sizes_E)


def _backward(
    kernels: Kernels, tile: int | None, kept: Any, g_PO: jax.Array
) -> tuple[jax.Array, jax.Array, None]:
    x_PI, w_EIO, sizes_E = kept
    if kernels == "tpu":
        return *grouped_tpu.gradients(x_PI, w_EIO, sizes_E, g_PO, tile=tile), None
    return *(grouped_gpu.gradients if kernels == "gpu" else _blocks_gradients)(x_PI, w_EIO, sizes_E, g_PO), None


_product = jax.custom_vjp(_dot, nondiff_argnums=(3, 4))
_product.defvjp(_forward, _backward)


def _plan(rows: int, sizes_E: jax.Array) -> tuple[int, jax.Array, Any]:
    """Rows per block, how many blocks there are, and a function from a block to (group, first row, its rows).

    A group's last block may run into the next group's rows: `its rows` says how many are its own.
    """
    groups = sizes_E.shape[0]
    size = _LEAST
    while size < _MOST and size * 4 * groups <= rows:
        size *= 2
    blocks_E = -(-sizes_E // size)
    last_E, end_E = jnp.cumsum(blocks_E), jnp.cumsum(sizes_E)

    def place(block: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        group = jnp.sum(last_E <= block)
        done = (block - (last_E[group] - blocks_E[group])) * size
        first = end_E[group] - sizes_E[group] + done
        return group, first, jnp.minimum(size, sizes_E[group] - done)

    return size, last_E[-1], place


def _blocks_dot(x_PI: jax.Array, w_EIO: jax.Array, sizes_E: jax.Array) -> jax.Array:
    size, count, place = _plan(x_PI.shape[0], sizes_E)
    padded_PI = jnp.pad(x_PI, ((0, size), (0, 0)))

    def body(block: jax.Array, out_PO: jax.Array) -> jax.Array:
        group, first, _ = place(block)
        rows = jax.lax.dynamic_slice_in_dim(padded_PI, first, size)
        # What runs into the next group is overwritten by that group's own block, which comes later.
        return jax.lax.dynamic_update_slice_in_dim(out_PO, rows @ w_EIO[group], first, axis=0)

    out_PO = jnp.zeros((x_PI.shape[0] + size, w_EIO.shape[2]), x_PI.dtype)
    return jax.lax.fori_loop(0, count, body, out_PO)[: x_PI.shape[0]]


def _blocks_gradients(
    x_PI: jax.Array, w_EIO: jax.Array, sizes_E: jax.Array, g_PO: jax.Array
) -> tuple[jax.Array, jax.Array]:
    size, count, place = _plan(x_PI.shape[0], sizes_E)
    padded_PI, grown_PO = (jnp.pad(a, ((0, size), (0, 0))) for a in (x_PI, g_PO))

    def body(block: jax.Array, found: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        dx_PI, dw_EIO = found
        group, first, own = place(block)
        x = jax.lax.dynamic_slice_in_dim(padded_PI, first, size)
        g = jax.lax.dynamic_slice_in_dim(grown_PO, first, size)
        g = jnp.where(jnp.arange(size)[:, None] < own, g, 0)
        dx_PI = jax.lax.dynamic_update_slice_in_dim(dx_PI, g @ w_EIO[group].T, first, axis=0)
        more_IO = jnp.matmul(x.T, g, preferred_element_type=jnp.float32)
        return dx_PI, dw_EIO.at[group].add(more_IO)

    start = (jnp.zeros_like(padded_PI), jnp.zeros(w_EIO.shape, jnp.float32))
    dx_PI, dw_EIO = jax.lax.fori_loop(0, count, body, start)
    return dx_PI[: x_PI.shape[0]], dw_EIO.astype(w_EIO.dtype)
