"""The normalisations against numpy in float64, with gradients by finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maijax.models.norm import layer_norm, rms_norm


def rms64(x, scale, bias, eps):
    return x / np.sqrt(np.mean(x * x, -1, keepdims=True) + eps) * scale


def layer64(x, scale, bias, eps):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt(np.mean(centred**2, -1, keepdims=True) + eps) * scale + bias


NORMS = {
    "rms": (lambda x, scale, bias, eps: rms_norm(x, scale, eps), rms64),
    "layer": (layer_norm, layer64),
}


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("shape", [(7,), (3, 7), (2, 3, 4, 7)])
@pytest.mark.parametrize("eps", [1e-6, 1e-1])
def test_values_and_gradients(name, shape, eps):
    ours, reference = NORMS[name]
    rng = np.random.default_rng(0)
    args = [rng.standard_normal(s) * 2 + 0.3 for s in (shape, (7,), (7,))]
    as32 = [jnp.asarray(x, jnp.float32) for x in args]
    out, pull = jax.vjp(lambda *a: ours(*a, eps), *as32)
    np.testing.assert_allclose(out, reference(*args, eps), atol=5e-6)
    g = rng.standard_normal(shape)
    for n, grad in enumerate(pull(jnp.asarray(g, jnp.float32))):
        direction = rng.standard_normal(args[n].shape)
        moved = [[a + sign * 1e-6 * direction if i == n else a for i, a in enumerate(args)] for sign in (1, -1)]
        slope = np.sum(g * (reference(*moved[0], eps) - reference(*moved[1], eps))) / 2e-6
        np.testing.assert_allclose(np.sum(np.asarray(grad) * direction), slope, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NORMS)
def test_bfloat16_input_has_float32_statistics(name):
    ours, reference = NORMS[name]
    x = np.linspace(100, 101, 4096)  # the mean of squares is lost in bfloat16, the variance altogether
    x16 = jnp.asarray(x, jnp.bfloat16)
    out = ours(x16, jnp.ones(4096), jnp.zeros(4096), 1e-6)
    assert out.dtype == jnp.bfloat16
    want = reference(np.asarray(x16, np.float64), 1.0, 0.0, 1e-6)
    np.testing.assert_allclose(np.asarray(out, np.float64), want, rtol=2**-8)


@pytest.mark.parametrize("name", NORMS)
def test_a_row_of_zeros_stays_finite(name):
    ours, _ = NORMS[name]
    grad = jax.grad(lambda x: jnp.sum(ours(x, jnp.ones(4), jnp.zeros(4), 1e-6)))(jnp.zeros((2, 4)))
    assert np.isfinite(np.asarray(grad)).all()
