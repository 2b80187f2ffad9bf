"""The matrix product and its gradients against einsum in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maijax.models.linear import linear

SHAPES = {
    "one in, one out": ((3, 5, 4), (4, 7), 1, "abI,IO->abO"),
    "wide in": ((3, 5, 9), (9, 2), 1, "abI,IO->abO"),
    "heads out": ((3, 5, 4), (4, 2, 6), 1, "abI,IHK->abHK"),
    "heads in": ((3, 5, 2, 6), (2, 6, 4), 2, "abHK,HKO->abO"),
    "a vector": ((4,), (4, 7), 1, "I,IO->O"),
}


@pytest.mark.parametrize("case", SHAPES)
def test_equals_einsum_with_both_gradients(case):
    x_shape, w_shape, contract, spec = SHAPES[case]
    rng = np.random.default_rng(0)
    x, w = (jnp.asarray(rng.standard_normal(s), jnp.float32) for s in (x_shape, w_shape))
    out, pull = jax.vjp(lambda x, w: linear(x, w, contract=contract), x, w)
    x64, w64 = np.asarray(x, np.float64), np.asarray(w, np.float64)
    np.testing.assert_allclose(out, np.einsum(spec, x64, w64), atol=1e-5)
    g = rng.standard_normal(out.shape)
    inputs, result = spec.split("->")
    left, right = inputs.split(",")
    dx, dw = pull(jnp.asarray(g, jnp.float32))
    np.testing.assert_allclose(dx, np.einsum(f"{result},{right}->{left}", g, w64), atol=1e-5)
    np.testing.assert_allclose(dw, np.einsum(f"{left},{result}->{right}", x64, g), atol=2e-5)


def test_weights_are_cast_to_the_activations_and_their_gradient_back():
    x, w = jnp.ones((2, 3), jnp.bfloat16), jnp.ones((3, 4), jnp.float32)
    assert linear(x, w).dtype == jnp.bfloat16
    assert jax.grad(lambda w: jnp.sum(linear(x, w).astype(jnp.float32)))(w).dtype == jnp.float32


def test_under_vmap_over_models_and_scan_over_layers():
    rng = np.random.default_rng(1)
    x, w = jnp.asarray(rng.standard_normal((2, 5, 8)), jnp.float32), jnp.asarray(rng.standard_normal((2, 8, 3)))
    w = w.astype(jnp.float32)
    each = jax.jit(jax.grad(lambda w: jnp.sum(jax.vmap(linear)(x, w) ** 2)))(w)
    one_by_one = [jax.grad(lambda w, i=i: jnp.sum(linear(x[i], w) ** 2))(w[i]) for i in range(2)]
    np.testing.assert_allclose(each, np.stack(one_by_one), rtol=1e-5)
    square = jnp.asarray(rng.standard_normal((4, 8, 8)), jnp.float32) / 3
    looped = lambda w: jnp.sum(jax.lax.scan(lambda x, w: (jax.checkpoint(linear)(x, w), None), x, w)[0])  # noqa: E731
    unrolled = lambda w: jnp.sum(linear(linear(linear(linear(x, w[0]), w[1]), w[2]), w[3]))  # noqa: E731
    np.testing.assert_allclose(jax.grad(looped)(square), jax.grad(unrolled)(square), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("contract", [0, 1, 2])
def test_dims_that_do_not_meet_are_refused(contract):
    with pytest.raises(ValueError, match="cannot be contracted"):
        linear(jnp.ones((2, 3)), jnp.ones((4, 5)), contract=contract)
