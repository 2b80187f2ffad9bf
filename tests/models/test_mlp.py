"""The gated block against numpy in float64, and its hand-written gradient against jax's own."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maijax.models.mlp import activate, gate_product, gated_mlp

ACTIVATIONS = {
    "silu": lambda x: x / (1 + np.exp(-x)),
    "gelu": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_equals_numpy(name):
    rng = np.random.default_rng(0)
    x, gate, up, down = (rng.standard_normal(s) for s in ((2, 3, 5), (5, 7), (5, 7), (7, 5)))
    got = gated_mlp(*(jnp.asarray(a, jnp.float32) for a in (x, gate, up, down)), name)
    np.testing.assert_allclose(got, (ACTIVATIONS[name](x @ gate) * (x @ up)) @ down, atol=2e-5)


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_gradient_of_the_product_equals_automatic_differentiation(name, dtype):
    rng = np.random.default_rng(1)
    gate, up, g = (jnp.asarray(rng.standard_normal((4, 6)) * 3, dtype) for _ in range(3))
    _, by_hand = jax.vjp(lambda a, b: gate_product(a, b, name), gate, up)
    _, by_jax = jax.vjp(lambda a, b: activate(a, name) * b, gate, up)
    tolerance = 1e-5 if dtype == jnp.float32 else 0.05  # bfloat16: three roundings of 2^-8 on values up to 15
    for a, b in zip(by_hand(g), by_jax(g), strict=True):
        assert a.dtype == dtype
        np.testing.assert_allclose(np.asarray(a, np.float32), np.asarray(b, np.float32), atol=tolerance, rtol=tolerance)


def test_far_values_stay_finite():
    far = jnp.asarray([-200.0, -90.0, 0.0, 90.0, 200.0])
    for name in ACTIVATIONS:
        grads = jax.grad(lambda a, b, name=name: jnp.sum(gate_product(a, b, name)), (0, 1))(far, far)
        assert all(np.isfinite(np.asarray(x)).all() for x in grads)


def test_an_unknown_activation_is_named():
    with pytest.raises(ValueError, match="'relu'"):
        activate(jnp.ones(2), "relu")
