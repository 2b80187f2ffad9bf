"""What run folders measured: held-out loss against tokens, FLOPs and seconds; sweeps and seeds. No jax."""

from __future__ import annotations

import dataclasses
import fnmatch
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from maijax import scaling
from maijax.config import Experiment
from maijax.errors import UserError
from maijax.train import metrics, rundir

Budget = Literal["tokens", "flops", "seconds"]
BUDGETS: tuple[Budget, ...] = ("tokens", "flops", "seconds")
NAMES: dict[Budget, str] = {"tokens": "tokens", "flops": "FLOPs", "seconds": "seconds"}
Metric = Literal["loss", "bits_per_byte"]
UNIT: dict[Metric, str] = {"loss": "nats per token", "bits_per_byte": "bits per byte"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Point:
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
    points: tuple[Point, ...]  # by step
    machine: str

    @property
    def family(self) -> str:
        """The same for runs that differ only in their seed."""
        values = rundir.identity(self.experiment)
        return json.dumps({k: v for k, v in values.items() if k not in ("train.seed", "name")}, default=str)

    @property
    def finished(self) -> bool:
        return bool(self.points) and self.points[-1].step >= self.experiment.train.steps

    @property
    def last(self) -> Point:
        return self.points[-1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Side:
    """What is compared as one: runs that differ only in their seed."""

    name: str
    runs: tuple[Run, ...]
    how: str = ""  # how they were chosen, where there was a choice

    @property
    def experiment(self) -> Experiment:
        return self.runs[0].experiment

    def mean_last(self, metric: Metric) -> float:
        return statistics.fmean(value(run.last, metric) for run in self.runs)


def value(point: Point, metric: Metric) -> float:
    """A point's number; the metric must be one that `metric_of` chose."""
    found = point.loss if metric == "loss" else point.bits_per_byte
    assert found is not None
    return found


def read(folder: Path) -> Run:
    """A run folder's evaluations; raises UserError if its experiment.json is damaged."""
    experiment = rundir.load(folder)
    records = metrics.read(folder)
    clock = [(0, 0.0)] + [(r["step"], seconds) for r in records
                          if r["kind"] == "train" and (seconds := _number(r.get("seconds"))) is not None]
    each = experiment.train.batch_size * experiment.train.seq_len
    flops = scaling.train_flops_per_token(experiment.model, experiment.train.seq_len)
    found: dict[int, Point] = {}
    for record in records:  # the last of a step counts: the look at all held-out text comes after the quick one
        loss = _number(record.get("loss"))
        if record["kind"] == "eval" and loss is not None and record["step"] > 0:
            step, scored = record["step"], record.get("tokens")
            found[step] = Point(
                step=step, tokens=step * each, flops=step * each * flops, seconds=_seconds(clock, step),
                loss=loss, bits_per_byte=_number(record.get("bits_per_byte")),
                scored=scored if isinstance(scored, int) else None,
            )
    return Run(
        name=folder.resolve().name, folder=folder, experiment=experiment,
        points=tuple(found[step] for step in sorted(found)), machine=_machine(folder),
    )


def is_run(runs_dir: str | Path, name: str) -> bool:
    """Whether a name, path or pattern leads to at least one run folder."""
    return bool(_folders(runs_dir, name))


def gather(runs_dir: str | Path, names: Sequence[str], *, every: bool = False) -> list[Side]:
    """The sides that names of runs, folders, sweeps and patterns make; runs that differ only in seed are one side.

    A sweep gives its best run and that run's other seeds, or all its runs with `every`. Raises UserError for a name
    without runs, and for a run without an evaluation.
    """
    sides: list[Side] = []
    for name in names:
        folders = _folders(runs_dir, name)
        if not folders:
            rundir.find(runs_dir, name)  # raises, with the names there are
        swept = len(folders) > 1 and not _is_pattern(name)
        made = group([read(folder) for folder in folders], leave_out=len(folders) > 1)
        if not made:
            raise UserError(f"{name}: no run in it has been evaluated on held-out text yet; let one reach "
                            "train.eval_every, or its end")
        if swept and not every:
            made = [_best(name, made, len(folders))]
        sides += made
    merged: dict[str, Side] = {}
    for side in sides:  # seeds that were named one by one
        before = merged.get(side.runs[0].family)
        known = {run.folder.resolve() for run in before.runs} if before else set()
        new = [run for run in side.runs if run.folder.resolve() not in known]
        if before is None:
            merged[side.runs[0].family] = side
        elif new:
            runs = (*before.runs, *new)
            merged[side.runs[0].family] = Side(name=_title(runs), runs=runs, how=before.how or side.how)
    return list(merged.values())


def group(runs: Sequence[Run], *, leave_out: bool = False) -> list[Side]:
    """One side for each family, in order; a run without a point is left out, or raises UserError."""
    families: dict[str, list[Run]] = {}
    for run in runs:
        if run.points:
            families.setdefault(run.family, []).append(run)
        elif not leave_out:
            raise UserError(f"run {run.name}: no evaluation on held-out text yet; let it reach train.eval_every, "
                            "or its end")
    return [Side(name=_title(found), runs=tuple(found)) for found in families.values()]


def metric_of(sides: Sequence[Side]) -> tuple[Metric, str]:
    """What all sides can be compared by, and why: nats per token only where all share one tokenizer.

    Raises UserError if they do not and some have no bits per byte.
    """
    tokenizers = {(one.data.tokenizer, one.data.tokenizer_kind, one.model.vocab_size, one.data.sources,
                   one.data.held_out) for side in sides for one in [side.experiment]}
    if len(tokenizers) == 1:
        return "loss", "nats per token: all share one tokenizer"
    bare = [run.name for side in sides for run in side.runs for p in run.points if p.bits_per_byte is None]
    if bare:
        raise UserError(f"run {bare[0]}: has no bits per byte, and its tokenizer is not that of the others; "
                        "compare runs that share data and vocabulary")
    return "bits_per_byte", "bits per byte: the tokenizers or corpora differ"


def cautions(sides: Sequence[Side]) -> list[str]:
    """What a reader must know before believing the numbers."""
    found = []
    experiments = [side.experiment for side in sides]
    if len({(one.data.sources, one.data.held_out) for one in experiments}) > 1:
        found.append("the corpora differ, and so does the text that is held out")
    for side in sides:
        for run in side.runs:
            if not run.finished:
                found.append(f"{run.name} is not finished: step {run.last.step:,} of "
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


def _best(name: str, sides: Sequence[Side], trials: int) -> Side:
    metric, _ = metric_of(sides)
    done = [side for side in sides if all(run.finished for run in side.runs)] or list(sides)
    best = min(done, key=lambda side: side.mean_last(metric))
    how = f"best of the {trials} runs in {name}, by its last held-out loss"
    sizes = len({scaling.parameters(side.experiment.model).active for side in sides})
    if sizes > 2:
        how += f"; of its {sizes} sizes, --ladder tells more"
    return dataclasses.replace(best, name=f"{Path(name).name}/{best.name}", how=how)


def _folders(runs_dir: str | Path, name: str) -> list[Path]:
    """Run folders: the one that a name or path means, those inside it, or those that a pattern means."""
    bare = name.rstrip("/") or name
    if _is_pattern(bare):
        root, _, last = bare.rpartition("/")
        base = Path(root) if root else Path(runs_dir)
        inside = sorted(p for p in base.glob("*") if fnmatch.fnmatch(p.name, last)) if not _is_pattern(root) else []
        return [run for folder in inside for run in _runs_at(folder)]
    for folder in (Path(bare), Path(runs_dir) / bare):
        if found := _runs_at(folder):
            return found
    return []


def _runs_at(folder: Path) -> list[Path]:
    if (folder / "experiment.json").is_file():
        return [folder]
    return sorted((p.parent for p in folder.glob("*/experiment.json")), key=_natural)


def _natural(folder: Path) -> tuple[int, str]:
    """trial-2 before trial-10."""
    return len(folder.name), folder.name


def _is_pattern(text: str) -> bool:
    return bool(set(text) & set("*?["))


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
