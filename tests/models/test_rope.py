"""Rotary positions against the definition, and LongRoPE's choices."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import longrope

from maijax.config import RopeConfig
from maijax.models import rope


def turned(x: np.ndarray, positions: np.ndarray, config: RopeConfig, *, total: Any = 1) -> np.ndarray:
    turn = rope.rotation(config, jnp.asarray(positions), head_dim=x.shape[-1], context=64, total=total)
    return np.asarray(rope.rotate(jnp.asarray(x), turn))


@pytest.mark.parametrize("fraction", [1.0, 0.5, 0.25])
def test_pairs_turn_as_complex_numbers(fraction: float) -> None:
    config, head_dim = RopeConfig(theta=100.0, fraction=fraction), 16
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 5, 3, head_dim)).astype(np.float32)
    positions = rng.integers(0, 50, (2, 5)).astype(np.int32)
    pairs = int(head_dim * fraction) // 2
    speed = 100.0 ** (-np.arange(pairs) / pairs)
    z = x[..., :pairs].astype(np.complex128) + 1j * x[..., pairs : 2 * pairs]
    z = z * np.exp(1j * positions[:, :, None, None] * speed)
    wanted = np.concatenate([z.real, z.imag, x[..., 2 * pairs :]], axis=-1)
    np.testing.assert_allclose(turned(x, positions, config), wanted, atol=2e-5)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 500), st.integers(0, 500), st.integers(0, 500))
def test_scores_depend_on_distance_alone(first: int, second: int, shift: int) -> None:
    rng = np.random.default_rng(0)
    q, k = rng.standard_normal((2, 1, 1, 1, 8)).astype(np.float32)
    config = RopeConfig()

    def score(i: int, j: int) -> float:
        return float(np.sum(turned(q, np.array([[i]]), config) * turned(k, np.array([[j]]), config)))

    assert score(first, second) == pytest.approx(score(first + shift, second + shift), abs=1e-3)


def test_longrope_chooses_by_the_length_of_each_row() -> None:
    config = longrope(8, original=16)
    x = np.ones((3, 2, 1, 8), np.float32)
    positions = np.tile(np.array([[3, 9]], np.int32), (3, 1))
    mixed = turned(x, positions, config, total=jnp.array([16, 17, 40]))
    short, long = turned(x, positions, config, total=16), turned(x, positions, config, total=17)
    np.testing.assert_array_equal(mixed, np.stack([short[0], long[0], long[0]]))
    assert np.abs(short - long).max() > 0.1
    plain = rope.frequencies(RopeConfig(), 8, long=False)
    np.testing.assert_allclose(rope.frequencies(config, 8, long=True), plain / config.long_factor, rtol=1e-6)


def test_longrope_magnitude() -> None:
    config = longrope(8, original=16)
    assert rope.magnitude(config, 64) == pytest.approx(math.sqrt(1 + math.log(4) / math.log(16)))
    assert rope.magnitude(config, 16) == 1.0
    assert rope.magnitude(RopeConfig(), 64) == 1.0


def test_bfloat16_is_turned_in_float32() -> None:
    """At position 4000 a bfloat16 angle would be off by radians."""
    x = jnp.ones((1, 1, 1, 8), jnp.bfloat16)
    turn = rope.rotation(RopeConfig(), jnp.array([[4000]]), head_dim=8, context=4096, total=4096)
    found = rope.rotate(x, turn)
    assert found.dtype == jnp.bfloat16
    assert float(found[0, 0, 0, 0]) == pytest.approx(math.cos(4000) - math.sin(4000), abs=0.01)
