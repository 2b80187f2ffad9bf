"""The generator behind initial weights, against jax's own and against the normal distribution."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.random import threefry_2x32

from maijax.models import initial


def test_threefry_equals_jax() -> None:
    key, counter = jax.random.bits(jax.random.key(0), (2,)), jax.random.bits(jax.random.key(1), (8,))
    found = initial.threefry((key[0], key[1]), (counter[:4], counter[4:]))
    np.testing.assert_array_equal(np.concatenate(found), threefry_2x32(key, counter))


def test_values_are_normal_and_uncorrelated() -> None:
    x = np.asarray(initial.normal(jax.random.key(3), "layers/mlp/w_up", (4, 50, 1000))).astype(np.float64)
    n = x.size
    assert abs(x.mean()) < 5 / n**0.5
    assert abs((x**2).mean() - 1) < 5 * (2 / n) ** 0.5
    assert abs((x**4).mean() - 3) < 5 * (96 / n) ** 0.5
    assert np.isfinite(x).all() and 4 < np.abs(x).max() < 5.5
    quantiles = np.quantile(x, [0.02275, 0.15866, 0.84134, 0.97725])
    np.testing.assert_allclose(quantiles, [-2, -1, 1, 2], atol=0.03)
    other = np.asarray(initial.normal(jax.random.key(3), "layers/mlp/w_gate", x.shape))
    later = np.asarray(initial.normal(jax.random.key(4), "layers/mlp/w_up", x.shape))
    for left, right in [
        (x, other), (x, later), (x[0], x[1]), (x[:, 1:], x[:, :-1]), (x[..., 1:], x[..., :-1]),
    ]:
        assert abs((left * right).mean()) < 5 / left.size**0.5


def test_ends_of_the_range_are_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    for bits in (0, 2**32 - 1):
        full = jnp.full((1, 1), bits, jnp.uint32)
        monkeypatch.setattr(initial, "threefry", lambda key, counter, full=full: (full, full))
        assert 5 < abs(float(initial.normal(jax.random.key(0), "w", (1, 1))[0, 0])) < 6


def test_more_rows_than_the_counter_is_an_error() -> None:
    with pytest.raises(ValueError, match="32-bit"):
        jax.eval_shape(lambda key: initial.normal(key, "w", (2**20, 2**13, 2)), jax.random.key(0))
