"""One step: the same on every mesh, however the batch is split, and a bad step changes nothing."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maijax import optim, registry
from maijax.config import (
    AttentionConfig,
    DataConfig,
    Experiment,
    MeshConfig,
    ModelConfig,
    MoEConfig,
    OptimConfig,
    SourceConfig,
    TrainConfig,
)
from maijax.optim import skip
from maijax.parallel.mesh import make_mesh
from maijax.parallel.sharding import Layout
from maijax.train import state as states
from maijax.train.step import compile_step

DENSE = ModelConfig(
    num_layers=2, d_model=32, d_ff=64, vocab_size=96, context=32, vocab_multiple=32, layers="scan",
    attention=AttentionConfig(num_heads=4, kv_heads=2, head_dim=8),
)
MIXTURE = dataclasses.replace(
    DENSE, num_layers=3,
    moe=MoEConfig(num_experts=4, top_k=2, d_ff=32, shared_experts=1, first_dense=1, balance_weight=1e-2),
)


def experiment(model: ModelConfig, **train) -> Experiment:
    return Experiment(
        name="x", model=model, optim=OptimConfig(name="muon", lr=0.01, adam_lr=0.01, warmup=2),
        data=DataConfig(sources=(SourceConfig(uri="none"),)),
        train=TrainConfig(**({"steps": 10, "batch_size": 8, "seq_len": 16, "z_loss": 1e-4} | train)),
    )


def batch(step: int, rows: int = 8, length: int = 16) -> dict[str, np.ndarray]:
    """Packed rows: two documents and, in every third row, padding."""
    rng = np.random.default_rng(step)
    tokens = rng.integers(4, 96, (rows, length + 1), dtype=np.int32)
    segments = np.ones((rows, length), np.int32)
    for row in range(rows):
        cut = int(rng.integers(3, length - 3))
        segments[row, cut:] = 2
        if row % 3 == 0:
            segments[row, -2:] = 0
    starts = np.maximum.accumulate(
        np.where(np.diff(segments, axis=1, prepend=0) != 0, np.arange(length), 0), axis=1
    )
    weights = (segments > 0).astype(np.float32)
    weights[:, :-1] *= segments[:, :-1] == segments[:, 1:]
    return {
        "tokens": tokens[:, :-1], "targets": tokens[:, 1:], "segments": segments,
        "positions": (np.arange(length) - starts).astype(np.int32), "weights": weights,
    }


def losses(exp: Experiment, mesh: MeshConfig, devices: int, steps: int = 10) -> tuple[list[float], states.State]:
    layout = Layout(make_mesh(mesh, jax.devices()[:devices]), mesh)
    tx = skip.wrap(optim.build(exp.optim, exp.model, exp.train.steps), exp.optim)
    now = states.create(exp.model, tx, layout, exp.train.seed)
    step = compile_step(exp, tx, layout)
    found = []
    for i in range(steps):
        now, metrics = step(now, batch(i))
        found.append(float(metrics["loss"]))
    return found, now


@pytest.mark.parametrize("model", [DENSE, MIXTURE], ids=["dense", "mixture"])
@pytest.mark.parametrize("preset", ["DATA", "FSDP"])
def test_eight_devices_train_as_one(model, preset):
    exp = experiment(model)
    meshes = {n: registry.mesh(n) for n in ("ONE", "DATA", "FSDP")}
    one, _ = losses(exp, meshes["ONE"], 1)
    eight, state = losses(exp, meshes[preset], 8)
    np.testing.assert_allclose(eight, one, rtol=1e-5)
    assert one[-1] < one[0]
    lies = state.params["layers"]["attention"]["w_q"].sharding
    assert lies.is_fully_replicated == (preset == "DATA")


def test_first_parameters_are_equal_on_every_mesh():
    exp = experiment(MIXTURE)
    meshes = {n: registry.mesh(n) for n in ("ONE", "DATA", "FSDP")}
    made = [losses(exp, meshes[name], n, steps=0)[1] for name, n in (("ONE", 1), ("DATA", 8), ("FSDP", 8))]
    for other in made[1:]:
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), made[0], other)


@pytest.mark.parametrize("model", [DENSE, MIXTURE], ids=["dense", "mixture"])
def test_accumulation_is_only_a_way_of_computing(model):
    meshes = {n: registry.mesh(n) for n in ("ONE", "DATA", "FSDP")}
    whole, a = losses(experiment(model), meshes["ONE"], 1, steps=4)
    parts, b = losses(experiment(model, accumulation=4), meshes["ONE"], 1, steps=4)
    np.testing.assert_allclose(parts, whole, rtol=1e-5)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-3, atol=2e-5), a.params, b.params)


def test_a_bad_step_changes_no_bit_and_is_counted():
    exp = experiment(MIXTURE)
    mesh = MeshConfig(data=1)
    layout = Layout(make_mesh(mesh, jax.devices()[:1]), mesh)
    tx = skip.wrap(optim.build(exp.optim, exp.model, exp.train.steps), exp.optim)
    now = states.create(exp.model, tx, layout, 0)
    step = compile_step(exp, tx, layout)
    now, _ = step(now, batch(0))
    before = jax.tree.map(np.array, now.params)
    bad = batch(1)
    bad["weights"] = np.full_like(bad["weights"], np.nan)
    now, metrics = step(now, bad)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, np.asarray(b)), before, now.params)
    assert int(metrics["skipped"]) == 1 and int(now.step) == 2
    now, metrics = step(now, batch(2))
    assert int(metrics["skipped_in_row"]) == 0 and np.isfinite(float(metrics["loss"]))


def test_router_bias_moves_against_the_load():
    exp = experiment(MIXTURE)
    _, now = losses(exp, MeshConfig(data=1), 1, steps=1)
    bias = np.asarray(now.params["layers"]["moe"]["router_bias"])
    assert set(np.round(np.abs(bias), 6).ravel()) <= {0.0, np.float32(1e-3).round(6)}
    assert np.abs(bias).max() > 0
    assert jnp.isfinite(bias).all()
