"""One dial for the compute-optimal rungs: the shape decides rate, batch and steps by stated laws."""

import dataclasses

from configs import data, optimizers
from maijax.config import Experiment, MeshConfig, ModelConfig, OptimConfig, Remat, TrainConfig
from maijax.scaling import step_law_budget


def rung(
    model: ModelConfig, mesh: MeshConfig, *, optim: OptimConfig = optimizers.ADAMW, remat: Remat = "none",
    tokens: int | None = None, max_lr: float = 1.0,
) -> Experiment:
    """A complete experiment; tokens default to 20 for each active parameter, max_lr caps the law."""
    budget = step_law_budget(model, tokens=tokens, max_lr=max_lr)
    return Experiment(
        model=dataclasses.replace(model, remat=remat),
        optim=dataclasses.replace(optim, lr=budget.lr),
        data=data.CORPUS,
        train=TrainConfig(
            steps=budget.steps, batch_size=budget.batch_size, seq_len=model.context, z_loss=1e-4,
            eval_every=1_000, sample_every=1_000, checkpoint_every=1_000,
        ),
        mesh=mesh,
        rules=budget.rules,
    )
