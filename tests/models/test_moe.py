"""Mixture of experts against a dense evaluation in numpy float64, and its two balancers."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import MOE, quick, tiny, weights

from maijax.config import MoEConfig
from maijax.models import moe
from maijax.models.blocks import MoE

B, S, D, E, M = 3, 7, 8, 5, 6
SMALL = MoEConfig(num_experts=E, top_k=2, d_ff=M, route_scale=1.7)


def arrays(seed: int = 0, num_experts: int = E) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = {
        "x": (B * S, D), "w_router": (D, num_experts), "bias": (num_experts,), "w_gate": (num_experts, D, M),
        "w_up": (num_experts, D, M), "w_down": (num_experts, M, D),
    }
    found = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    return found | {"bias": 0.3 * found["bias"]}


def gated(x: np.ndarray, w_gate: np.ndarray, w_up: np.ndarray, w_down: np.ndarray) -> np.ndarray:
    gate = x @ w_gate
    return (gate / (1 + np.exp(-gate)) * (x @ w_up)) @ w_down


Arrays = dict[str, Any]


def dense(a: Arrays, config: MoEConfig, valid: np.ndarray) -> tuple[np.ndarray, float, np.ndarray]:
    """Every expert on every token, one token at a time, straight from the paper's equations, in float64."""
    a = {name: value.astype(np.float64) for name, value in a.items()}
    k, n = config.top_k, config.num_experts
    scores = 1 / (1 + np.exp(-(a["x"] @ a["w_router"])))
    out, counts = np.zeros_like(a["x"]), np.zeros(n)
    for t, s in enumerate(scores):
        chosen = np.argsort(-(s + a["bias"]))[:k]
        for e in chosen:
            gate = config.route_scale * s[e] / s[chosen].sum()
            out[t] += gate * gated(a["x"][t], a["w_gate"][e], a["w_up"][e], a["w_down"][e])
            counts[e] += valid.reshape(-1)[t]
    losses = []
    for row, keep in zip(scores.reshape(B, S, n), valid, strict=True):
        tokens = row[keep]
        hits = sum(((np.argsort(np.argsort(-s)) < k).astype(float) for s in tokens), start=np.zeros(n))
        f = n / (k * max(len(tokens), 1)) * hits
        p = (tokens / tokens.sum(-1, keepdims=True)).sum(0) / max(len(tokens), 1)
        losses.append((f * p).sum())
    return out, float(np.mean(losses)), counts / (B * S * k)


def layer(
    a: Arrays, config: MoEConfig, valid: jax.Array | None = None
) -> tuple[jax.Array, moe.RouterStats]:
    x_BSD = a["x"].reshape(B, S, D)
    routing = moe.route(x_BSD, a["w_router"], a["bias"], config)
    out = moe.experts(x_BSD, routing, a["w_gate"], a["w_up"], a["w_down"], activation="silu", kernels="xla")
    return out.reshape(B * S, D), moe.router_stats(routing, valid, config)


@pytest.mark.parametrize("top_k", [1, 2, E])
def test_layer_equals_dense_numpy(top_k: int) -> None:
    config, a = dataclasses.replace(SMALL, top_k=top_k), arrays()
    valid = np.ones((B, S), bool)
    valid[0, 4:] = False
    valid[2] = False
    out, stats = quick(lambda a, v: layer(a, config, v))(a, valid)
    wanted, loss, load = dense(a, config, valid)
    np.testing.assert_allclose(out, wanted, atol=1e-5 * np.abs(wanted).max())
    assert float(stats.balance_loss) == pytest.approx(loss, rel=1e-5)
    np.testing.assert_allclose(stats.load_E, load, atol=1e-6)


def test_module_with_shared_experts_equals_dense_numpy() -> None:
    cfg = tiny(moe=MOE, kernels="xla")
    params = jax.tree.map(lambda x: np.asarray(x[0]), weights(cfg)["layers"]["moe"])
    x_BSD = np.random.default_rng(1).standard_normal((B, S, cfg.d_model)).astype(np.float32)
    module = MoE(cfg=cfg, dtype=jnp.float32, root="layers/moe")
    out, _ = quick(lambda p, x: module.apply({"params": p}, x, None))(params, x_BSD)
    x = x_BSD.reshape(-1, cfg.d_model)
    values = {"x": x, "bias": params.pop("router_bias"), **params}
    shared = values.pop("shared")
    wanted, *_ = dense(values, MOE, np.ones((B, S), bool))
    wanted += gated(x.astype(np.float64), *(shared[name] for name in ("w_gate", "w_up", "w_down")))
    np.testing.assert_allclose(np.asarray(out).reshape(wanted.shape), wanted, atol=2e-5)


