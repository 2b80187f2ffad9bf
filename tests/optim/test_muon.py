"""Orthogonalisation against NumPy's singular values, and the whole rule against Optax's own."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util

from maijax import weights
from maijax.config import OptimConfig
from maijax.optim import build, matrices
from maijax.optim.muon import orthogonalize, scale_by_muon
from maijax.weights import Weight

orthogonal = jax.jit(orthogonalize, static_argnums=1)


def conditioned(rng, count, rows, columns, least=0.1):
    """Matrices with singular values from 1 down to `least`, in random directions."""
    u, _, vt = np.linalg.svd(rng.normal(size=(count, rows, columns)), full_matrices=False)
    return ((u * np.geomspace(1.0, least, u.shape[-1])) @ vt).astype(np.float32)


@pytest.mark.parametrize("shape", [(3, 24, 24), (2, 16, 40), (1, 64, 8)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_singular_values_near_one_and_vectors_kept(shape, dtype):
    x = conditioned(np.random.default_rng(0), *shape)
    found = np.asarray(orthogonal(x, jnp.dtype(dtype)))
    assert found.dtype == np.float32
    for one, given in zip(found, x, strict=True):
        values = np.linalg.svd(one, compute_uv=False)
        slack = 0.0 if dtype == "float32" else 0.05
        assert values.min() > 0.84 - slack and values.max() < 1.16 + slack
        # In the singular basis of the input the output is diagonal.
        u, _, vt = np.linalg.svd(given, full_matrices=False)
        inside = u.T @ one @ vt.T
        off = np.abs(inside - np.diag(np.diag(inside))).max()
        assert off < (1e-4 if dtype == "float32" else 0.1)


def test_small_singular_values_are_lifted():
    x = conditioned(np.random.default_rng(1), 1, 32, 32, least=5e-3)
    values = np.linalg.svd(orthogonal(x, jnp.float32)[0], compute_uv=False)
    assert values.min() > 0.84 and values.max() < 1.16


def test_zero_stays_zero_and_scale_does_not_matter():
    x = conditioned(np.random.default_rng(2), 2, 8, 12)
    assert not np.any(orthogonal(0 * x, jnp.float32))
    for scale in (1e-6, 1e6):
        np.testing.assert_allclose(
            orthogonal(np.float32(scale) * x, jnp.float32), orthogonal(x, jnp.float32), atol=1e-3
        )


def hidden(model):
    """Written out by hand: what the declaration's letters should make of each name."""
    names = {"w_q", "w_k", "w_v", "w_o", "w_gate", "w_up", "w_down"}
    return [w for w in weights.declare(model) if w.path.split("/")[-1] in names]


def test_each_declared_matrix_moves_by_an_orthogonal_one(model, make_tree):
    """Stacks of layers and of experts; heads of several letters: [L, D, H, K] is L matrices of D x HK."""
    lr, rng = 0.5, np.random.default_rng(3)
    optim = OptimConfig(name="muon", lr=lr, weight_decay=0.0, schedule="constant", warmup=0)
    tx, params = build(optim, model, 10), make_tree(0)
    grads = traverse_util.flatten_dict(make_tree(1), sep="/")
    rows = {"w_q": 8, "w_k": 8, "w_v": 8, "w_o": 12}
    for w in hidden(model):
        count, reads, writes = matrices.shape(w)
        assert reads == rows.get(w.path.split("/")[-1], reads), w.path
        grads[w.path] = conditioned(rng, count, reads, writes).reshape(w.sizes)
    grads = traverse_util.unflatten_dict(grads, sep="/")
    updates, _ = jax.jit(lambda g, p: tx.update(g, tx.init(p), p))(grads, params)
    updates, seen = traverse_util.flatten_dict(updates, sep="/"), 0
    for w in hidden(model):
        _, reads, writes = matrices.shape(w)
        for one in np.asarray(updates[w.path]).reshape(-1, reads, writes):
            values = np.linalg.svd(one, compute_uv=False) / (lr * 0.2 * max(reads, writes) ** 0.5)
            assert values.min() > 0.84 and values.max() < 1.16, w.path
            seen += 1
    assert seen == 2 * (4 + 3 * 3 + 3)  # two layers, each with 3 experts and a shared one


def test_rule_equals_optax_but_for_the_polynomial(model, make_tree):
    """Same partition, momentum, scale and decay as optax.contrib.muon given dimension numbers by hand.

    Its AdamW takes Nesterov momentum as well, ours does not; those weights are compared elsewhere.
    """
    optim = OptimConfig(name="muon", lr=0.02, weight_decay=0.1, clip_norm=None, schedule="constant", warmup=0)
    axes = {"w_q": ((1,), (2, 3)), "w_k": ((1,), (2, 3)), "w_v": ((1,), (2, 3)), "w_o": ((1, 2), (3,))}
    numbers = {w.path: None for w in weights.declare(model)}
    for w in hidden(model):
        plain = ((2,), (3,)) if len(w.sizes) == 4 else ((1,), (2,))
        numbers[w.path] = optax.contrib.MuonDimensionNumbers(*axes.get(w.path.split("/")[-1], plain))
    reference = optax.contrib.muon(
        0.02, beta=0.95, weight_decay=0.1, consistent_rms=0.2,
        muon_weight_dimension_numbers=traverse_util.unflatten_dict(numbers, sep="/"),
    )
    params, grads, found = make_tree(0), make_tree(1), []
    for tx in (build(optim, model, 10), reference):
        updates, _ = jax.jit(lambda g, p, tx=tx: tx.update(g, tx.init(p), p))(grads, params)
        found.append(traverse_util.flatten_dict(updates, sep="/"))
    for w in hidden(model):
        # Singular values of Optax's polynomial lie in 0.68..1.14, so directions agree, lengths roughly.
        a, b = (np.ravel(f[w.path]) for f in found)
        assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) > 0.96, w.path
        assert 0.9 < np.linalg.norm(a) / np.linalg.norm(b) < 1.3, w.path


def test_momentum_is_nesterov():
    """Two steps on one matrix by hand: with gradients g1, g2 the direction is that of 0.95 m2 + 0.05 g2."""
    weight = Weight(path="w", reads="D", writes="F", sizes=(6, 9))
    tx = scale_by_muon({"w": weight}, beta=0.95, dtype=jnp.float32)
    rng = np.random.default_rng(4)
    g1, g2 = (rng.normal(size=(6, 9)).astype(np.float32) for _ in range(2))
    update = jax.jit(tx.update)
    _, state = update({"w": g1}, tx.init({"w": g1}))
    found, state = update({"w": g2}, state)
    m2 = 0.95 * 0.05 * g1 + 0.05 * g2
    np.testing.assert_allclose(state.momentum["w"], m2, rtol=1e-5, atol=1e-7)

    def likeness(direction):
        u, _, vt = np.linalg.svd(direction, full_matrices=False)
        a, b = (u @ vt).ravel(), np.asarray(found["w"]).ravel()
        return a @ b / np.linalg.norm(a) / np.linalg.norm(b)

    assert likeness(0.95 * m2 + 0.05 * g2) > 0.985 > likeness(m2)
