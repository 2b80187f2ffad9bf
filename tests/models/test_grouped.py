"""Grouped products: all ways against a loop over groups, whatever the groups' sizes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maijax.models import grouped, grouped_gpu, grouped_tpu

ROWS, GROUPS, IN, OUT = 40, 5, 6, 7


def arrays(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = (ROWS, IN), (GROUPS, IN, OUT), (ROWS, OUT)
    return tuple(rng.standard_normal(shape).astype(np.float32) for shape in shapes)  # pyright: ignore


def reference(x: np.ndarray, w: np.ndarray, g: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, ...]:
    group = np.append(np.repeat(np.arange(GROUPS), sizes), np.full(len(x) - sizes.sum(), GROUPS))
    x, w, g = (a.astype(np.float64) for a in (x, w, g))
    w = np.append(w, np.zeros((1, *w.shape[1:])), axis=0)  # of the rows left over
    out = np.stack([row @ w[e] for row, e in zip(x, group, strict=True)])
    dx = np.stack([row @ w[e].T for row, e in zip(g, group, strict=True)])
    dw = np.stack([x[group == e].T @ g[group == e] for e in range(GROUPS)])
    return out, dx, dw


@jax.jit
def by_blocks(x, w, g, sizes):
    out, pull = jax.vjp(lambda x, w: grouped.grouped_dot(x, w, sizes, "xla"), x, w)
    return out, *pull(g)


@jax.jit
def by_megablox(x, w, g, sizes):
    out = grouped_tpu.dot(x, w, sizes, interpret=True)
    return out, *grouped_tpu.gradients(x, w, sizes, g, interpret=True)


@jax.jit
def by_triton(x, w, g, sizes):
    out = grouped_gpu.dot(x, w, sizes, interpret=True)
    return out, *grouped_gpu.gradients(x, w, sizes, g, interpret=True)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.lists(st.integers(0, ROWS), min_size=GROUPS, max_size=GROUPS))
def test_all_ways_equal_a_loop_over_groups(seed: int, cuts: list[int]) -> None:
    """The groups may leave rows over, which are zeros."""
    sizes = np.diff([0, *sorted(cuts)]).astype(np.int32)
    x, w, g = arrays(seed)
    x[sizes.sum() :] = 0
    wanted = reference(x, w, g, sizes)
    for way in (by_blocks, by_megablox, by_triton):
        for found, exact in zip(way(x, w, g, sizes), wanted, strict=True):
            np.testing.assert_allclose(found, exact, atol=2e-5)


@pytest.mark.parametrize("way", [by_megablox, by_triton])
def test_kernels_in_many_tiles(way) -> None:
    """Several tiles of rows, groups that meet within one, sums over two tiles, and a rest on every side."""
    rng, sizes = np.random.default_rng(0), np.array([300, 0, 20, 400, 0], np.int32)
    x, w, g = (rng.standard_normal(s).astype(np.float32) for s in ((750, 700), (GROUPS, 700, 130), (750, 130)))
    x[720:] = 0
    for found, exact in zip(way(x, w, g, sizes), reference(x, w, g, sizes), strict=True):
        np.testing.assert_allclose(found, exact, atol=2e-5 * np.abs(exact).max())


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(("xla", "tpu")), st.sampled_from((40, 511, 512, 900)))
def test_rows_are_sorted_and_none_is_lost(seed: int, kernels: grouped.Kernels, rows: int) -> None:
    """Two groups, and rows of none; on a TPU each of two large ones starts a tile."""
    group = np.random.default_rng(seed).integers(0, 3, rows).astype(np.int32)
    order = grouped.sort_rows(jnp.asarray(group), 2, kernels)
    slot, row, sizes = (np.asarray(a) for a in order[:3])
    assert (order.tile is not None) == (kernels == "tpu" and rows >= 512)
    assert row.shape[0] <= rows + 2 * ((order.tile or 1) - 1) + (order.tile or 1)
    assert np.all(sizes % (order.tile or 1) == 0)
    starts = np.cumsum(sizes) - sizes
    for e in range(2):
        mine = np.flatnonzero(group == e)
        assert list(slot[mine]) == list(range(starts[e], starts[e] + len(mine)))
        assert len(mine) <= sizes[e] < len(mine) + (order.tile or 1)
    assert np.all(slot[group == 2] == row.shape[0])
    assert np.all(row[slot[group < 2]] == np.flatnonzero(group < 2))
    assert np.count_nonzero(row < rows) == np.count_nonzero(group < 2)


def test_groups_that_start_tiles_of_their_own_give_the_same() -> None:
    rng = np.random.default_rng(0)
    group = jnp.asarray(rng.choice(3, 900, p=(0.3, 0.6, 0.1)).astype(np.int32))
    w, x = (jnp.asarray(rng.standard_normal(s), jnp.float32) for s in ((3, IN, OUT), (900, IN)))
    order = grouped.sort_rows(group, 3, "tpu")
    assert order.tile == 128
    rows = x.at[order.pair_Q].get(mode="fill", fill_value=0)
    out = grouped_tpu.dot(rows, w, order.sizes_E, tile=order.tile, interpret=True)[order.slot_P]
    np.testing.assert_allclose(out, jnp.einsum("PI,PIO->PO", x, w[group]), atol=1e-5)
    g = jnp.asarray(rng.standard_normal((900, OUT)), jnp.float32)
    dealt = g.at[order.pair_Q].get(mode="fill", fill_value=0)
    dx, dw = grouped_tpu.gradients(rows, w, order.sizes_E, dealt, tile=order.tile, interpret=True)
    np.testing.assert_allclose(dx[order.slot_P], jnp.einsum("PO,PIO->PI", g, w[group]), atol=1e-5)
    wanted = np.stack([np.asarray(x)[group == e].T @ np.asarray(g)[group == e] for e in range(3)])
    np.testing.assert_allclose(dw, wanted, atol=1e-4)


def test_blocks_grow_with_the_groups() -> None:
    """Large groups take large blocks: here 32 rows, over several blocks and with a rest."""
    rows, sizes = 1000, jnp.array([700, 0, 300], jnp.int32)
    assert grouped._plan(rows, sizes)[0] == 128
    x = jnp.asarray(np.random.default_rng(0).standard_normal((rows, IN)), jnp.float32)
    w = jnp.asarray(np.random.default_rng(1).standard_normal((3, IN, OUT)), jnp.float32)
    found = jax.jit(lambda x, w: grouped.grouped_dot(x, w, sizes, "xla"))(x, w)
    np.testing.assert_allclose(found, np.concatenate([x[:700] @ w[0], x[700:] @ w[2]]), atol=1e-4)


def test_weight_gradients_add_up_in_float32() -> None:
    """A first block of 256 rows gives 4096, each of 15 more gives 8: less than bfloat16 can add to 4096."""
    rows = 4096
    x = jnp.where(jnp.arange(rows)[:, None] < 256, 16.0, 1 / 32).astype(jnp.bfloat16)
    w = jnp.ones((1, 1, 1), jnp.bfloat16)
    sizes = jnp.array([rows], jnp.int32)
    gradient = jax.jit(jax.grad(lambda w: grouped.grouped_dot(x, w, sizes, "xla").astype(jnp.float32).sum()))(w)
    assert (gradient.dtype, float(gradient[0, 0, 0])) == (jnp.bfloat16, 4224)  # 4216, rounded once


@pytest.mark.parametrize(("kernels", "platform", "name"), [
    ("xla", "cpu", "stablehlo.while"), ("tpu", "tpu", "tpu_custom_call"), ("gpu", "cuda", "triton"),
])  # fmt: skip
def test_the_kernels_asked_for_are_lowered(kernels: grouped.Kernels, platform: str, name: str) -> None:
    """Forward and back, on a machine that has no such device: plans are compiled there."""
    x, w, g = arrays(0)
    sizes = jnp.array([ROWS, 0, 0, 0, 0], jnp.int32)

    def loss(x: jax.Array, w: jax.Array) -> jax.Array:
        return jnp.vdot(g, grouped.grouped_dot(x, w, sizes, kernels))

    text = jax.jit(jax.grad(loss, (0, 1))).trace(x, w).lower(lowering_platforms=(platform,)).as_text()
    assert {n for n in ("tpu_custom_call", "triton") if n in text} == {name} - {"stablehlo.while"}
    assert name in text
