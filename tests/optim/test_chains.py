"""Every optimizer joins one list of common tests; AdamW is also held against Optax's own."""

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


@pytest.mark.parametrize("name", NAMES)
def test_common(name, model, make_tree):
    """Reduces a quadratic; compiles once; decays what is declared to; leaves what is not trained."""
    optim = OptimConfig(name=name, lr=3e-3, adam_lr=2e-3, weight_decay=0.5, **STEADY)
    tx = build(optim, model, 200)
    traces = []

    @jax.jit
    def step(params, state, grads):
        traces.append(name)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), updates, state

    # With gradients of 0 only decay moves, by each weight's own learning rate.
    params, start = make_tree(0, 0.1), jax.jit(tx.init)(make_tree(0))
    _, updates, _ = step(params, start, jax.tree.map(np.zeros_like, params))
    for w in weights.declare(model):
        lr = 2e-3 if name == "muon" and (w.group != "hidden" or not w.reads) else 3e-3
        expected = -lr * 0.5 * flat(params)[w.path] if w.decay else np.zeros(w.sizes)
        np.testing.assert_allclose(flat(updates)[w.path], expected, rtol=1e-5, atol=0, err_msg=w.path)

    # Distance to a target falls, in every trained weight; the others keep their bits.
    target = make_tree(1, 0.1)
    found, state = params, start
    for _ in range(200):
        grads = jax.tree.map(lambda p, t: np.asarray(p) - t, found, target)
        found, _, state = step(found, state, grads)
    for w in weights.declare(model):
        before, after, goal = (flat(t)[w.path] for t in (params, found, target))
        if w.trained:
            assert np.linalg.norm(after - goal) < 0.6 * np.linalg.norm(before - goal), w.path
        else:
            assert np.asarray(after).tobytes() == before.tobytes()
    assert len(traces) == 1
    assert int(state.count) == 200


@pytest.mark.parametrize("name", NAMES)
def test_state_is_float32_and_lies_in_the_weights_tree(name, model, make_tree):
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), make_tree(0))
    state = jax.eval_shape(build(OptimConfig(name=name), model, 10).init, params)
    leaves = jax.tree_util.tree_leaves_with_path(state)
    assert {leaf.dtype for _, leaf in leaves} == {jnp.dtype("float32"), jnp.dtype("int32")}
    for path, leaf in leaves:
        text = "/".join(str(getattr(key, "key", getattr(key, "name", key))) for key in path)
        assert "router_bias" not in text
        assert leaf.ndim == 0 or any(text.endswith(f"/{weight}") for weight in flat(params)), text


@pytest.mark.parametrize("name", NAMES)
def test_sharded_equals_one_device(name):
    if len(jax.devices()) < 2:
        pytest.skip("needs 2 devices: XLA_FLAGS=--xla_force_host_platform_device_count=2")
    model = ModelConfig(
        num_layers=2, d_model=8, d_ff=16, vocab_size=24, context=8, vocab_multiple=8,
        attention=AttentionConfig(num_heads=2, kv_heads=2, head_dim=4),
    )
    mesh = jax.make_mesh((2,), ("fsdp",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    tx = build(OptimConfig(name=name, lr=0.1, **STEADY), model, 10)
    declared = weights.declare(model)
    params, grads = (
        traverse_util.unflatten_dict(
            {w.path: np.random.default_rng([seed, i]).normal(size=w.sizes).astype(np.float32)
             for i, w in enumerate(declared)}, sep="/",
        )
        for seed in (0, 1)
    )

    def place(w):
        return NamedSharding(mesh, P(*("fsdp" if a == "embed" else None for a in w.logical_axes)))

    where = traverse_util.unflatten_dict({w.path: place(w) for w in declared}, sep="/")
    once = jax.jit(lambda g, p: tx.update(g, tx.init(p), p)[0])
    expected, found = once(grads, params), once(jax.device_put(grads, where), jax.device_put(params, where))
    assert len(found["layers"]["mlp"]["w_up"].sharding.device_set) == 2
    for path, value in flat(found).items():
        np.testing.assert_allclose(value, flat(expected)[path], rtol=2e-4, atol=2e-5, err_msg=path)


def test_adamw_equals_optax(model, make_tree):
    """Masks written by hand: matrices decay, and the router's bias, whose gradient is 0, is not touched."""
    optim = OptimConfig(lr=0.02, weight_decay=0.3, clip_norm=2.0, warmup=2, eps=1e-6, b1=0.8, b2=0.9)

    def decays(tree):
        return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key.startswith("w_"), tree)

    adamw = optax.adamw(schedule(optim, 6), b1=0.8, b2=0.9, eps=1e-6, weight_decay=0.3, mask=decays)
    reference = optax.chain(optax.clip_by_global_norm(2.0), adamw)
    results = []
    for tx in (build(optim, model, 6), reference):
        update, params = jax.jit(tx.update), make_tree(0)
        state = jax.jit(tx.init)(params)
        for seed in range(1, 6):
            grads = make_tree(seed)
            grads["layers"]["moe"]["router_bias"][:] = 0.0
            updates, state = update(grads, state, params)
            params = jax.tree.map(lambda p, u: p + np.asarray(u), params, updates)
        results.append(flat(params))
    for path, value in results[0].items():
        np.testing.assert_allclose(value, results[1][path], rtol=1e-5, atol=1e-6, err_msg=path)


def test_clipping(model, make_tree):
    """Momentum after one step is (1 - b2) times the gradient, cut to the norm."""
    params, grads = make_tree(0), make_tree(1)
    norm = np.sqrt(sum(np.sum(g.astype(np.float64) ** 2) for g in jax.tree.leaves(grads)))
    for limit, scale in ((1.0, 1.0 / norm), (2.0 * norm, 1.0), (None, 1.0)):
        tx = build(OptimConfig(name="lion", b2=0.75, clip_norm=limit, **STEADY), model, 10)
        _, state = jax.jit(lambda g, p, tx=tx: tx.update(g, tx.init(p), p))(grads, params)
        found = state.rules["lion"].mu["embed"]["w_embed"]
        np.testing.assert_allclose(found, 0.25 * scale * grads["embed"]["w_embed"], rtol=1e-5)


def test_a_tree_of_another_model_is_refused(model, make_tree):
    params = make_tree(0)
    with pytest.raises(ValueError, match="embed/w_embed"):
        build(OptimConfig(), model, 10).init({k: v for k, v in params.items() if k != "embed"})
