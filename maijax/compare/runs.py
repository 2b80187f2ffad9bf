"""What run folders measured: held-out loss against tokens, FLOPs and seconds; sweeps and seeds. No jax."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from maijax import scaling
from maijax.compare import select
from maijax.compare.select import Metric
from maijax.config import Experiment
from maijax.errors import UserError
from maijax.train import metrics, rundir
from maijax.words import plural

Budget = Literal["tokens", "flops", "seconds"]
BUDGETS: tuple[Budget, ...] = ("tokens", "flops", "seconds")
NAMES: dict[Budget, str] = {"tokens": "tokens", "flops": "FLOPs", "seconds": "seconds"}
_UNFINISHED = "not finished"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One evaluation on text held out, and what had been spent by then."""

    step: int
    tokens: int
    flops: float
    seconds: float | None  # in the loop, evaluation and samples included
    loss: float  # nats per token
    bits_per_byte: float | None
    scored: int | None  # tokens of the text that it was measured on


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One run folder."""

    name: str
    folder: Path
    experiment: Experiment
    points: tuple[Evaluation, ...]  # by step
    finished: bool
    machine: str
    fault: str  # why it cannot be trusted as whole: not finished, or its metrics damaged; or empty

    @property
    def family(self) -> str:
        """The same for runs that differ only in their seed."""
        return select.family(self.experiment)

    @property
    def last(self) -> Evaluation:
        return self.points[-1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Side:
    """What is compared as one: runs that differ only in their seed, one of each."""

    name: str
    runs: tuple[Run, ...]
    copies: tuple[str, ...] = ()  # runs of a seed that is there already: they say nothing of the spread
    how: str = ""  # how they were chosen, where there was a choice
    lost: tuple[str, ...] = ()  # of the runs that it was chosen from, those that cannot be read, and why

    @property
    def experiment(self) -> Experiment:
        return self.runs[0].experiment

    def mean_last(self, metric: Metric) -> float:
        return statistics.fmean(value(run.last, metric) for run in self.runs)


def value(point: Evaluation, metric: Metric) -> float:
    """A point's number; the metric must be one that `metric_of` chose."""
    found = point.loss if metric == "loss" else point.bits_per_byte
    assert found is not None
    return found


def read(folder: Path) -> Run:
    """A run folder's evaluations; raises UserError if its experiment.json is damaged."""
    experiment = rundir.load(folder)
    records, damage = metrics.examine(folder)
    clock = [(0, 0.0)] + [(r["step"], seconds) for r in records
                          if r["kind"] == "train" and (seconds := _number(r.get("seconds"))) is not None]
    each = experiment.train.batch_size * experiment.train.seq_len
    flops = scaling.train_flops_per_token(experiment.model, experiment.train.seq_len)
    found: dict[int, Evaluation] = {}
    for record in records:  # the last of a step counts: the look at all held-out text comes after the quick one
        loss = _number(record.get("loss"))
        if record["kind"] == "eval" and loss is not None and record["step"] > 0:
            step, scored = record["step"], record.get("tokens")
            found[step] = Evaluation(
                step=step, tokens=step * each, flops=step * each * flops, seconds=_seconds(clock, step),
                loss=loss, bits_per_byte=_number(record.get("bits_per_byte")),
                scored=scored if isinstance(scored, int) else None,
            )
    last = metrics.final(records)
    finished = last is not None and _number(last.get("loss")) is not None
    fault = damage or ("" if finished else "its last held-out loss is no number" if last else _UNFINISHED)
    return Run(
        name=select.title(folder), folder=folder, experiment=experiment,
        points=tuple(found[step] for step in sorted(found)), finished=finished, machine=_machine(folder), fault=fault,
    )


def is_run(runs_dir: str | Path, name: str) -> bool:
    """Whether a name, path or pattern leads to at least one run folder."""
    return bool(select.folders(runs_dir, name))


def gather(runs_dir: str | Path, names: Sequence[str], *, every: bool = False) -> list[Side]:
    """The sides that names of runs, folders, sweeps and patterns make; runs that differ only in seed are one side.

    A sweep gives its best run and that run's other seeds, or all its runs with `every`. Raises UserError for a name
    without runs, and for one run without an evaluation; of several, those are left out.
    """
    sides: list[Side] = []
    for name in names:
        folders = select.folders(runs_dir, name)
        if not folders:
            rundir.find(runs_dir, name)  # raises, with the names there are
        swept = len(folders) > 1 and not select.is_pattern(name)
        evaluated, lost = _evaluated(folders)
        if not evaluated:
            raise UserError("; ".join([f"{name}: no run in it has been evaluated on held-out text yet; let one reach "
                                       "train.eval_every, or its end", *lost]))
        made = _group(evaluated)
        if swept and not every:
            made = [_best(name, made, len(folders))]
        sides += [dataclasses.replace(made[0], lost=lost), *made[1:]]
    merged: dict[str, Side] = {}
    for side in sides:  # seeds that were named one by one
        family = side.runs[0].family
        if (before := merged.get(family)) is None:
            merged[family] = side
            continue
        known = {run.folder.resolve() for run in before.runs}
        lost = tuple(dict.fromkeys([*before.lost, *side.lost]))
        merged[family] = dataclasses.replace(before, lost=lost)
        if new := [run for run in side.runs if run.folder.resolve() not in known]:
            both = _side([*before.runs, *new])
            copies = tuple(dict.fromkeys([*before.copies, *side.copies, *both.copies]))
            merged[family] = dataclasses.replace(both, copies=copies, how=before.how or side.how, lost=lost)
    return list(merged.values())


