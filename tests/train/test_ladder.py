"""Every registered experiment, 500B included, is initialised abstractly, sharded, and its step lowered."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType

from maijax import optim, registry, weights
from maijax.config import MESH_AXES
from maijax.models import decoder
from maijax.parallel.sharding import Layout
from maijax.train import state as states
from maijax.train.step import compile_step


@pytest.mark.parametrize("name", registry.names())
def test_the_step_lowers_on_its_mesh(name):
    experiment = registry.get(name)
    experiment = dataclasses.replace(experiment, model=decoder.resolve(experiment.model, "tpu"))
    devices = math.prod(getattr(experiment.mesh, axis) or 1 for axis in MESH_AXES)
    sizes = experiment.mesh.shape(devices)
    mesh = AbstractMesh(tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))
    layout = Layout(mesh=mesh, config=experiment.mesh)
    tx = optim.wrap(optim.build(experiment.optim, experiment.model, experiment.train.steps), experiment.optim)

    state = states.abstract(experiment.model, tx, layout)
    declared = weights.declare(experiment.model)
    assert sum(x.size for x in jax.tree.leaves(state.params)) == sum(w.size for w in declared)
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.opt_state):
        if leaf.size > 2**28:  # what is large lies sharded
            assert layout.mesh.size == 1 or not leaf.sharding.is_fully_replicated, path

    shape = (experiment.train.batch_size, experiment.train.seq_len)
    rows = layout.batch(shape)
    batch = {
        key: jax.ShapeDtypeStruct(shape, jnp.float32 if key == "weights" else jnp.int32, sharding=rows)
        for key in ("tokens", "targets", "segments", "positions", "weights")
    }
    traced = compile_step(experiment, tx, layout).trace(state, batch)
    lowered = traced.lower(lowering_platforms=("tpu",))
    out_state, metrics = lowered.out_info
    assert jax.tree.map(lambda x: x.shape, out_state) == jax.tree.map(lambda x: x.shape, state)
    assert metrics["loss"].shape == ()
