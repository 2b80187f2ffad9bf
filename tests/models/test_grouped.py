"""Grouped products: both implementations against a loop over groups, whatever the groups' sizes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maijax.models import grouped

ROWS, GROUPS, IN, OUT = 40, 5, 6, 7


def arrays(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = (ROWS, IN), (GROUPS, IN, OUT), (ROWS, OUT)
    return tuple(rng.standard_normal(shape).astype(np.float32) for shape in shapes)  # pyright: ignore


def reference(x: np.ndarray, w: np.ndarray, g: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, ...]:
    group = np.repeat(np.arange(GROUPS), sizes)
    x, w, g = (a.astype(np.float64) for a in (x, w, g))
    out = np.stack([row @ w[e] for row, e in zip(x, group, strict=True)])
    dx = np.stack([row @ w[e].T for row, e in zip(g, group, strict=True)])
    dw = np.stack([x[group == e].T @ g[group == e] for e in range(GROUPS)])
    return out, dx, dw


@jax.jit
def by_blocks(x, w, g, sizes):
    out, pull = jax.vjp(lambda x, w: grouped.grouped_dot(x, w, sizes), x, w)
    return out, *pull(g)


@jax.jit
def by_ragged_dot(x, w, g, sizes):
    return grouped._ragged_dot(x, w, sizes), *grouped._ragged_gradients(x, w, sizes, g)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.lists(st.integers(0, ROWS), min_size=GROUPS - 1, max_size=GROUPS - 1))
def test_both_ways_equal_a_loop_over_groups(seed: int, cuts: list[int]) -> None:
    sizes = np.diff([0, *sorted(cuts), ROWS]).astype(np.int32)
    x, w, g = arrays(seed)
    wanted = reference(x, w, g, sizes)
    for way in (by_blocks, by_ragged_dot):
        for found, exact in zip(way(x, w, g, sizes), wanted, strict=True):
            np.testing.assert_allclose(found, exact, atol=2e-5)


def test_blocks_grow_with_the_groups() -> None:
    """Large groups take large blocks: here 32 rows, over several blocks and with a rest."""
    rows, sizes = 1000, jnp.array([700, 0, 300], jnp.int32)
    assert grouped._plan(rows, sizes)[0] == 128
    x = jnp.asarray(np.random.default_rng(0).standard_normal((rows, IN)), jnp.float32)
    w = jnp.asarray(np.random.default_rng(1).standard_normal((3, IN, OUT)), jnp.float32)
    found = jax.jit(grouped.grouped_dot)(x, w, sizes)
    np.testing.assert_allclose(found, np.concatenate([x[:700] @ w[0], x[700:] @ w[2]]), atol=1e-4)


def test_weight_gradients_add_up_in_float32() -> None:
    """A first block of 256 rows gives 4096, each of 15 more gives 8: less than bfloat16 can add to 4096."""
    rows = 4096
    x = jnp.where(jnp.arange(rows)[:, None] < 256, 16.0, 1 / 32).astype(jnp.bfloat16)
    w = jnp.ones((1, 1, 1), jnp.bfloat16)
    sizes = jnp.array([rows], jnp.int32)
    gradient = jax.jit(jax.grad(lambda w: grouped.grouped_dot(x, w, sizes).astype(jnp.float32).sum()))(w)
    assert (gradient.dtype, float(gradient[0, 0, 0])) == (jnp.bfloat16, 4224)  # 4216, rounded once


@pytest.mark.parametrize(("platform", "expected"), [("cpu", False), ("tpu", True), ("cuda", True)])
def test_the_platform_of_the_program_decides(platform: str, expected: bool) -> None:
    """Also on a machine that has neither: plans are compiled there."""
    shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in arrays(0)[:2]]
    sizes = jax.ShapeDtypeStruct((GROUPS,), jnp.int32)
    traced = jax.jit(grouped.grouped_dot).trace(*shapes, sizes)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert ("while" not in text) == expected