def _evaluated(folders: Sequence[Path]) -> tuple[list[Run], tuple[str, ...]]:
    """(the runs with an evaluation, of the others those that cannot be read, and why).

    One run by itself cannot be left out: raises UserError if it has no evaluation.
    """
    found: list[Run] = []
    lost: list[str] = []
    alone = len(folders) == 1
    for folder in folders:
        try:
            run = read(folder)
        except UserError as error:
            if alone:
                raise
            lost.append(f"{select.title(folder)} left out: {error}")
            continue
        if run.points:
            found.append(run)
        elif alone and run.fault == _UNFINISHED:
            raise UserError(f"run {run.name}: no evaluation on held-out text yet; let it reach train.eval_every, "
                            "or its end")
        elif alone:
            raise UserError(f"run {run.name}: {run.fault}, and no evaluation of it can be read; make it anew")
        elif run.fault != _UNFINISHED:
            lost.append(f"{run.name} left out: {run.fault}, and no evaluation of it can be read")
    return found, tuple(lost)


def _group(runs: Sequence[Run]) -> list[Side]:
    """One side for each family, in order."""
    families: dict[str, list[Run]] = {}
    for run in runs:
        families.setdefault(run.family, []).append(run)
    return [_side(found) for found in families.values()]


def metric_of(sides: Sequence[Side]) -> tuple[Metric, str]:
    """What all sides can be compared by, and why: nats per token only where all share one tokenizer.

    Raises UserError if they do not and some have no bits per byte.
    """
    first, *others = [side.experiment for side in sides]
    if not any(select.unlike(first, other, select.TEXT + select.PIECES) for other in others):
        return "loss", "nats per token: all share one tokenizer"
    bare = [run.name for side in sides for run in side.runs for p in run.points if p.bits_per_byte is None]
    if bare:
        raise UserError(f"run {bare[0]}: has no bits per byte, and its tokenizer is not that of the others; "
                        "compare runs that share data and vocabulary")
    return "bits_per_byte", "bits per byte: the tokenizers or corpora differ"


def cautions(sides: Sequence[Side]) -> list[str]:
    """What a reader must know before believing the numbers."""
    found = []
    first, *others = [side.experiment for side in sides]
    if any(select.unlike(first, other, select.TEXT) for other in others):
        found.append("the corpora differ, and so does the text that is held out")
    for side in sides:
        if side.copies:
            found.append(copies_words(side))
        found += side.lost
        for run in side.runs:
            if run.fault:
                found.append(f"{run.name}: {run.fault}, evaluated up to step {run.last.step:,} of "
                             f"{run.experiment.train.steps:,}")
            scored = [p.scored for p in run.points if p.scored]
            if scored and scored[-1] > 1.5 * min(scored):
                found.append(f"{run.name}: its last point is measured on all held-out text ({scored[-1]:,} tokens), "
                             f"those before on part of it ({min(scored):,})")
    machines = {run.machine for side in sides for run in side.runs if run.machine}
    if len(machines) > 1:
        found.append(f"seconds are of different machines: {'; '.join(sorted(machines))}")
    scored_notes = [text for text in found if "its last point" in text]
    if len(scored_notes) > 1:  # once is enough
        found = [text for text in found if "its last point" not in text]
        found.append("last points are measured on all held-out text, those before on part of it "
                     "(train.eval_sequences)")
    return found


def copies_words(side: Side) -> str:
    """What was left out of a side, and why."""
    return f"{', '.join(side.copies)} left out: of the same seed as a run of {side.name}, which tells nothing more"


def _side(runs: Sequence[Run]) -> Side:
    """Of one family: of each seed the run that came farthest."""
    seeds: dict[int, Run] = {}
    for run in sorted(runs, key=lambda run: -run.last.step):
        seeds.setdefault(run.experiment.train.seed, run)
    kept = {run.folder for run in seeds.values()}
    found = tuple(run for run in runs if run.folder in kept)
    return Side(name=_title(found), runs=found, copies=tuple(run.name for run in runs if run.folder not in kept))


def _best(name: str, sides: Sequence[Side], trials: int) -> Side:
    metric, _ = metric_of(sides)
    done = [side for side in sides if all(run.finished for run in side.runs)] or list(sides)
    best = min(done, key=lambda side: side.mean_last(metric))
    how = f"best of the {plural(trials, 'run')} in {name}, by its last held-out loss"
    sizes = len({scaling.parameters(side.experiment.model).active for side in sides})
    if sizes > 2:
        how += f"; of its {sizes} sizes, --ladder tells more"
    title = best.name if "/" in best.name else f"{Path(name).name}/{best.name}"
    return dataclasses.replace(best, name=title, how=how)


def _title(runs: Sequence[Run]) -> str:
    return runs[0].name if len(runs) == 1 else f"{runs[0].name} ({len(runs)} seeds)"


def _seconds(clock: Sequence[tuple[int, float]], step: int) -> float | None:
    """When a step was done, between the log lines around it; None beyond the last."""
    if len(clock) < 2 or step > clock[-1][0]:
        return None
    for (s0, t0), (s1, t1) in zip(clock, clock[1:], strict=False):
        if s0 <= step <= s1:
            return t1 if s1 == s0 else t0 + (t1 - t0) * (step - s0) / (s1 - s0)
    return None


def _machine(folder: Path) -> str:
    try:
        known: Any = json.loads((folder / "environment.json").read_text())
        return f"{known['devices']}, {known['cpu']}"
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _number(value: Any) -> float | None:
    """A finite number, or None: what is not finite is null in the file."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)
