"""The difference of experiments by meaning, and which scaling rule explains it. No jax."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from maijax import plain
from maijax.config import Experiment

# What a difference means, by the start of its path; the longest start that fits decides.
_MEANING = {
    "model": "shape",
    "optim": "optimisation",
    "train": "optimisation",
    "data": "data",
    "train.seq_len": "data",
    "model.dtype": "numerics",
    "model.norm_eps": "numerics",
    "optim.eps": "numerics",
    "train.z_loss": "numerics",
    "mesh": "layout",
    "data.workers": "layout",
    "model.kernels": "layout",
    "model.layers": "layout",
    "model.parametrization": "optimisation",
    "model.remat": "layout",
    "model.vocab_multiple": "layout",
    "train.accumulation": "layout",
    "train.log_every": "watching",
    "train.eval": "watching",
    "train.sample_every": "watching",
    "train.prompt": "watching",
    "train.checkpoint_every": "watching",
    "train.keep": "watching",
}
MEANINGS = ("shape", "optimisation", "data", "numerics", "layout", "watching")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference:
    """One path that is not the same in all experiments."""

    path: str
    values: tuple[Any, ...]  # one per experiment; plain.ABSENT where it has no such path
    meaning: str
    laws: tuple[tuple[str, ...], ...]  # one per experiment: the rules that it derives the value by

    @property
    def explained(self) -> bool:
        """Whether a scaling rule gives the value on at least one side."""
        return any(self.laws)

    @property
    def reasons(self) -> tuple[str, ...]:
        """Every rule once."""
        return tuple(dict.fromkeys(law for laws in self.laws for law in laws))


def differences(experiments: Sequence[Experiment]) -> list[Difference]:
    """What differs between two or more experiments, in the order of MEANINGS and of the values."""
    flat = [plain.flatten(one) for one in experiments]
    paths = [path for path in dict.fromkeys(p for one in flat for p in one) if path not in plain.METADATA]
    found = []
    for path in paths:
        values = tuple(one.get(path, plain.ABSENT) for one in flat)
        if any(value != values[0] for value in values):
            laws = tuple(tuple(law for at, law in one.rules if at == path) for one in experiments)
            found.append(Difference(path=path, values=values, meaning=meaning(path), laws=laws))
    return sorted(found, key=lambda one: MEANINGS.index(one.meaning))


def meaning(path: str) -> str:
    """One of MEANINGS."""
    return _MEANING[max((start for start in _MEANING if path.startswith(start)), key=len)]