def test_gradients_equal_a_dense_evaluation() -> None:
    a = {name: jnp.asarray(value) for name, value in arrays().items()}
    target = jnp.asarray(np.random.default_rng(5).standard_normal((B * S, D)), jnp.float32)

    def sparse_loss(a: dict[str, jax.Array]) -> jax.Array:
        return jnp.sum(layer(a, SMALL)[0] * target)

    def dense_loss(a: dict[str, jax.Array]) -> jax.Array:
        scores = jax.nn.sigmoid(a["x"] @ a["w_router"])
        order = jnp.argsort(jnp.argsort(-(scores + a["bias"][None]), axis=-1), axis=-1)
        gates = jnp.where(order < SMALL.top_k, scores, 0.0)
        gates = SMALL.route_scale * gates / gates.sum(-1, keepdims=True)
        inner = jax.nn.silu(jnp.einsum("ND,EDM->NEM", a["x"], a["w_gate"]))
        inner = inner * jnp.einsum("ND,EDM->NEM", a["x"], a["w_up"])
        return jnp.sum(jnp.einsum("NEM,EMD,NE->ND", inner, a["w_down"], gates) * target)

    found, wanted = quick(jax.grad(sparse_loss))(a), quick(jax.grad(dense_loss))(a)
    assert not np.any(found["bias"])
    for name, value in wanted.items():
        scale = max(1.0, float(jnp.abs(value).max()))
        np.testing.assert_allclose(found[name], value, atol=2e-5 * scale, err_msg=name)


def test_bias_moves_the_choice_but_not_the_gates() -> None:
    a = arrays()
    bias = np.zeros(E, np.float32)
    bias[3] = 10.0
    x_BSD = jnp.asarray(a["x"]).reshape(B, S, D)
    plain = moe.route(x_BSD, jnp.asarray(a["w_router"]), jnp.zeros(E), SMALL)
    moved = moe.route(x_BSD, jnp.asarray(a["w_router"]), jnp.asarray(bias), SMALL)
    assert (np.asarray(moved.experts_BSC) == 3).any(axis=-1).all()
    np.testing.assert_array_equal(plain.scores_BSE, moved.scores_BSE)
    chosen = np.take_along_axis(np.asarray(moved.scores_BSE), np.asarray(moved.experts_BSC), axis=-1)
    np.testing.assert_allclose(moved.gates_BSC, 1.7 * chosen / chosen.sum(-1, keepdims=True), rtol=1e-6)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31), st.booleans())
def test_no_token_is_dropped_however_uneven(seed: int, crowded: bool) -> None:
    """One compiled shape; crowded: every token prefers the same experts and others stay empty."""
    a = arrays(seed)
    if crowded:
        a["bias"][:] = np.array([5.0, 4.0, 0.0, 0.0, 0.0])
    out, stats = _COMPILED(a)
    wanted, _, load = dense(a, SMALL, np.ones((B, S), bool))
    np.testing.assert_allclose(out, wanted, atol=2e-5 * max(1.0, np.abs(wanted).max()))
    np.testing.assert_allclose(stats.load_E, load, atol=1e-6)
    assert float(stats.load_E.sum()) == pytest.approx(1.0)


_COMPILED = quick(lambda a: layer(a, SMALL))


def test_balance_loss_of_an_indifferent_router_is_one() -> None:
    """Equal scores share P evenly, so that sum f P = sum f / E = 1 whichever experts are hit."""
    routing = moe.route(jnp.ones((B, S, D)), jnp.zeros((D, E)), jnp.zeros(E), SMALL)
    assert float(moe.router_stats(routing, None, SMALL).balance_loss) == pytest.approx(1.0)


def test_update_bias_by_hand() -> None:
    load = jnp.array([[0.5, 0.25, 0.125, 0.125], [0.25, 0.25, 0.25, 0.25]])
    found = moe.update_bias(jnp.zeros((2, 4)), load, 0.01)
    np.testing.assert_allclose(found, [[-0.01, 0, 0.01, 0.01], [0, 0, 0, 0]], atol=1e-9)


def test_update_bias_evens_out_a_skewed_router() -> None:
    a = arrays()
    rng = np.random.default_rng(2)
    x = jnp.asarray(rng.standard_normal((B * S, D)), jnp.float32)
    skew = jnp.asarray(a["w_router"] * 0.2) + jnp.linspace(-0.2, 0.2, E)[None] * jnp.sign(x.mean(0))[:, None]
    x = x.reshape(B, S, D)

    @quick
    def round_of(bias: jax.Array) -> jax.Array:
        routing = moe.route(x, skew, bias, SMALL)
        return moe.router_stats(routing, None, SMALL).load_E

    bias = jnp.zeros(E)
    before = float(round_of(bias).max())
    for _ in range(200):
        bias = moe.update_bias(bias, round_of(bias), 0.003)
    assert before > 0.3
    assert float(round_of(bias).max()) < 0.25  # even: 0.2


def test_remat_does_not_make_the_last_product_again() -> None:
    """Only the two whose results the gradients need."""
    a = {name: jnp.asarray(value) for name, value in arrays().items()}

    def layer(x_BSD: jax.Array) -> jax.Array:
        routing = moe.route(x_BSD, a["w_router"], a["bias"], SMALL)
        given = a["w_gate"], a["w_up"], a["w_down"]
        return moe.experts(x_BSD, routing, *given, activation="silu", kernels="tpu")

    def products(function: Any) -> int:
        gradient = jax.grad(lambda x_BSD: jnp.sum(function(x_BSD) ** 2))
        return str(jax.make_jaxpr(gradient)(a["x"].reshape(B, S, D))).count("name=gmm")

    assert products(jax.checkpoint(layer)) == products(layer) + 2
