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
from maijax.optim.muon import orthogonalize


@pytest.mark.parametrize("shape", [(5, 24, 24), (4, 16, 40), (4, 40, 16), (1, 64, 8)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_singular_values_near_one_and_vectors_kept(shape, dtype):
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    found = np.asarray(orthogonalize(jnp.asarray(x), jnp.dtype(dtype)))
    assert found.dtype == np.float32
    for one, given in zip(found, x, strict=True):
        values = np.linalg.svd(one, compute_uv=False)
        assert values.min() > 0.8 and values.max() < 1.2
        u, s, vt = np.linalg.svd(given, full_matrices=False)
        # In the singular basis of the input the output is diagonal.
        inside = u.T @ one @ vt.T
        off = inside - np.diag(np.diag(inside))
        large = s > 0.1 * s.max()
        assert np.abs(off[np.ix_(large, large)]).max() < (1e-4 if dtype == "float32" else 0.06)


def test_small_singular_values_are_lifted():
    rng = np.random.default_rng(1)
    u, _ = np.linalg.qr(rng.normal(size=(32, 32)))
    v, _ = np.linalg.qr(rng.normal(size=(32, 32)))
    x = (u * np.geomspace(1.0, 5e-3, 32)) @ v
    values = np.linalg.svd(orthogonalize(jnp.asarray(x[None], jnp.float32))[0], compute_uv=False)
    assert values.min() > 0.8 and values.max() < 1.2


def test_zero_stays_zero_and_scale_does_not_matter():
    assert not np.any(orthogonalize(jnp.zeros((2, 8, 8))))
    x = jnp.asarray(np.random.default_rng(2).normal(size=(2, 8, 12)), jnp.float32)
    for scale in (1e-6, 1e6):
        np.testing.assert_allclose(orthogonalize(scale * x), orthogonalize(x), atol=1e-3)


def test_each_declared_matrix_moves_by_an_orthogonal_one(model, make_tree):
    """Stacks of layers and experts, and heads of several letters: [L, D, H, K] is L matrices of D x HK."""
    lr = 0.5
    optim = OptimConfig(name="muon", lr=lr, weight_decay=0.0, schedule="constant", warmup=0)
    tx = build(optim, model, 10)
    params = make_tree(model, 0)
    updates, _ = tx.update(make_tree(model, 1), tx.init(params), params)
    updates = traverse_util.flatten_dict(updates, sep="/")
    seen = 0
    for w in weights.declare(model):
        if w.group != "hidden" or not w.reads:
            continue
        stack, rows, columns = matrices.shape(w)
        size = dict(zip(w.letters, w.sizes, strict=True))
        assert rows == np.prod([size[x] for x in w.reads]) and columns == np.prod([size[x] for x in w.writes])
        for one in np.asarray(updates[w.path]).reshape(stack, rows, columns):
            values = np.linalg.svd(one, compute_uv=False) / (lr * 0.2 * max(rows, columns) ** 0.5)
            assert values.min() > 0.7 and values.max() < 1.25, w.path
            seen += 1
    assert seen == (3 * 7 if model.moe is None else 7 + 2 * (4 + 3 * 4 + 3))


def test_rule_equals_optax_but_for_the_polynomial(model, make_tree):
    """Same momentum, partition, scale and decay as optax.contrib.muon given dimension numbers by hand."""
    optim = OptimConfig(
        name="muon", lr=0.02, adam_lr=0.01, weight_decay=0.1, clip_norm=None, schedule="constant", warmup=0
    )
    declared = {w.path: w for w in weights.declare(model)}
    axes = {"w_q": ((1,), (2, 3)), "w_k": ((1,), (2, 3)), "w_v": ((1,), (2, 3)), "w_o": ((1, 2), (3,))}

    def dimension_numbers(path, w):
        if not path.split("/")[-1].startswith("w_") or path.split("/")[-1] in ("w_embed", "w_head", "w_router"):
            return None
        plain = ((2,), (3,)) if w.stack == "LE" else ((1,), (2,))
        return optax.contrib.MuonDimensionNumbers(*axes.get(path.split("/")[-1], plain))

    tree = traverse_util.unflatten_dict({p: dimension_numbers(p, w) for p, w in declared.items()}, sep="/")
    reference = optax.contrib.muon(
        0.02, beta=0.95, weight_decay=0.1, adam_b1=0.9, adam_b2=0.95, adam_learning_rate=0.01,
        muon_weight_dimension_numbers=tree, consistent_rms=0.2,
    )
    tx, params, grads = build(optim, model, 10), make_tree(model, 0), make_tree(model, 1)
    ours, _ = tx.update(grads, tx.init(params), params)
    theirs, _ = reference.update(grads, reference.init(params), params)
    ours, theirs = (traverse_util.flatten_dict(t, sep="/") for t in (ours, theirs))
    for path, w in declared.items():
        if not w.trained:
            continue
        if dimension_numbers(path, w) is None:
            decayed = theirs[path] - (0.01 * 0.1 * flat_params(params)[path] if w.decay else 0)
            np.testing.assert_allclose(ours[path], decayed, rtol=1e-4, atol=1e-7, err_msg=path)
        else:
            # Singular values of Optax's polynomial lie in 0.68..1.14, so directions agree, lengths roughly.
            a, b = np.ravel(ours[path]), np.ravel(theirs[path])
            assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) > 0.97, path
            assert np.linalg.norm(a) / np.linalg.norm(b) == pytest.approx(1.1, abs=0.2), path


def flat_params(params):
    return traverse_util.flatten_dict(params, sep="/")


def test_momentum_is_nesterov():
    """Two steps on one matrix by hand: with gradients g1, g2 the direction is that of 0.95 m2 + 0.05 g2."""
    from maijax.optim.muon import scale_by_muon
    from maijax.weights import Weight

    weight = Weight(path="w", reads="D", writes="F", sizes=(6, 9))
    tx = scale_by_muon({"w": weight}, beta=0.95, dtype=jnp.float32)
    rng = np.random.default_rng(3)
    g1, g2 = (rng.normal(size=(6, 9)).astype(np.float32) for _ in range(2))
    state = tx.init({"w": jnp.zeros((6, 9))})
    _, state = tx.update({"w": g1}, state)
    found, state = jax.jit(tx.update)({"w": g2}, state)
    m2 = 0.95 * 0.05 * g1 + 0.05 * g2
    np.testing.assert_allclose(state.momentum["w"], m2, rtol=1e-5, atol=1e-7)
    u, _, vt = np.linalg.svd(0.95 * m2 + 0.05 * g2, full_matrices=False)
    ideal = (u @ vt).ravel() * 0.2 * 3
    got = np.asarray(found["w"]).ravel()
    assert got @ ideal / np.linalg.norm(got) / np.linalg.norm(ideal) > 0.99
