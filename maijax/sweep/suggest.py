"""Points that learn from the trials before them, by Optuna, which is asked and told anew each time. No jax."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from maijax import overrides
from maijax.errors import UserError
from maijax.space import Choice, Dimension, Point

STARTUP = 10  # trials at random before the first that learns


def tpe(dimensions: Mapping[str, Dimension], told: Sequence[tuple[Point, float | None]], *, seed: int) -> Point:
    """A point where a low figure is likely; `told`: (point, figure), None for trials that run, or failed.

    Source: Bergstra et al., NeurIPS 2011; multivariate: Falkner et al., arXiv 1807.01774, as in Optuna's TPESampler;
    trials that run count as bad ones, so that trials side by side differ.
    """
    optuna = load()
    space: dict[str, Any] = {path: _distribution(optuna, one) for path, one in dimensions.items()}
    sampler = optuna.samplers.TPESampler(
        seed=seed, n_startup_trials=STARTUP, multivariate=True, constant_liar=True,
    )
    study = optuna.create_study(sampler=sampler, direction="minimize")
    states = optuna.trial.TrialState
    for point, figure in told:
        values = {path: _to_optuna(dimensions[path], text) for path, text in point.items()}
        state = states.RUNNING if figure is None else states.COMPLETE
        study.add_trial(
            optuna.trial.create_trial(state=state, value=figure, params=values, distributions=space)
        )
    found = study.ask(space).params
    return {path: _from_optuna(dimensions[path], found[path]) for path in dimensions}


def load() -> Any:
    """Optuna; raises UserError that names the extra if it is not installed."""
    try:
        import optuna
    except ImportError:
        raise UserError('sampler=tpe needs Optuna: pip install -e ".[sweep]", or take grid or random') from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    import warnings

    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    return optuna


def _distribution(optuna: Any, dimension: Dimension) -> Any:
    kinds = optuna.distributions
    if isinstance(dimension, Choice):
        return kinds.CategoricalDistribution(dimension.values)
    if dimension.whole:
        return kinds.IntDistribution(int(dimension.low), int(dimension.high), log=dimension.log)
    return kinds.FloatDistribution(dimension.low, dimension.high, log=dimension.log)


def _to_optuna(dimension: Dimension, text: str) -> Any:
    if isinstance(dimension, Choice):
        return text
    return int(float(text)) if dimension.whole else float(text)


def _from_optuna(dimension: Dimension, value: Any) -> str:
    if isinstance(dimension, Choice):
        return value
    return overrides.show(value if dimension.whole else dimension.near(value))
