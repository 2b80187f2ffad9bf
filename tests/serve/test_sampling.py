"""Sampling against numpy: which tokens are kept, and how often each is drawn."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maijax.serve import sampling

V = 13


def reference(logits: np.ndarray, temperature: float, top_k: int, top_p: float) -> np.ndarray:
    """Probabilities by token id after both cuts, float64."""
    order = np.argsort(-logits, kind="stable")[:top_k]
    weights = np.exp((logits[order] - logits.max()).astype(np.float64) / temperature)
    weights /= weights.sum()
    kept = 1 + int(np.sum(np.cumsum(weights)[:-1] < top_p))
    probabilities = np.zeros(len(logits))
    probabilities[order[:kept]] = weights[:kept] / weights[:kept].sum()
    return probabilities


_KEPT = jax.jit(sampling.kept_probabilities)
_DRAW = jax.jit(sampling.draw)


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 2**31), st.floats(0.1, 5.0), st.integers(1, V + 3), st.floats(0.01, 1.0), st.booleans()
)
def test_kept_probabilities_equal_numpy(seed: int, temperature: float, k: int, p: float, ties: bool) -> None:
    logits = 3 * np.random.default_rng(seed).standard_normal((2, V)).astype(np.float32)
    logits = np.round(logits) if ties else logits
    order, found = _KEPT(jnp.asarray(logits), temperature, k, p)
    for row in range(2):
        wanted = reference(logits[row], temperature, k, p)
        got = np.zeros(V)
        got[np.asarray(order[row])] = found[row]
        if np.abs(np.cumsum(np.sort(wanted)[::-1]) - p).min() > 1e-5:
            np.testing.assert_allclose(got, wanted, atol=2e-6)
        else:  # the cut falls where float32 and float64 may disagree: one token more or less
            assert abs(int((got > 0).sum()) - int((wanted > 0).sum())) <= 1


@pytest.mark.parametrize(("temperature", "k", "p"), [(1.0, V, 1.0), (0.7, 5, 1.0), (1.3, V, 0.8), (1.0, 8, 0.9)])
def test_draws_follow_the_probabilities(temperature: float, k: int, p: float) -> None:
    logits = np.random.default_rng(3).standard_normal(V).astype(np.float32)
    draws = 20_000
    keys = jax.vmap(jax.random.key)(jnp.arange(draws, dtype=jnp.uint32))
    tokens = np.asarray(_DRAW(jnp.broadcast_to(logits[None], (draws, V)), keys, temperature, k, p))
    wanted = draws * reference(logits, temperature, k, p)
    seen = np.bincount(tokens, minlength=V)
    assert not seen[wanted == 0].any()
    free = wanted > 0
    chi2 = float((((seen - wanted) ** 2)[free] / wanted[free]).sum())
    degrees = int(free.sum()) - 1
    assert chi2 < degrees + 5 * (2 * degrees) ** 0.5


def test_temperature_zero_takes_the_likeliest_whatever_the_key() -> None:
    logits = jnp.asarray(np.random.default_rng(0).standard_normal((4, V)), jnp.float32)
    keys = jax.vmap(jax.random.key)(jnp.arange(4, dtype=jnp.uint32))
    np.testing.assert_array_equal(_DRAW(logits, keys, 0.0, 3, 0.5), logits.argmax(-1))


def test_impossible_tokens_are_never_drawn() -> None:
    """Minus infinity is a mask; a uniform number close to 1 must not fall beyond the last possible token."""
    logits = jnp.where(jnp.arange(V) < 2, 0.0, -jnp.inf)[None]
    keys = jax.vmap(jax.random.key)(jnp.arange(2000, dtype=jnp.uint32))
    tokens = _DRAW(jnp.broadcast_to(logits, (2000, V)), keys, 1.0, V, 1.0)
    assert set(np.asarray(tokens).tolist()) == {0, 1}
