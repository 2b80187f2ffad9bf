"""A trained run, opened to be looked at: by evaluation, generation, comparison."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax

from maijax import optim, plain
from maijax.config import Experiment
from maijax.data import tokenizer
from maijax.errors import UserError
from maijax.models import decoder
from maijax.parallel.mesh import make_mesh
from maijax.parallel.sharding import Layout
from maijax.train import rundir, state
from maijax.train.checkpoint import Checkpoints
from maijax.train.loop import TOKENIZER


class Trained(NamedTuple):
    """What a run folder holds, ready for use on this process's devices."""

    experiment: Experiment
    step: int
    params: Any
    layout: Layout
    tokenizer: tokenizer.Tokenizer
    data: dict[str, Any]  # identity of the stream it was trained on


def open_run(folder: Path) -> Trained:
    """The run's newest sound checkpoint; raises UserError if it has none yet, changes nothing."""
    experiment = rundir.load(folder)
    identity = plain.fingerprint(rundir.identity(experiment))
    # The weights were trained in the format that the file names; here they may be used in this machine's.
    usable = dataclasses.replace(
        experiment.model, dtype="auto" if jax.default_backend() == "cpu" else experiment.model.dtype, layers="auto"
    )
    model = decoder.resolve(usable, jax.default_backend())
    layout = Layout(make_mesh(experiment.mesh), experiment.mesh)
    tx = optim.wrap(optim.build(experiment.optim, experiment.model, experiment.train.steps), experiment.optim)
    with Checkpoints(folder / "checkpoints", writer=False) as checkpoints:
        found = checkpoints.restore(state.abstract(model, tx, layout), identity=identity, data=None)
    if found is None:
        raise UserError(f"run {folder} has no checkpoint yet; `maijax run` writes one")
    tokens = tokenizer.load(folder / TOKENIZER)
    if tokens.sha256 != found[1].data.get("tokenizer"):
        raise UserError(f"{folder / TOKENIZER} is not the tokenizer that the weights were trained with; put it back")
    return Trained(
        experiment=dataclasses.replace(experiment, model=model), step=found[1].step, params=found[0].params,
        layout=layout, tokenizer=tokens, data=found[1].data,
    )
