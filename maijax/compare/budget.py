"""Runs at equal budgets, and how much more of a budget one needs to do as well as another. Never extrapolates."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence

from maijax.compare.runs import NAMES, Budget, Evaluation, Run, Side, value
from maijax.compare.select import Metric
from maijax.compare.trend import student

_LEVELS = (0.25, 0.5, 1.0)  # of the largest budget that all have spent
Curve = Sequence[tuple[float, float]]  # (budget spent, held-out loss), the budget rising


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spread:
    """A loss over seeds."""

    mean: float
    deviation: float | None  # of a single run, over the seeds; None with one
    runs: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Level:
    """All sides at one budget; differences are of each side less the first, with 95% intervals where seeds allow."""

    budget: Budget
    spent: float
    losses: tuple[Spread | None, ...]  # None: this side did not measure there
    differences: tuple[tuple[float, float | None] | None, ...]  # (difference, half-width)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gain:
    """How many times as much A must spend to reach B's last loss: above 1, B is better."""

    budget: Budget
    factor: float | None  # None: cannot be told
    low: float | None  # over the pairs of seeds, or a bound where only that is known
    high: float | None
    why: tuple[str, ...]  # what limits it, in words


def curve(run: Run, budget: Budget, metric: Metric) -> list[tuple[float, float]]:
    """A run's evaluations over a budget; seconds may be unknown for some."""
    return [(float(spent), value(p, metric)) for p in run.points if (spent := _spent(p, budget)) is not None]


def at(points: Curve, spent: float) -> float | None:
    """The loss at a budget, linear in its logarithm between two evaluations; None outside them."""
    for (x0, y0), (x1, y1) in zip(points, points[1:], strict=False):
        if x0 <= spent <= x1:
            share = 0.0 if x1 == x0 else math.log(spent / x0) / math.log(x1 / x0)
            return y0 + share * (y1 - y0)
    return points[0][1] if len(points) == 1 and math.isclose(points[0][0], spent) else None


def reach(points: Curve, loss: float) -> float | None:
    """The budget at which a curve first comes down to a loss, as `at` draws it; None if it starts below or never does.
    """
    if not points or points[0][1] <= loss:
        return points[0][0] if points and points[0][1] == loss else None
    for (x0, y0), (x1, y1) in zip(points, points[1:], strict=False):
        if y1 <= loss < y0:
            return x0 * (x1 / x0) ** ((y0 - loss) / (y0 - y1))
    return None


def levels(sides: Sequence[Side], budget: Budget, metric: Metric) -> list[Level]:
    """Every side at a quarter, half and all of the largest budget that every run has spent."""
    curves = [[curve(run, budget, metric) for run in side.runs] for side in sides]
    if not all(points for side in curves for points in side):
        return []
    most = min(points[-1][0] for side in curves for points in side)
    found = []
    for share in _LEVELS:
        spent = most * share
        losses = []
        for side in curves:
            here = [at(points, spent) for points in side]
            known = [loss for loss in here if loss is not None]
            losses.append(spread(known) if len(known) == len(here) else None)
        if sum(loss is not None for loss in losses) > 1:
            different = tuple(_difference(losses[0], one) for one in losses)
            found.append(Level(budget=budget, spent=spent, losses=tuple(losses), differences=different))
    return found


def gain(a: Side, b: Side, budget: Budget, metric: Metric) -> Gain:
    """Of B over A: the budget at which A's curve reaches B's last loss, over what B spent, by interpolation."""
    ours = [curve(run, budget, metric) for run in a.runs]
    theirs = [curve(run, budget, metric) for run in b.runs]
    if not all(ours) or not all(theirs):
        why = f"cannot be told: no {NAMES[budget]} were logged"
        return Gain(budget=budget, factor=None, low=None, high=None, why=(why,))
    pairs = [_factor(x, y) for x in ours for y in theirs]
    known = [factor for factor, _ in pairs if factor is not None]
    if len(known) < len(pairs):
        return _bound(pairs, budget, a)
    factor = math.exp(statistics.fmean(map(math.log, known)))
    why = [f"by interpolation on the curve of {a.name}"]
    inside = any(points[-1][0] / y[-1][0] > 1.001 * f for points in ours for y in theirs
                 for f in [_factor(points, y)[0]] if f is not None)
    if inside and a.experiment.optim.schedule != "constant":
        why.append(f"before its end the loss of {a.name} is from before its rate decayed, so a shorter run of it would "
                   "do better")
    return Gain(budget=budget, factor=factor, low=min(known), high=max(known), why=tuple(why))


def _bound(pairs: Sequence[tuple[float | None, float]], budget: Budget, a: Side) -> Gain:
    """What can be said where A's curve does not reach B's loss, or starts below it."""
    above = [bound for factor, bound in pairs if factor is None and bound > 0]
    below = [-bound for factor, bound in pairs if factor is None and bound < 0]
    if above and not below:
        least = min([*above, *(f for f, _ in pairs if f is not None)])
        why = f"{a.name} never reaches that loss: a bound, by what it spent"
        return Gain(budget=budget, factor=None, low=least, high=None, why=(why,))
    if below and not above:
        most = max([*below, *(f for f, _ in pairs if f is not None)])
        why = f"{a.name} is better at its first evaluation already: a bound, by what it had spent"
        return Gain(budget=budget, factor=None, low=None, high=most, why=(why,))
    return Gain(budget=budget, factor=None, low=None, high=None, why=("cannot be told: the seeds disagree",))


def _factor(a: Curve, b: Curve) -> tuple[float | None, float]:
    """(the gain, 0), or (None, a bound): positive if it is larger than that, negative if it is smaller."""
    spent, loss = b[-1]
    if (needed := reach(a, loss)) is not None:
        return needed / spent, 0.0
    return None, (-a[0][0] if a[0][1] < loss else a[-1][0]) / spent


def _spent(point: Evaluation, budget: Budget) -> float | None:
    return getattr(point, budget)


def spread(losses: Sequence[float]) -> Spread:
    """Over seeds."""
    deviation = statistics.stdev(losses) if len(losses) > 1 else None
    return Spread(mean=statistics.fmean(losses), deviation=deviation, runs=len(losses))


def _difference(first: Spread | None, other: Spread | None) -> tuple[float, float | None] | None:
    """Of means, with Welch's 95% interval; no interval without two seeds on each side."""
    if first is None or other is None or first is other:
        return None
    gap = other.mean - first.mean
    if first.deviation is None or other.deviation is None:
        return gap, None
    parts = [one.deviation**2 / one.runs for one in (first, other) if one.deviation is not None]
    if sum(parts) == 0:  # equal to the last digit: of the spread this tells nothing
        return gap, None
    freedom = sum(parts) ** 2 / sum(p**2 / (one.runs - 1) for p, one in zip(parts, (first, other), strict=True))
    return gap, student(0.975, freedom) * math.sqrt(sum(parts))
