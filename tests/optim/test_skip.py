"""A bad step leaves every bit where it was, is counted, and is never applied in the end."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from maijax.config import OptimConfig
from maijax.optim import build, read, wrap
from maijax.optim import skip as guard


@pytest.fixture(params=["adamw", "muon", "adafactor", "lion"])
def name(request):
    return request.param


def run(tx):
    @jax.jit
    def step(params, state, grads, loss):
        updates, state = tx.update(grads, state, params, loss=loss)
        return optax.apply_updates(params, updates), state

    return step


def bits(tree):
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(tree)]


@pytest.mark.parametrize("bad", ["nan gradient", "inf gradient", "nan loss", "inf loss"])
def test_bad_step_changes_no_bit(name, bad, model, make_tree):
    optim = OptimConfig(name=name)
    step = run(tx := wrap(build(optim, model, 100), optim))
    params = make_tree(model, 0)
    params["embed"]["w_embed"][0, 0] = -0.0
    state = tx.init(params)
    params, state = step(params, state, make_tree(model, 1), 1.0)
    params["embed"]["w_embed"] = params["embed"]["w_embed"].at[0, :2].set(jnp.array([-0.0, 1e-40]))
    value = {"nan": np.nan, "inf": np.inf}[bad[:3]]
    grads, loss = make_tree(model, 2), 1.0
    if bad.endswith("loss"):
        loss = value
    else:
        grads["layers"]["attention"]["w_o"][1, 0, 0, 0] = value
    after, skipped = step(params, state, grads, loss)
    assert bits(after) == bits(params)
    assert bits(skipped.inner) == bits(state.inner)
    assert bits((skipped.mean, skipped.square)) == bits((state.mean, state.square))
    assert [int(read(skipped)[k]) for k in ("skipped", "skipped_in_row", "updates")] == [1, 1, 1]
    again, good = step(after, skipped, make_tree(model, 3), 1.0)
    direct, _ = step(params, state, make_tree(model, 3), 1.0)
    assert bits(again) == bits(direct)
    assert [int(read(good)[k]) for k in ("skipped", "skipped_in_row", "updates")] == [1, 0, 2]


def test_never_gives_up(model, make_tree):
    optim = OptimConfig()
    step = run(tx := wrap(build(optim, model, 100), optim))
    params = make_tree(model, 0)
    state = tx.init(params)
    first = bits(params)
    poison = jax.tree.map(lambda g: g * np.nan, make_tree(model, 1))
    for _ in range(40):
        params, state = step(params, state, poison, np.nan)
    assert bits(params) == first
    assert int(state.skipped_in_row) == 40


def test_guard_changes_nothing_of_a_good_step(name, model, make_tree):
    optim = OptimConfig(name=name)
    plain = build(optim, model, 100)
    step = run(tx := wrap(plain, optim))
    params, grads = make_tree(model, 0), make_tree(model, 1)
    guarded, state = step(params, tx.init(params), grads, 1.0)
    updates, inner = jax.jit(plain.update)(grads, plain.init(params), params)
    for a, b in zip(jax.tree.leaves(guarded), jax.tree.leaves(optax.apply_updates(params, updates)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(state.grad_norm, optax.tree.norm(grads), rtol=1e-6)
    assert jax.tree.structure(inner) == jax.tree.structure(state.inner)


def drive(norms, sigmas):
    """Gradients of the given norms on one number; which steps were skipped."""
    tx = wrap(optax.sgd(1e-3), OptimConfig(spike_sigmas=sigmas))
    update = jax.jit(lambda g, s, p: tx.update(g, s, p, loss=1.0))
    params = {"w": jnp.zeros(())}
    state, found = tx.init(params), []
    for norm in norms:
        _, state = update({"w": jnp.float32(norm)}, state, params)
        found.append(int(state.skipped_in_row) > 0)
    return found, state


def test_spike_is_told_by_the_running_statistics():
    rng = np.random.default_rng(0)
    norms = 2.0 + 0.2 * rng.normal(size=120)
    norms[[10, 90, 100]] = [50.0, 2.0 + 0.2 * 12, 2.0 + 0.2 * 4]
    norms[10] = 2.0
    skipped, state = drive(norms, 6.0)
    assert [i for i, s in enumerate(skipped) if s] == [90]
    mean = float(state.mean / (1 - guard.MEMORY ** float(state.good)))
    assert mean == pytest.approx(2.0, abs=0.1)


def test_no_spike_while_warming_up_or_when_off_or_when_norms_stand_still():
    early = [1.0] * 20 + [100.0] + [1.0] * 20
    assert not any(drive(early, 6.0)[0])
    assert not any(drive([1.0] * 60 + [1e6], None)[0])
    assert not any(drive([1.0] * 60 + [1.2], 6.0)[0])  # standard deviation 0, floor 5% of the mean
    assert drive([1.0] * 60 + [1.4], 6.0)[0][-1]


def test_statistics_match_float64():
    norms = np.random.default_rng(1).uniform(1, 3, size=70)
    _, state = drive(norms, 6.0)
    share = (1 - guard.MEMORY) * guard.MEMORY ** np.arange(70)[::-1]
    assert float(state.mean) == pytest.approx(share @ norms, rel=1e-5)
    assert float(state.square) == pytest.approx(share @ norms**2, rel=1e-5)
