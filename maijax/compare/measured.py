"""Runs beside one another: everything that is told of them, computed once for text, JSON and the page."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from maijax import words
from maijax.compare import budget as budgets
from maijax.compare.budget import Gain, Level, Spread
from maijax.compare.ladder import Ladder
from maijax.compare.runs import BUDGETS, Budget, Side, cautions, metric_of, value
from maijax.compare.select import Metric
from maijax.compare.trend import Needed

OVER_PAIRS = ", range over pairs of seeds"  # what stands beside a gain is no interval


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """Two or more sides; the first is what the others are measured against."""

    sides: tuple[Side, ...]
    metric: Metric
    why_metric: str
    ends: tuple[Spread, ...]  # each side's last losses
    levels: tuple[Level, ...]
    gains: tuple[tuple[Gain, ...], ...]  # of each side but the first: one per budget
    cautions: tuple[str, ...]

    @property
    def told_levels(self) -> list[Level]:
        """Those that say something of their own: equal FLOPs are equal tokens where a token costs all the same."""
        costs = {round(run.last.flops / run.last.tokens) for side in self.sides for run in side.runs}
        return [level for level in self.levels if level.budget != "flops" or len(costs) > 1]

    @property
    def notes(self) -> list[str]:
        """What limits the gains and what else a reader must know, each once."""
        return list(dict.fromkeys([*(why for gains in self.gains for gain in gains for why in gain.why),
                                   *self.cautions]))


def measure(sides: Sequence[Side]) -> Measured:
    """Of one side or more; raises UserError if they cannot be compared by one number."""
    metric, why = metric_of(sides)
    ends = tuple(budgets.spread([value(run.last, metric) for run in side.runs]) for side in sides)
    levels = [level for kind in BUDGETS for level in budgets.levels(sides, kind, metric)]
    gains = [tuple(budgets.gain(sides[0], side, kind, metric) for kind in BUDGETS) for side in sides[1:]]
    return Measured(
        sides=tuple(sides), metric=metric, why_metric=why, ends=ends, levels=tuple(levels), gains=tuple(gains),
        cautions=tuple(cautions(sides)),
    )


def plainly(found: Measured) -> dict[str, Any]:
    """For programs."""
    return {
        "metric": found.metric, "why": found.why_metric, "cautions": list(found.cautions),
        "sides": [{
            "name": side.name, "how": side.how, "runs": [{
                "name": run.name, "folder": str(run.folder), "seed": run.experiment.train.seed,
                "finished": run.finished, "points": [dataclasses.asdict(p) for p in run.points],
            } for run in side.runs],
        } for side in found.sides],
        "equal_budgets": [dataclasses.asdict(level) for level in found.levels],
        "gains": [{"of": side.name, "over": found.sides[0].name, "by": [dataclasses.asdict(g) for g in gains]}
                  for side, gains in zip(found.sides[1:], found.gains, strict=True)],
    }


def ladder_plainly(found: Ladder) -> dict[str, Any]:
    """For programs; gains are factors, slopes factors per tenfold compute."""
    trend, low_high = found.trend, interval(found.trend.slope, found.trend.half)
    return {
        "a": found.a, "b": found.b, "metric": found.metric, "verdict": trend.verdict,
        "per_tenfold": low_high, "at_the_top": interval(trend.top, trend.top_half), "gone_at": found.gone_at,
        "sigma": trend.sigma, "freedom": trend.freedom, "curved": trend.curved, "law_share": trend.law_share,
        "law": dataclasses.asdict(trend.law),
        "needed": None if found.needed is None else dataclasses.asdict(found.needed) | {"runs": found.more_runs},
        "notes": list(found.notes),
        "rungs": [{
            "parameters": [rung.a.parameters, rung.b.parameters], "tokens": [rung.a.tokens, rung.b.tokens],
            "runs": [[x.name, y.name] for x, y in rung.pairs], "tried": [rung.a.tried, rung.b.tried],
            "flops": [rung.flops("a"), rung.flops("b")],
            "loss": [rung.loss("a", found.metric), rung.loss("b", found.metric)],
            "gains": [factor(g) for g in rung.gains],
        } for rung in found.rungs],
    }


def interval(middle: float, half: float) -> list[float]:
    """[factor, low, high] of a logarithm and its half-width."""
    return [factor(middle), factor(middle - half), factor(middle + half)]


def factor(log: float) -> float:
    """Of a logarithm, kept finite."""
    return math.exp(max(-200.0, min(200.0, log)))


def amount(budget: Budget, spent: float) -> str:
    """30.7K tokens, 1.2e+15 FLOPs, 12 min."""
    if budget == "seconds":
        return words.duration(spent)
    return f"{words.count(spent)} tokens" if budget == "tokens" else f"{spent:.3g} FLOPs"


def spread(one: Spread | None) -> str:
    """3.806±0.012: mean and a single run's deviation."""
    if one is None:
        return "-"
    return f"{one.mean:.3f}" + (f"±{one.deviation:.3f}" if one.deviation is not None else "")


def gain_words(gain: Gain) -> str:
    """x1.25, 1.21 to 1.29, or a bound; the range is over the pairs of seeds, no interval."""
    if gain.factor is None:
        return f"> x{gain.low:.3g}" if gain.low else f"< x{gain.high:.3g}" if gain.high else "?"
    return ranged(gain.factor, [end for end in (gain.low, gain.high) if end is not None])


def ranged(middle: float, gains: Sequence[float]) -> str:
    """x1.25, 1.21 to 1.29: a gain, and the least and the most of those that it is of, where there are several."""
    text = f"x{middle:.3g}"
    return f"{text}, {min(gains):.3g} to {max(gains):.3g}" if gains and max(gains) > min(gains) else text


def times(value: float) -> str:
    """A factor; what is so far off that it says nothing is cut."""
    return ">x1000" if value > 1e3 else "<x0.001" if value < 1e-3 else f"x{value:.3g}"


def verdict_words(found: Ladder) -> list[str]:
    """The answer in sentences: what the gain does, how large it is, and what would settle it."""
    trend = found.trend
    middle, low, high = map(times, interval(trend.slope, trend.half))
    top, top_low, top_high = map(times, interval(trend.top, trend.top_half))
    word = f"the gain {trend.verdict}"
    if trend.verdict == "cannot be told":
        word = "whether the gain grows, holds or fades cannot be told"
    said = [f"{word}: {middle} per tenfold FLOPs (95% interval {low} to {high}); {top} at the largest size "
            f"({top_low} to {top_high})"]
    if (gone := found.gone_at) is not None:
        said.append(f"on this line it is gone at {gone:.2g} FLOPs, which extrapolates")
    if trend.curved:
        said.append("the sizes lie off a straight line by more than their seeds' spread, so the interval counts "
                    "sizes, not seeds: more seeds would not narrow it")
    if found.needed is not None:
        said.append(_settle(found, found.needed))
    return said


def _settle(found: Ladder, lacking: Needed) -> str:
    ways = []
    if lacking.seeds is not None:
        ways.append(f"{words.plural(lacking.seeds, 'seed')} of every size on both sides ({found.more_runs} more runs)")
    if lacking.sizes is not None and lacking.sizes > len(found.rungs):
        ways.append(f"{words.plural(lacking.sizes - len(found.rungs), 'larger size')} at the same spacing")
    if not ways:
        return ("no sensible number of runs would settle it: the slope lies too near the margin, or the spread is too "
                "wide")
    return (f"to show that it {lacking.towards}, with 80% power: {' or '.join(ways)}, the fewest r (or k) with "
            "(t.975 + t.8) sigma / sqrt(r S) <= D (docs/compare.md)")
