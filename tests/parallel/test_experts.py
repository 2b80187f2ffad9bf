"""Experts on 8 devices against one: outputs and gradients, also where a skewed router needs many rounds."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maijax.config import MeshConfig
from maijax.models import moe
from maijax.parallel.mesh import make_mesh
from maijax.parallel.sharding import Layout, use

B, S, D, E, M, C = 8, 8, 16, 8, 12, 3
LAYOUTS: dict[str, dict[str, int]] = {
    "expert 2": {"expert": 2, "data": 4},
    "expert 4": {"expert": 4, "fsdp": 2},
    "expert 8": {"expert": 8},
    "expert 2 tensor 2 fsdp 2": {"expert": 2, "tensor": 2, "fsdp": 2},
    "expert 4 context 2": {"expert": 4, "context": 2},
    "tensor 4 data 2": {"tensor": 4, "data": 2},
    "fsdp 2 data 2 context 2": {"fsdp": 2, "data": 2, "context": 2},
}


def layout(sizes: dict[str, int], **options: Any) -> Layout:
    config = MeshConfig(**{"data": 1, "fsdp": 1} | sizes, **options)
    return Layout(make_mesh(config), config)


def arrays(skew: float) -> dict[str, jax.Array]:
    """`skew` moves the choice of all tokens to the first experts, which live together."""
    rng = np.random.default_rng(0)
    shapes = {"x": (B, S, D), "router": (D, E), "gate": (E, D, M), "up": (E, D, M), "down": (E, M, D), "g": (B, S, D)}
    found = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    return {**found, "bias": np.linspace(skew, 0, E, dtype=np.float32)}  # pyright: ignore


def answer(values: dict[str, jax.Array], fixed: dict[str, jax.Array]) -> tuple[jax.Array, Any]:
    from maijax.config import MoEConfig

    routing = moe.route(values["x"], values["router"], fixed["bias"], MoEConfig(num_experts=E, top_k=C, d_ff=M))
    out = moe.experts(
        values["x"], routing, values["gate"], values["up"], values["down"], activation="silu", kernels="xla"
    )
    stats = moe.router_stats(routing, None, MoEConfig(num_experts=E, top_k=C, d_ff=M))
    return jnp.sum(out * fixed["g"]) + stats.balance_loss, (out, stats)


def run(place: Layout | None, skew: float, function: Any = answer) -> Any:
    a = arrays(skew)
    fixed = {name: a.pop(name) for name in ("g", "bias")}
    with use(place):
        (_, aux), gradients = jax.jit(jax.value_and_grad(function, has_aux=True))(a, fixed)
    return {"aux": aux, "gradients": gradients}


@functools.cache
def alone(skew: float) -> Any:
    return run(None, skew)


def assert_same(found: Any, wanted: Any) -> None:
    def same(path: Any, one: jax.Array, other: jax.Array) -> None:
        scale = float(jnp.abs(other).max())
        np.testing.assert_allclose(one, other, atol=1e-5 * scale, rtol=0, err_msg=jax.tree_util.keystr(path))

    jax.tree_util.tree_map_with_path(same, found, wanted)


@pytest.mark.parametrize("room", [2.0, 0.25])
@pytest.mark.parametrize("skew", [0.0, 20.0])
@pytest.mark.parametrize("sizes", LAYOUTS.values(), ids=LAYOUTS)
def test_equals_one_device(sizes: dict[str, int], skew: float, room: float) -> None:
    if room < 1 and "expert" not in sizes:
        pytest.skip("nothing is exchanged")
    assert_same(run(layout(sizes, exchange_room=room), skew), alone(skew))
