"""Trials that are equal but for the seed, taken together: their mean and how they spread. No jax."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence

from maijax.space import Point
from maijax.sweep.groups import SEED
from maijax.sweep.study import Trial


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """One choice of the other values; figures are held-out bits per byte of the trials that finished."""

    point: Point  # without the seed
    trials: tuple[Trial, ...]  # that finished, one per seed
    lost: int  # seeds at which it failed or was stopped early
    mean: float
    deviation: float | None  # sample standard deviation (n - 1) of a single trial; None of one


def settings(trials: Sequence[Trial], over: str = SEED) -> list[Setting]:
    """Those with a finished trial, the best mean first, and last those that have not as many seeds as others."""
    together: dict[tuple[tuple[str, str], ...], dict[str, Trial]] = {}
    for trial in trials:
        if trial.result is not None:
            rest = tuple((path, text) for path, text in trial.point.items() if path != over)
            seeds, seed = together.setdefault(rest, {}), trial.point.get(over, "")
            if seed not in seeds or seeds[seed].figure is None:  # equal draws are one
                seeds[seed] = trial
    most, found = max(map(len, together.values()), default=0), []
    for rest, seeds in together.items():
        done = tuple(trial for trial in seeds.values() if trial.figure is not None)
        figures = [trial.figure for trial in done if trial.figure is not None]
        if done:
            found.append(Setting(
                point=dict(rest), trials=done, lost=len(seeds) - len(done), mean=statistics.fmean(figures),
                deviation=statistics.stdev(figures) if len(figures) > 1 else None,
            ))
    return sorted(found, key=lambda one: (len(one.trials) < most, one.mean))


def repeated(found: Sequence[Setting]) -> bool:
    """Whether some setting has a spread."""
    return any(one.deviation is not None for one in found)
