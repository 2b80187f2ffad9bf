"""Experts on 8 devices against one: outputs and gradients, also where a skewed router needs many rounds."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maijax.config import MeshConfig, MoEConfig
from maijax.models import moe
from maijax.parallel import experts
from maijax.parallel.mesh import make_mesh
from maijax.parallel.sharding import Layout, use

B, S, D, E, M, C = 8, 8, 16, 8, 12, 3
CONFIG = MoEConfig(num_experts=E, top_k=C, d_ff=M)
LAYOUTS: dict[str, dict[str, int]] = {
    "expert 2": {"expert": 2, "data": 4},
    "expert 4": {"expert": 4, "fsdp": 2},
    "expert 8": {"expert": 8},
    "expert 2 tensor 2 fsdp 2": {"expert": 2, "tensor": 2, "fsdp": 2},
    "expert 4 context 2": {"expert": 4, "context": 2},
    "tensor 4 data 2": {"tensor": 4, "data": 2},
    "fsdp 2 data 2 context 2": {"fsdp": 2, "data": 2, "context": 2},
}


Arrays = dict[str, jax.Array]


def layout(sizes: dict[str, int], **options: Any) -> Layout:
    config = MeshConfig(**{"data": 1, "fsdp": 1} | sizes, **options)
    return Layout(make_mesh(config), config)


def arrays(skew: float) -> Arrays:
    """`skew` moves the choice of all tokens to the first experts, which live together."""
    rng = np.random.default_rng(0)
    shapes = {"x": (B, S, D), "router": (D, E), "gate": (E, D, M), "up": (E, D, M), "down": (E, M, D), "g": (B, S, D)}
    found = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    return {**found, "bias": np.linspace(skew, 0, E, dtype=np.float32)}  # pyright: ignore


def answer(values: Arrays, fixed: Arrays) -> tuple[jax.Array, Any]:
    routing = moe.route(values["x"], values["router"], fixed["bias"], CONFIG)
    out = moe.experts(
        values["x"], routing, values["gate"], values["up"], values["down"], activation="silu", kernels="xla"
    )
    stats = moe.router_stats(routing, None, CONFIG)
    return jnp.sum(out * fixed["g"]) + stats.balance_loss, (out, stats)


def staged(values: Arrays, fixed: Arrays) -> tuple[jax.Array, Any]:
    """As in a pipeline: each stage has its own tokens and weights, and keeps only what came in."""
    losses, aux = jax.vmap(jax.checkpoint(answer), spmd_axis_name="stage")(values, fixed)
    return jnp.sum(losses), aux


def run(place: Layout | None, a: Arrays, function: Any = answer) -> Any:
    fixed = {name: a[name] for name in ("g", "bias")}
    values = {name: value for name, value in a.items() if name not in fixed}
    # Compiled in half the time; the program runs once.
    options = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    with use(place):
        pull = jax.jit(jax.value_and_grad(function, has_aux=True), compiler_options=options)
        (_, aux), gradients = pull(values, fixed)
    return {"aux": aux, "gradients": gradients}


@functools.cache
def alone(skew: float) -> Any:
    return run(None, arrays(skew))


def assert_same(found: Any, wanted: Any) -> None:
    def same(path: Any, one: jax.Array, other: jax.Array) -> None:
        scale = float(jnp.abs(other).max())
        np.testing.assert_allclose(one, other, atol=1e-5 * scale, rtol=0, err_msg=jax.tree_util.keystr(path))

    jax.tree_util.tree_map_with_path(same, found, wanted)


@pytest.mark.parametrize(("skew", "room"), [(0.0, 2.0), (20.0, 0.25)])
@pytest.mark.parametrize("sizes", LAYOUTS.values(), ids=LAYOUTS)
def test_equals_one_device(sizes: dict[str, int], skew: float, room: float) -> None:
    assert_same(run(layout(sizes, exchange_room=room), arrays(skew)), alone(skew))


@pytest.mark.parametrize("sizes", [{"expert": 4}, {"expert": 2, "tensor": 2}], ids=str)
def test_stages_take_their_own_number_of_rounds(sizes: dict[str, int]) -> None:
    """The first is skewed to the first experts and the second hardly at all."""
    both = jax.tree.map(lambda *x: jnp.stack(x), arrays(20.0), arrays(0.0))
    found = run(layout({"stage": 2, **sizes}, exchange_room=0.25), both, staged)
    assert_same(found, jax.tree.map(lambda *x: jnp.stack(x), alone(20.0), alone(0.0)))


def test_an_even_router_pays_for_one_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds are counted as they run: one where the pairs fit, as many as they fill where they do not."""
    ran: list[int] = []
    plain = experts._round

    def counted(place: Layout, room: int, whole: Any, step: jax.Array, *rest: Any) -> jax.Array:
        jax.debug.callback(lambda step: ran.append(int(step)), step)
        return plain(place, room, whole, step, *rest)

    monkeypatch.setattr(experts, "_round", counted)
    x = jnp.ones((B, S, D))
    weights = [jnp.ones((E, D, M)), jnp.ones((E, D, M)), jnp.ones((E, M, D))]
    token = jnp.arange(B * S).reshape(B, S, 1)
    even, crowded = (token + jnp.arange(0, E, 3)) % E, jnp.broadcast_to(jnp.arange(C), (B, S, C))
    for chosen, rounds in ((even, 1), (crowded, 2)):
        ran.clear()
        # Each device has 8 tokens, 24 pairs, and room for 8 rows to each of 4 devices; crowded, one gets 16.
        with use(layout({"expert": 4, "fsdp": 2}, exchange_room=1.25)):
            routing = moe.Routing(chosen, jnp.ones((B, S, C)), jnp.ones((B, S, E)))
            out = jax.jit(lambda x, routing: moe.experts(x, routing, *weights, activation="silu", kernels="xla"))(
                x, routing
            )
        jax.effects_barrier()
        assert out.shape == x.shape
        assert sorted(ran) == sorted([*range(rounds)] * 8)
