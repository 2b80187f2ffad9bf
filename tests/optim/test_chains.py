"""Every optimizer joins one list of common tests; each is also held against an independent reference."""

import dataclasses
import typing

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from maijax import weights
from maijax.config import AttentionConfig, ModelConfig, OptimConfig
from maijax.optim import build, schedule

NAMES = typing.get_args(typing.get_type_hints(OptimConfig)["name"])
STEADY = {"schedule": "constant", "warmup": 0}


def flat(tree):
    return traverse_util.flatten_dict(tree, sep="/")


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


def test_reduces_a_quadratic(name, model, make_tree):
    target = make_tree(model, 1, 0.1)
    params = jax.tree.map(jnp.zeros_like, target)
    tx = build(OptimConfig(name=name, lr=3e-3, weight_decay=0.0, **STEADY), model, 100)

    def loss(params):
        return sum(jnp.sum((p - t) ** 2) for p, t in zip(jax.tree.leaves(params), jax.tree.leaves(target), strict=True))

    @jax.jit
    def step(params, state):
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    # Weights that are not trained stay where they are; what they lack does not count.
    still = sum(float(np.sum(flat(target)[w.path] ** 2)) for w in weights.declare(model) if not w.trained)
    first, state = float(loss(params)), tx.init(params)
    for _ in range(200):
        params, state = step(params, state)
    assert float(loss(params)) - still < 0.2 * (first - still)


def test_compiles_once(name, model, make_tree):
    tx = build(OptimConfig(name=name), model, 10)
    params = make_tree(model, 0)
    traces = []

    @jax.jit
    def step(params, state, grads):
        traces.append(0)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for seed in range(3):
        params, state = step(params, state, make_tree(model, seed))
    assert len(traces) == 1
    assert int(state.count) == 3


def test_state_is_float32_and_lies_in_the_weights_tree(name, model, make_tree):
    params = make_tree(model, 0)
    state = build(OptimConfig(name=name), model, 10).init(jax.tree.map(lambda p: p.astype(jnp.bfloat16), params))
    leaves = jax.tree_util.tree_leaves_with_path(state)
    assert {leaf.dtype for _, leaf in leaves} <= {jnp.dtype("float32"), jnp.dtype("int32")}
    assert {str(path[-1]) for path, leaf in leaves if leaf.ndim} <= {f"['{p.split('/')[-1]}']" for p in flat(params)}
    assert not any("router_bias" in jax.tree_util.keystr(path) for path, _ in leaves)


def test_decays_only_what_is_declared_and_leaves_the_untrained(name, model, make_tree):
    params = make_tree(model, 0)
    zeros = jax.tree.map(jnp.zeros_like, params)
    optim = OptimConfig(name=name, lr=0.01, adam_lr=0.003, weight_decay=0.5, **STEADY)
    tx = build(optim, model, 10)
    updates, _ = jax.jit(tx.update)(zeros, tx.init(params), params)
    for w in weights.declare(model):
        lr = 0.003 if name == "muon" and (w.group != "hidden" or not w.reads) else 0.01
        expected = -lr * 0.5 * flat(params)[w.path] if w.decay else np.zeros(w.sizes)
        np.testing.assert_allclose(flat(updates)[w.path], expected, rtol=1e-6, atol=0, err_msg=w.path)
    untrained = [w.path for w in weights.declare(model) if not w.trained]
    updates, _ = tx.update(make_tree(model, 1), tx.init(params), params)
    for path in untrained:
        assert not np.any(flat(updates)[path])


