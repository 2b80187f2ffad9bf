"""Does the gain of one side over another grow, hold or fade with scale? Runs of several sizes, matched size by size."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from maijax import scaling
from maijax.compare import select
from maijax.compare import trend as trends
from maijax.compare.points import left_out_words
from maijax.compare.runs import Run, Side, copies_words, gather, metric_of, value
from maijax.compare.select import Metric
from maijax.compare.trend import Needed, Trend
from maijax.errors import UserError
from maijax.words import plural

FEWEST = 3  # sizes that a verdict needs
_NEAR = math.log(1.25)  # sizes of two sides match within this factor, in parameters and in tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class Size:
    """One side's runs of one size: its best configuration, over seeds."""

    side: Side
    parameters: int  # active
    tokens: int
    tried: int  # configurations of this size


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rung:
    """A size that both sides have."""

    a: Size
    b: Size
    pairs: tuple[tuple[Run, Run], ...]  # by seed where both have it, else in order
    gains: tuple[float, ...] = ()  # ln, one per pair

    def loss(self, side: str, metric: Metric) -> float:
        """Mean over seeds."""
        return (self.a if side == "a" else self.b).side.mean_last(metric)

    def flops(self, side: str) -> float:
        """That a run of a side takes."""
        return (self.a if side == "a" else self.b).side.runs[0].last.flops


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ladder:
    """The answer, and all that it rests on."""

    a: str
    b: str
    metric: Metric
    why_metric: str
    rungs: tuple[Rung, ...]  # by compute
    trend: Trend
    needed: Needed | None  # only where nothing can be told
    notes: tuple[str, ...]

    @property
    def more_runs(self) -> int | None:
        """Runs, of both sides, that should settle it; None if seeds will not, or it is settled."""
        if self.needed is None or self.needed.seeds is None:
            return None
        return 2 * sum(max(0, self.needed.seeds - len(rung.pairs)) for rung in self.rungs)

    @property
    def gone_at(self) -> float | None:
        """FLOPs at which a fading gain would be none, beyond the largest size: the line, extrapolated."""
        if self.trend.verdict != "fades" or self.trend.top <= 0:
            return None
        top = max(rung.flops("a") for rung in self.rungs)
        return top * 10 ** (self.trend.top / -self.trend.slope)


def ladder(runs_dir: str, a: str, b: str) -> Ladder:
    """The gain of B over A by size; a name is a sweep, a folder of runs, a pattern, or patterns joined by commas.

    Raises UserError for fewer than 3 sizes that both sides have, since two points lie on any line, and for runs whose
    losses are of different held-out texts.
    """
    ours, theirs = (gather(runs_dir, name.split(","), every=True) for name in (a, b))
    metric, why = metric_of([*ours, *theirs])
    return of_sides(a, ours, b, theirs, metric=metric, why=why)


def of_sides(
    a: str, ours: Sequence[Side], b: str, theirs: Sequence[Side], *, metric: Metric, why: str = ""
) -> Ladder:
    """As `ladder`, of sides that are read already."""
    first, *others = [(side.name, side.experiment) for side in (*ours, *theirs)]
    for other in others:
        select.comparable(first, other, metric)
    notes = [copies_words(side) for side in (*ours, *theirs) if side.copies]
    notes += dict.fromkeys(said for side in (*ours, *theirs) for said in side.lost)
    sizes_a, sizes_b = (_sizes(name, sides, metric, notes) for name, sides in ((a, ours), (b, theirs)))
    rungs = _match(sizes_a, sizes_b, a, b, notes)
    if len(rungs) < FEWEST:
        raise UserError(
            f"{a} and {b} share {plural(len(rungs), 'size')} with finished runs, a verdict over scale needs {FEWEST}: "
            f"train both at more sizes{'; ' + '; '.join(notes) if notes else ''}"
        )
    table, index = [], []
    for i, rung in enumerate(rungs):
        for x, y in rung.pairs:
            table.append((x.last.flops, value(x.last, metric), y.last.flops, value(y.last, metric)))
            index.append(i)
    found = trends.trend(table, index)
    rungs = [dataclasses.replace(rung, gains=tuple(g for g, at in zip(found.gains, index, strict=True) if at == i))
             for i, rung in enumerate(rungs)]
    lacking = None
    if found.verdict == "cannot be told":
        seeds = len(table) / len(rungs)
        lacking = trends.needed(found, [math.log10(rung.flops("a")) for rung in rungs], seeds)
    for below, above in zip(rungs, rungs[1:], strict=False):
        if above.loss("a", metric) >= below.loss("a", metric):
            notes.append(f"{a} is no better at {above.a.parameters:,} parameters than at {below.a.parameters:,}, so "
                         "its law is poor and the gains are too: tune its larger sizes first")
            break
    tried = [(name, max(s.tried for s in sizes)) for name, sizes in ((a, sizes_a), (b, sizes_b))]
    if tried[0][1] != tried[1][1]:
        most = ", ".join(f"{plural(count, 'configuration')} a size in {name}" for name, count in tried)
        notes.append(f"best of up to {most}: the side that tried more is flattered")
    return Ladder(a=a, b=b, metric=metric, why_metric=why, rungs=tuple(rungs), trend=found,
                  needed=lacking, notes=tuple(notes))


