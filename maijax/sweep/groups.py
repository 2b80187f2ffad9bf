"""Which trials can share one compiled program: those that differ only in numbers that it takes as arguments. No jax."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from maijax import plain
from maijax.config import MESH_AXES, Experiment

# Numbers that the step computes with but that shape nothing; where one may be none, it is so for all or for none.
TRACED = (
    "optim.lr", "optim.adam_lr", "optim.warmup", "optim.final_fraction", "optim.b1", "optim.b2", "optim.eps",
    "optim.momentum", "optim.weight_decay", "optim.clip_norm", "optim.spike_sigmas",
)
SEED = "train.seed"  # decides the first weights and the order of the data, neither of which is part of the program


def signature(experiment: Experiment) -> str | None:
    """Equal for experiments that one program can train side by side; None if this one must run alone."""
    if any((getattr(experiment.mesh, axis) or 1) > 1 for axis in MESH_AXES):
        return None  # it asks for several devices; side by side each has one
    flat = plain.flatten(experiment)
    shared = {path: value for path, value in flat.items() if path not in (*plain.METADATA, SEED)}
    for path in TRACED:
        shared[path] = None if shared[path] is None else "traced"
    return repr(sorted(shared.items()))


def varied(experiments: Sequence[Experiment]) -> dict[str, list[Any]]:
    """Path -> a value per experiment, of the traced numbers that are not the same in all."""
    flats = [plain.flatten(experiment) for experiment in experiments]
    columns = {path: [flat[path] for flat in flats] for path in TRACED}
    return {path: column for path, column in columns.items() if len(set(column)) > 1}


def with_values(experiment: Experiment, values: dict[str, Any]) -> Experiment:
    """The experiment with some of its traced numbers, which may be tracers, in place of its own."""
    fields = {path.partition(".")[2]: value for path, value in values.items()}
    return dataclasses.replace(experiment, optim=dataclasses.replace(experiment.optim, **fields))
