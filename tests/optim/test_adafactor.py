"""The factored second moment against Optax's, and against the algorithm in float64."""

import jax.numpy as jnp
import numpy as np
import optax

from maijax.optim.adafactor import scale_by_adafactor
from maijax.weights import Weight


def test_one_matrix_equals_optax():
    weight = Weight(path="w", reads="D", writes="F", sizes=(130, 140))
    tx = scale_by_adafactor({"w": weight})
    reference = optax.chain(
        optax.scale_by_factored_rms(decay_rate=0.8, epsilon=1e-30), optax.clip_by_block_rms(1.0)
    )
    params = {"w": jnp.zeros((130, 140))}
    state, their_state = tx.init(params), reference.init(params)
    rng = np.random.default_rng(0)
    for _ in range(3):
        g = rng.normal(size=(130, 140)) * np.geomspace(1, 9, 130)[:, None]
        grads = {"w": jnp.asarray(g, jnp.float32)}
        ours, state = tx.update(grads, state, params)
        theirs, their_state = reference.update(grads, their_state, params)
        np.testing.assert_allclose(ours["w"], theirs["w"], rtol=1e-4, atol=1e-6)


def test_layers_of_a_stack_and_heads_are_matrices_of_their_own():
    weight = Weight(path="w", stack="L", reads="D", writes="HK", sizes=(3, 5, 2, 4))
    grads = np.random.default_rng(1).normal(size=(3, 5, 2, 4)) * np.array([1e-3, 1, 1e3])[:, None, None, None]
    tx = scale_by_adafactor({"w": weight})
    ours, state = tx.update({"w": jnp.asarray(grads, jnp.float32)}, tx.init({}))
    assert state.rows["w"].shape == (3, 5) and state.columns["w"].shape == (3, 8)
    for layer in range(3):
        g = grads[layer].reshape(5, 8)
        rows, columns = (g * g).mean(1), (g * g).mean(0)
        u = g / np.sqrt(np.outer(rows / rows.mean(), columns))
        u /= max(1.0, np.sqrt((u * u).mean()))
        np.testing.assert_allclose(np.asarray(ours["w"])[layer].reshape(5, 8), u, rtol=1e-4)


def test_a_vector_keeps_its_second_moment_whole():
    weight = Weight(path="scale", stack="L", writes="D", sizes=(2, 6), group="norm")
    tx = scale_by_adafactor({"scale": weight})
    grads = jnp.asarray(np.random.default_rng(2).normal(size=(2, 6)), jnp.float32)
    found, _ = tx.update({"scale": grads}, tx.init({}))
    np.testing.assert_allclose(found["scale"], np.sign(grads), rtol=1e-5)  # the first step is g / |g|