def _sizes(name: str, sides: Sequence[Side], metric: Metric, notes: list[str]) -> list[Size]:
    """One for each size, the best configuration of it, by the finished runs; smallest first."""
    found: dict[tuple[int, int], list[Side]] = {}
    for side in sides:
        done = tuple(run for run in side.runs if run.finished)
        if len(done) < len(side.runs):
            notes += left_out_words([(run.name, run.fault) for run in side.runs if not run.finished])
        if done:
            one = side.experiment
            key = scaling.parameters(one.model).active, one.tokens
            found.setdefault(key, []).append(dataclasses.replace(side, runs=done))
    if not found:
        raise UserError(f"{name}: no run in it is finished; let them reach train.steps")
    best = [Size(side=min(of_size, key=lambda s: s.mean_last(metric)), parameters=key[0], tokens=key[1],
                 tried=len(of_size)) for key, of_size in found.items()]
    return sorted(best, key=lambda size: (size.parameters, size.tokens))


def _match(ours: Sequence[Size], theirs: Sequence[Size], a: str, b: str, notes: list[str]) -> list[Rung]:
    """Pairs of sizes, the nearest first, each once."""
    near = sorted(
        (max(_apart(x.parameters, y.parameters), _apart(x.tokens, y.tokens)), i, j)
        for i, x in enumerate(ours) for j, y in enumerate(theirs)
    )
    used_a: set[int] = set()
    used_b: set[int] = set()
    rungs = []
    for apart, i, j in near:
        if apart <= _NEAR and i not in used_a and j not in used_b:
            used_a.add(i)
            used_b.add(j)
            pairs = _pairs(ours[i].side.runs, theirs[j].side.runs)
            rungs.append(Rung(a=ours[i], b=theirs[j], pairs=tuple(pairs)))
            alone = len(ours[i].side.runs) + len(theirs[j].side.runs) - 2 * len(pairs)
            if alone:
                notes.append(f"without a partner, so not counted in the trend: {plural(alone, 'run')} at "
                             f"{ours[i].parameters:,} parameters")
    for name, sizes, used in ((a, ours, used_a), (b, theirs, used_b)):
        if lone := dict.fromkeys(f"{size.parameters:,}" for i, size in enumerate(sizes) if i not in used):
            notes.append(f"only {name} has {', '.join(lone)} parameters")
    return sorted(rungs, key=lambda rung: rung.flops("a"))


def _pairs(ours: Sequence[Run], theirs: Sequence[Run]) -> list[tuple[Run, Run]]:
    """By seed, since runs of one seed read the same rows; what is left over in order."""
    seeds = {run.experiment.train.seed: run for run in theirs}
    pairs, alone = [], []
    for run in ours:
        partner = seeds.pop(run.experiment.train.seed, None)
        pairs.append((run, partner)) if partner else alone.append(run)
    return pairs + list(zip(alone, seeds.values(), strict=False))


def _apart(x: float, y: float) -> float:
    return abs(math.log(x / y))
