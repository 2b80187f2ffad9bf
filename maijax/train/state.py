"""What a run carries from step to step, and where each array of it lies."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding

from maijax.config import ModelConfig
from maijax.models import decoder
from maijax.parallel.sharding import Layout
from maijax.weights import declare


class State(NamedTuple):
    """Everything that training changes; the data's position is `step`, since order is a function of it."""

    step: jax.Array  # int32 [], steps done
    params: Any  # nested dict by weight path, float32
    opt_state: Any


def abstract(model: ModelConfig, tx: optax.GradientTransformationExtraArgs, layout: Layout) -> State:
    """The state as ShapeDtypeStructs with shardings; no memory is taken, at any size."""
    shapes = jax.eval_shape(lambda: _create(model, tx, jax.random.key(0)))
    wanted = shardings(shapes, model, layout)
    return jax.tree.map(lambda s, where: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where), shapes, wanted)


def create(model: ModelConfig, tx: optax.GradientTransformationExtraArgs, layout: Layout, seed: int) -> State:
    """A fresh state, created in place on its devices: equal on every mesh for the same seed."""
    where = jax.tree.map(lambda s: s.sharding, abstract(model, tx, layout))
    return jax.jit(lambda seed: _create(model, tx, jax.random.key(seed)), out_shardings=where)(seed)


def _create(model: ModelConfig, tx: optax.GradientTransformationExtraArgs, key: jax.Array) -> State:
    params = decoder.init(model, key)
    return State(step=jnp.zeros((), jnp.int32), params=params, opt_state=tx.init(params))


def shardings(state: State, model: ModelConfig, layout: Layout) -> State:
    """A tree of shardings: an optimizer's moment lies where its weight lies, all else is replicated.

    A moment is known by its key path, which ends in its weight's path, and by its shape.
    """
    declared = declare(model)

    def place(keys: tuple[Any, ...], leaf: Any) -> NamedSharding:
        path = "/".join(str(getattr(key, "key", getattr(key, "name", ""))) for key in keys)
        for weight in declared:
            if path.endswith(f"/{weight.path}") and leaf.shape == weight.sizes:
                return NamedSharding(layout.mesh, layout.weight_spec(weight))
        return layout.replicated()

    return jax.tree_util.tree_map_with_path(place, state)
