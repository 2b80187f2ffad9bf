"""A few training steps of a small model on a mesh of simulated devices; as a program, for a list of meshes.

    python tests/parallel/layouts.py MODEL MESH [MESH ...]      MESH: stage=2,tensor=4

prints a line of JSON for each: the losses of five steps beside those of one device; for a mesh of one axis also the
largest difference of the first parameters and of the first gradients from those of one device.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    os.environ["JAX_PLATFORMS"] = "cpu"
    # Compiling is most of the time here: let it be quick rather than good.
    quick = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count=128 {quick}"
    sys.path.insert(0, str(Path(__file__).parents[2]))

import jax
import numpy as np

from maijax import optim
from maijax.config import (
    MESH_AXES,
    AttentionConfig,
    DataConfig,
    Experiment,
    MeshConfig,
    ModelConfig,
    MoEConfig,
    OptimConfig,
    ParametrizationConfig,
    SourceConfig,
    TrainConfig,
)
from maijax.optim import skip
from maijax.parallel import sharding
from maijax.parallel.mesh import make_mesh
from maijax.parallel.sharding import Layout
from maijax.train import state as states
from maijax.train.step import compile_step, gradients

ROWS, LENGTH, VOCAB, STEPS = 32, 16, 120, 5

DENSE = ModelConfig(
    num_layers=5, d_model=128, d_ff=64, vocab_size=VOCAB, context=LENGTH, layers="scan",
    attention=AttentionConfig(num_heads=8, kv_heads=8, head_dim=8),
)
MIXTURE = dataclasses.replace(
    DENSE, num_layers=4, attention=AttentionConfig(num_heads=16, kv_heads=8, head_dim=8, window=11),
    moe=MoEConfig(num_experts=8, top_k=2, d_ff=16, shared_experts=1, first_dense=1, balance_weight=1e-2),
)
SCALED = dataclasses.replace(
    MIXTURE, parametrization=ParametrizationConfig(name="completep", base_width=32, base_depth=2)
)
MODELS = {"dense": DENSE, "mixture": MIXTURE, "scaled": SCALED}


def experiment(model: ModelConfig, **train: Any) -> Experiment:
    return Experiment(
        name="x", model=model, optim=OptimConfig(lr=3e-3, warmup=2),
        data=DataConfig(sources=(SourceConfig(uri="none"),)),
        train=TrainConfig(**({"steps": 10, "batch_size": ROWS, "seq_len": LENGTH, "z_loss": 1e-4} | train)),
    )


def batch(step: int) -> dict[str, np.ndarray]:
    """Packed rows: two documents and, in every third row, padding."""
    rng = np.random.default_rng(step)
    tokens = rng.integers(4, VOCAB, (ROWS, LENGTH + 1), dtype=np.int32)
    segments = np.ones((ROWS, LENGTH), np.int32)
    for row in range(ROWS):
        segments[row, rng.integers(2, LENGTH - 2) :] = 2
        if row % 3 == 0:
            segments[row, -2:] = 0
    starts = np.maximum.accumulate(
        np.where(np.diff(segments, axis=1, prepend=0) != 0, np.arange(LENGTH), 0), axis=1
    )
    weights = (segments > 0).astype(np.float32)
    weights[:, :-1] *= segments[:, :-1] == segments[:, 1:]
    return {
        "tokens": tokens[:, :-1], "targets": tokens[:, 1:], "segments": segments,
        "positions": (np.arange(LENGTH) - starts).astype(np.int32), "weights": weights,
    }


@dataclasses.dataclass(frozen=True)
class Trained:
    losses: list[float]
    first: Any  # the state before the first step, as numpy arrays
    gradients: Any


def train(model: ModelConfig, mesh: MeshConfig, first: Any = None, **options: Any) -> Trained:
    """Five steps; from a given first state, or a fresh one and then also with the first gradients."""
    exp = experiment(model, **options)
    devices = math.prod(getattr(mesh, axis) for axis in MESH_AXES)
    layout = Layout(make_mesh(mesh, jax.devices()[:devices]), mesh)
    tx = skip.wrap(optim.build(exp.optim, exp.model, exp.train.steps), exp.optim)
    found = None
    if first is not None:
        now = jax.tree.map(lambda x, s: jax.device_put(x, s.sharding), first, states.abstract(exp.model, tx, layout))
    else:
        now = states.create(exp.model, tx, layout, exp.train.seed)
        first = jax.tree.map(np.asarray, now)
        with sharding.use(layout):
            made = jax.jit(lambda p, b: gradients(p, b, exp.model, exp.train)[0])(now.params, batch(0))
        found = jax.tree.map(np.asarray, made)
    step = compile_step(exp, tx, layout)
    losses = []
    for i in range(STEPS):
        now, metrics = step(now, batch(i))
        losses.append(float(metrics["loss"]))
    return Trained(losses, first, found)


def furthest(a: Any, b: Any) -> float:
    """The largest difference between two trees, each array's against the largest number in it."""
    return max(
        float(np.max(np.abs(x - y)) / max(np.max(np.abs(y)), 1e-6))
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def parse(text: str) -> tuple[MeshConfig, dict[str, Any]]:
    """stage=2,tensor=4,remat=full as a mesh and what else the model gets; data is 1 unless named."""
    pairs = dict(part.split("=") for part in text.split(","))
    remat = {"remat": pairs.pop("remat")} if "remat" in pairs else {}
    kinds = {"attention": str, "gather": str, "exchange_room": float}
    words = {k: kinds.get(k, int)(v) for k, v in pairs.items()}
    return MeshConfig(**({"data": 1} | words)), remat  # pyright: ignore[reportArgumentType]


def main() -> None:
    model = MODELS[sys.argv[1]]
    one = train(model, MeshConfig(data=1))
    for text in sys.argv[2:]:
        mesh, remat = parse(text)
        alone = sum(getattr(mesh, axis) > 1 for axis in MESH_AXES) == 1
        many = train(dataclasses.replace(model, **remat), mesh, None if alone else one.first)
        found = {"mesh": text, "losses": many.losses, "one": one.losses}
        if alone:
            found["first"] = furthest(many.first.params, one.first.params)
            found["gradients"] = furthest(many.gradients, one.gradients)
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