def test_sharded_equals_one_device(name, make_tree):
    if len(jax.devices()) < 2:
        pytest.skip("needs 2 devices: XLA_FLAGS=--xla_force_host_platform_device_count=2")
    model = ModelConfig(
        num_layers=2, d_model=8, d_ff=16, vocab_size=24, context=8, vocab_multiple=8,
        attention=AttentionConfig(num_heads=2, kv_heads=2, head_dim=4),
    )
    mesh = jax.make_mesh((2,), ("fsdp",), axis_types=(AxisType.Auto,))
    tx = build(OptimConfig(name=name, lr=0.1, **STEADY), model, 10)
    params, grads = make_tree(model, 0), make_tree(model, 1)

    def place(w):
        spec = tuple("fsdp" if a == "embed" else None for a in w.logical_axes)
        return NamedSharding(mesh, P(*spec))

    where = traverse_util.unflatten_dict({w.path: place(w) for w in weights.declare(model)}, sep="/")
    expected, _ = jax.jit(tx.update)(grads, tx.init(params), params)
    on_mesh = jax.device_put(params, where)
    found, _ = jax.jit(tx.update)(jax.device_put(grads, where), jax.jit(tx.init)(on_mesh), on_mesh)
    for path, value in flat(found).items():
        np.testing.assert_allclose(value, flat(expected)[path], rtol=2e-4, atol=2e-5, err_msg=path)


def test_adamw_equals_optax(model, make_tree):
    """Masks written by hand: matrices decay, and the router's bias is not touched at all."""
    optim = OptimConfig(lr=0.02, weight_decay=0.3, clip_norm=2.0, warmup=2, eps=1e-6, b1=0.8, b2=0.9)
    params = make_tree(model, 0)

    def decays(tree):
        return jax.tree_util.tree_map_with_path(
            lambda path, _: path[-1].key.startswith("w_"), tree
        )

    def labels(tree):
        return jax.tree_util.tree_map_with_path(
            lambda path, _: "still" if path[-1].key == "router_bias" else "moves", tree
        )

    rate = schedule(optim, 6)
    adamw = optax.adamw(rate, b1=0.8, b2=0.9, eps=1e-6, weight_decay=0.3, mask=decays)
    reference = optax.partition(
        {"moves": optax.chain(optax.clip_by_global_norm(2.0), adamw), "still": optax.set_to_zero()}, labels
    )
    tx = build(optim, model, 6)
    ours, theirs = params, params
    state, their_state = tx.init(params), reference.init(params)
    for seed in range(1, 6):
        grads = make_tree(model, seed)
        updates, state = tx.update(grads, state, ours)
        ours = optax.apply_updates(ours, updates)
        updates, their_state = reference.update(grads, their_state, theirs)
        theirs = optax.apply_updates(theirs, updates)
    for path, value in flat(ours).items():
        # Ours clips by the norm of all gradients, the untrained weight's included: that one is 0 in practice.
        tolerance = 2e-5 if "router_bias" not in path else 0
        np.testing.assert_allclose(value, flat(theirs)[path], rtol=0.02 if model.moe else 1e-5, atol=tolerance)


def test_clipping_makes_large_gradients_equal(model, make_tree):
    params, grads = make_tree(model, 0), make_tree(model, 1)
    optim = OptimConfig(name="lion", clip_norm=1.0, **STEADY)
    tx = build(optim, model, 10)
    _, small = tx.update(grads, tx.init(params), params)
    _, large = tx.update(jax.tree.map(lambda g: 1e3 * g, grads), tx.init(params), params)
    for a, b in zip(jax.tree.leaves(small), jax.tree.leaves(large), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-9)
    _, free = build(dataclasses.replace(optim, clip_norm=None), model, 10).update(grads, tx.init(params), params)
    norm = float(optax.tree.norm(grads))
    for a, b in zip(jax.tree.leaves(small.rules), jax.tree.leaves(free.rules), strict=True):
        np.testing.assert_allclose(np.asarray(a) * norm, b, rtol=1e-4, atol=1e-7)


def test_a_tree_of_another_model_is_refused(model, make_tree):
    params = make_tree(model, 0)
    with pytest.raises(ValueError, match="embed/w_embed"):
        build(OptimConfig(), model, 10).init({k: v for k, v in params.items() if k != "embed"})
