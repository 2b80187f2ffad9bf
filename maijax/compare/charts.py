"""The pictures of a comparison, as values that the page's script draws: every series with all the axes it can have."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from maijax import scaling
from maijax.compare.ladder import Ladder
from maijax.compare.measured import Measured, factor
from maijax.compare.runs import BUDGETS, NAMES, value
from maijax.compare.select import UNIT
from maijax.compare.static import Comparison, active, expected_loss

_POINTS = 60  # of a law's line
_AXES = {**NAMES, "parameters": "active parameters"}
Style = Literal["line", "dash", "points", "band"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Series:
    """One curve, or points, or the band between two curves."""

    name: str
    color: int  # the same for what belongs to one side; -1: a law
    x: Mapping[str, Sequence[float | None]]  # by axis
    y: Sequence[float]
    high: Sequence[float] = ()  # of a band, whose y is its lower edge
    style: Style = "line"
    group: str = ""  # shown and hidden together, by this name; "": alone


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chart:
    """One picture; the first axis is shown first."""

    title: str
    unit: str
    axes: Sequence[str]  # keys of every series' x
    series: Sequence[Series]
    log_y: bool = False

    def plain(self) -> dict[str, Any]:
        """For the page's script."""
        made = dataclasses.asdict(self)
        made["axes"] = [[axis, _AXES[axis]] for axis in self.axes]
        return made


def of_experiments(compared: Comparison) -> list[Chart]:
    """Where each stands beside the laws: size and budget, rate, batch, and the loss that is expected."""
    experiments = compared.experiments
    reach = [size for one in experiments for size in (active(one), one.tokens / 20)]
    low, high = min(reach) / 2, max(reach) * 2
    sizes = _spaced(low, high)
    horizon = [20 * n for n in sizes]
    flops = [6 * n * d for n, d in zip(sizes, horizon, strict=True)]
    best = [scaling.compute_optimal(c) for c in flops]

    def points(i: int, y: float) -> Series:
        one = experiments[i]
        at = {"parameters": [active(one)], "flops": [scaling.train_flops(one)], "tokens": [one.tokens]}
        return Series(name=one.name, color=i, x=at, y=[y], style="points")

    along = {"parameters": sizes, "flops": flops, "tokens": horizon}
    every = range(len(experiments))
    charts = [
        Chart(title="Size and budget", unit="training tokens", axes=("parameters", "flops"), log_y=True, series=[
            Series(name="20 tokens per parameter", color=-1, x=along, y=horizon),
            Series(name="compute-optimal, Epoch refit", color=-1, style="dash",
                   x={"parameters": [n for n, _ in best], "flops": flops}, y=[d for _, d in best]),
            *(points(i, experiments[i].tokens) for i in every),
        ]),
        Chart(title="Peak learning rate", unit="Step Law is AdamW's, at 20 tokens per parameter",
              axes=("parameters", "tokens", "flops"), log_y=True, series=[
            Series(name="Step Law", color=-1, x=along,
                   y=[scaling.step_law_lr(n, d) for n, d in zip(sizes, horizon, strict=True)]),
            *(points(i, experiments[i].optim.lr) for i in every),
        ]),
        Chart(title="Batch", unit="tokens per step", axes=("tokens", "parameters", "flops"), log_y=True, series=[
            Series(name="Step Law", color=-1, x=along, y=[scaling.step_law_batch(d) for d in horizon]),
            *(points(i, experiments[i].train.batch_size * experiments[i].train.seq_len) for i in every),
        ]),
    ]
    law = _expected(compared)
    return [*charts, law] if law.series else charts


