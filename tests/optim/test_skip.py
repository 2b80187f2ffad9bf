"""A bad step leaves every bit where it was, is counted, and is never applied in the end."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from maijax.config import OptimConfig
from maijax.optim import build, read, wrap
from maijax.optim import skip as guard


def bits(tree):
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(tree)]


def counts(state):
    return [int(read(state)[key]) for key in ("skipped", "skipped_in_row")] + [int(state.good)]


def test_bad_steps_change_no_bit_and_never_win(model, make_tree):
    optim = OptimConfig(name="muon")  # which holds AdamW as well
    plain = build(optim, model, 100)
    tx = wrap(plain, optim)

    @jax.jit
    def step(params, state, grads, loss):
        updates, state = tx.update(grads, state, params, loss=loss)
        return optax.apply_updates(params, updates), state

    params, grads = make_tree(0), make_tree(1)
    params["embed"]["w_embed"][0, 0] = -0.0
    grads["embed"]["w_embed"][0, 0] = -0.0
    first, state = step(params, jax.jit(tx.init)(params), grads, 1.0)

    # A good step is the optimizer's own.
    updates, _ = jax.jit(lambda g, p: plain.update(g, plain.init(p), p))(grads, params)
    for a, p, u in zip(*map(jax.tree.leaves, (first, params, updates)), strict=True):
        np.testing.assert_allclose(a, p + np.asarray(u), rtol=1e-5, atol=1e-6)
    norm = np.sqrt(sum(np.sum(g.astype(np.float64) ** 2) for g in jax.tree.leaves(grads)))
    np.testing.assert_allclose(state.grad_norm, norm, rtol=1e-6)
    assert counts(state) == [0, 0, 1]

    after, skipped = jax.tree.map(np.array, first), state
    after["embed"]["w_embed"][0, 0] = -0.0
    kept = bits(after)
    for i in range(1, 41):
        bad, loss = make_tree(2), 1.0
        if i % 3 == 0:
            loss = (np.nan, np.inf)[i % 2]
        else:
            bad["layers"]["attention"]["w_o"][1, 0, 0, 0] = (np.nan, -np.inf)[i % 2]
        after, skipped = step(after, skipped, bad, loss)
        assert counts(skipped) == [i, i, 1]
    assert bits(after) == kept
    assert bits(skipped.inner) == bits(state.inner)
    assert bits((skipped.mean, skipped.square)) == bits((state.mean, state.square))

    # What follows is as if nothing had been.
    again, good = step(first, skipped, make_tree(3), 1.0)
    direct, _ = step(first, state, make_tree(3), 1.0)
    assert bits(again) == bits(direct)
    assert counts(good) == [40, 0, 2]


def drive(norms, sigmas):
    """Gradients of the given norms on one number; which steps were skipped."""
    tx = wrap(optax.sgd(1e-3), OptimConfig(spike_sigmas=sigmas))
    params = {"w": jnp.zeros(())}

    @jax.jit
    def all_steps(norms):
        def one(state, norm):
            _, state = tx.update({"w": norm}, state, params, loss=1.0)
            return state, state.skipped_in_row > 0

        return jax.lax.scan(one, tx.init(params), norms)

    state, found = all_steps(jnp.asarray(norms, jnp.float32))
    return np.asarray(found), state


def test_spike_is_told_by_the_running_statistics():
    norms = 2.0 + 0.2 * np.random.default_rng(0).normal(size=120)
    norms[90], norms[100] = 2.0 + 0.2 * 12, 2.0 + 0.2 * 4
    skipped, state = drive(norms, 6.0)
    assert np.flatnonzero(skipped).tolist() == [90]
    # Against float64, the skipped one left out.
    share = (1 - guard.MEMORY) * guard.MEMORY ** np.arange(119)[::-1]
    assert float(state.mean) == pytest.approx(share @ np.delete(norms, 90), rel=1e-5)
    assert float(state.square) == pytest.approx(share @ np.delete(norms, 90) ** 2, rel=1e-5)


def test_no_spike_while_warming_up_or_when_off_or_when_norms_stand_still():
    assert not drive([1.0] * 20 + [100.0] + [1.0] * 20, 6.0)[0].any()
    assert not drive([1.0] * 60 + [1e6], None)[0].any()
    assert not drive([1.0] * 60 + [1.2], 6.0)[0].any()  # deviation 0; the floor is 5% of the mean
    assert drive([1.0] * 60 + [1.4], 6.0)[0][-1]