def _expected(compared: Comparison) -> Chart:
    series = []
    steps = compared.step_seconds or (None,) * len(compared.experiments)
    for i, (one, step) in enumerate(zip(compared.experiments, steps, strict=True)):
        tokens = _spaced(one.tokens * 1e-3, one.tokens)
        known = [(d, loss) for d in tokens if (loss := expected_loss(one, d)) is not None]
        each = scaling.train_flops_per_token(one.model, one.train.seq_len)
        per_step = one.train.batch_size * one.train.seq_len
        x: dict[str, Sequence[float | None]] = {"tokens": [d for d, _ in known], "flops": [d * each for d, _ in known]}
        if any(steps):
            x["seconds"] = [None if step is None else d / per_step * step for d, _ in known]
        if known:
            series.append(Series(name=one.name, color=i, x=x, y=[loss for _, loss in known]))
    axes = ("flops", "tokens", *(("seconds",) if any(steps) else ()))
    return Chart(title="Loss that the law expects", unit="nats per token of web text, Epoch refit", axes=axes,
                 series=series)


def of_runs(found: Measured) -> Chart:
    """Held-out loss of every run, over tokens, FLOPs or seconds."""
    series = []
    for i, side in enumerate(found.sides):
        for run in side.runs:
            x: dict[str, list[float | None]] = {
                axis: [getattr(point, axis) for point in run.points] for axis in BUDGETS
            }
            series.append(Series(name=run.name, color=i, x=x, y=[value(p, found.metric) for p in run.points],
                                 group=side.name))
    return Chart(title="Held-out loss", unit=UNIT[found.metric], axes=BUDGETS, series=series)


def of_ladder(found: Ladder) -> list[Chart]:
    """The gain by size with its line and interval, and the losses it is read from."""
    trend = found.trend
    spent = [rung.flops("a") for rung in found.rungs]
    xs = [math.log10(c) for rung, c in zip(found.rungs, spent, strict=True) for _ in rung.pairs]
    middle, top = sum(xs) / len(xs), max(xs)
    line_x = [10 ** (min(xs) + (top - min(xs)) * i / 40) for i in range(41)]
    away = [math.log10(c) for c in line_x]
    line = [trend.top + trend.slope * (x - top) for x in away]
    # The half-width at x: that of the mean, from the one at the top, and the slope's share.
    mean_half = math.sqrt(max(0.0, trend.top_half**2 - (trend.half * (top - middle)) ** 2))
    half = [math.hypot(mean_half, trend.half * (x - middle)) for x in away]
    pairs = [(c, factor(g)) for rung, c in zip(found.rungs, spent, strict=True) for g in rung.gains]
    gains = Chart(title=f"Gain of {found.b} over {found.a}", unit="times as much compute that the first needs",
                  axes=("flops",), log_y=True, series=[
        Series(name="95% interval", color=0, style="band", x={"flops": line_x},
               y=[factor(y - h) for y, h in zip(line, half, strict=True)],
               high=[factor(y + h) for y, h in zip(line, half, strict=True)]),
        Series(name="line", color=0, style="line", x={"flops": line_x}, y=[factor(y) for y in line]),
        Series(name="no gain", color=-1, style="dash", x={"flops": [line_x[0], line_x[-1]]}, y=[1.0, 1.0]),
        Series(name="pairs of runs", color=1, style="points", x={"flops": [c for c, _ in pairs]},
               y=[g for _, g in pairs]),
    ])
    law = trend.law
    losses = [Series(name=f"law of {found.a}", color=-1, style="dash", x={"flops": line_x},
                     y=[law.floor + law.scale * c**-law.exponent for c in line_x])]
    for color, (name, side) in enumerate(((found.a, "a"), (found.b, "b"))):
        runs = [(rung, run) for rung in found.rungs for run in getattr(rung, side).side.runs]
        losses.append(Series(
            name=name, color=color, style="points", x={"flops": [run.last.flops for _, run in runs],
                                                       "tokens": [run.last.tokens for _, run in runs],
                                                       "seconds": [run.last.seconds for _, run in runs],
                                                       "parameters": [getattr(r, side).parameters for r, _ in runs]},
            y=[value(run.last, found.metric) for _, run in runs],
        ))
    return [gains, Chart(title="Last losses by size", unit=UNIT[found.metric],
                         axes=("flops", "tokens", "seconds", "parameters"), series=losses)]


def _spaced(low: float, high: float) -> list[float]:
    """Evenly in the logarithm."""
    return [low * (high / low) ** (i / (_POINTS - 1)) for i in range(_POINTS)]
