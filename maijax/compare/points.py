"""What a law is fitted to: size, length and held-out loss of finished runs, or of a file of published ones. No jax."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from maijax import overrides, plain, scaling, weights
from maijax.compare import select
from maijax.compare.meaning import differences
from maijax.compare.select import Metric
from maijax.config import Experiment, ModelConfig
from maijax.errors import UserError
from maijax.train import metrics, rundir

# Which parameters N counts. A law's exponents depend on it: nanochat's points gave N ~ C^0.54 with one and C^0.37 with
# another; arXiv 2406.12907 explains Kaplan's 0.73 by it.
COUNTS: dict[str, Callable[[ModelConfig], int]] = {
    "active": weights.count_active,
    "total": weights.count,
    "matmul": scaling.matmul_parameters,
    "non-embedding": lambda model: weights.count_active(model) - scaling.parameters(model).embedding,
}
_FILES = (".csv", ".json")
LEDGER = "ledger.jsonl"  # lies among the runs, so that `runs/*` names it too
_COLUMNS = ("params", "tokens", "loss")
_SIZE = tuple(f"model.{path}" for path in (  # what N counts
    "num_layers", "d_model", "d_ff", "attention.num_heads", "attention.kv_heads", "attention.head_dim",
    "moe.num_experts", "moe.d_ff", "moe.shared_experts", "moe.first_dense",
))
_LENGTH = ("train.steps", "train.seed")  # with the size, what tells the points of a law and their seeds apart
SAID = 8  # runs that a line names


@dataclasses.dataclass(frozen=True, kw_only=True)
class Point:
    """One configuration at one size and length, by the mean of its seeds."""

    name: str
    params: float
    tokens: float  # trained on
    flops: float
    loss: float  # held out, at the end; nats per token unless bits per byte were asked for
    losses: tuple[float, ...] = ()  # of each seed
    runs: tuple[str, ...] = ()  # the folder of each seed's run; those of a file have none
    digests: tuple[str, ...] = ()  # of each seed's configuration, see `select.digest`; those of a file have none


@dataclasses.dataclass(frozen=True, kw_only=True)
class Points:
    """What was found, and what was not taken: (name, why)."""

    points: tuple[Point, ...]
    left_out: tuple[tuple[str, str], ...] = ()
    run: tuple[str, Experiment] | None = None  # one of the runs, by whose text others are compared; None: files only
    differ: tuple[tuple[str, tuple[str, ...]], ...] = ()  # settings that are not the same in all, and their values


def gather(
    runs: Sequence[str], *, runs_dir: str | Path = "runs", count: str = "active", measure: Metric = "loss"
) -> Points:
    """The points of runs, of folders of runs, and of .csv or .json files of points; raises UserError.

    Only the last evaluation of a finished run counts: one before the cooldown belongs to another curve. The seeds of a
    configuration are one point, since what they share is drawn once, and so are a file's points of one size and length;
    of several configurations at one size and length the best is taken.
    """
    read: list[Point] = []
    left_out: list[tuple[str, str]] = []
    ended: dict[Path, tuple[Path, Experiment, float]] = {}  # by the run's folder, so that none counts twice
    for run in runs:
        if Path(run).name == LEDGER:
            continue
        folders = select.folders(runs_dir, run)  # first: a run's name may end as a file's does
        if not folders and run.endswith(_FILES) and not Path(run).is_dir():
            read += read_file(run, measure)
            continue
        for folder in folders or [rundir.find(runs_dir, run)]:
            if folder.resolve() in ended:
                continue
            try:
                experiment = rundir.load(folder)
            except UserError as error:
                if len(folders) == 1:
                    raise
                left_out.append((select.title(folder), str(error)))
                continue
            records, damage = metrics.examine(folder)
            last = metrics.final(records)
            if last is None:
                left_out.append((select.title(folder), damage or "not finished"))
            elif not _sound(last.get(measure)):
                left_out.append((select.title(folder), f"its held-out {measure} is no number"))
            else:
                ended[folder.resolve()] = folder, experiment, float(last[measure])
    first = next(((select.title(folder), experiment) for folder, experiment, _ in ended.values()), None)
    ran = []
    for folder, experiment, loss in ended.values():
        name = select.title(folder)
        if first is not None:
            select.comparable(first, (name, experiment), measure)
        point = of_experiment(experiment, name=name, count=count)
        ran.append((dataclasses.replace(point, loss=loss, runs=(str(folder),)), experiment))
    places: dict[tuple[float, float], list[Point]] = {}
    for point in read:
        places.setdefault((point.params, point.tokens), []).append(point)
    found = [*map(_mean, places.values()), *_best(ran, left_out)]
    if not found:
        raise UserError("; ".join([f"no finished run among {', '.join(runs)}", *left_out_words(left_out)]))
    taken = {digest for point in found for digest in point.digests}
    experiments = [experiment for _, experiment in ran if select.digest(experiment) in taken]
    return Points(points=tuple(found), left_out=tuple(left_out), run=first, differ=tuple(differ(experiments)))


def left_out_words(left_out: Sequence[tuple[str, str]]) -> list[str]:
    """A line for each reason, with the runs that it holds for."""
    reasons: dict[str, list[str]] = {}
    for name, why in left_out:
        reasons.setdefault(why, []).append(name)
    return [f"left out, {why}: {', '.join(names[:SAID])}{f' and {len(names) - SAID} more' * (len(names) > SAID)}"
            for why, names in reasons.items()]


def differ_words(found: Sequence[tuple[str, Sequence[str]]]) -> str:
    """optim.name (adamw, muon), optim.lr (8 values)."""
    said = [f"{path} ({', '.join(values) if len(values) <= 4 else f'{len(values)} values'})" for path, values in found]
    return ", ".join(said[:SAID]) + f" and {len(said) - SAID} more" * (len(said) > SAID)


def differ(experiments: Sequence[Experiment]) -> list[tuple[str, tuple[str, ...]]]:
    """The settings that a law does not account for: neither size, length or seed, nor what a scaling rule moves."""
    found = []
    for one in differences(experiments) if experiments else []:
        told = one.meaning in ("layout", "watching") or one.path in _SIZE + _LENGTH or all(one.laws)
        if not told:
            found.append((one.path, tuple(dict.fromkeys(map(_shown, one.values)))))
    return found


def _shown(value: Any) -> str:
    return "-" if value is plain.ABSENT else overrides.show(value)


def of_experiment(experiment: Experiment, *, name: str, count: str) -> Point:
    """Where an experiment lies among the points; it has no loss yet."""
    return Point(
        name=name, params=float(COUNTS[count](experiment.model)), tokens=float(experiment.tokens),
        flops=scaling.train_flops(experiment), loss=math.nan, digests=(select.digest(experiment),),
    )


def read_file(file: str | Path, measure: Metric = "loss") -> list[Point]:
    """Points from columns params, tokens and loss (flops and name if there), CSV or a JSON list; raises UserError.

    Without a column flops they are 6 params tokens.
    """
    path = Path(file)
    if measure != "loss":
        raise UserError(f"{path}: points of a file have no bits per byte; leave --bits out, or give run folders only")
    if not path.exists():
        raise UserError(f"{path}: there is no such file; a file of points has columns {', '.join(_COLUMNS)}")
    try:
        text = path.read_text()
        records = json.loads(text) if path.suffix == ".json" else list(csv.DictReader(io.StringIO(text)))
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as {path.suffix[1:].upper()} ({error})") from None
    if not isinstance(records, list) or not all(isinstance(r, dict) for r in records) or not records:
        raise UserError(f"{path}: must hold points with {', '.join(_COLUMNS)}: a CSV header and lines, or a JSON list")
    if lacking := [column for column in _COLUMNS if all(column not in record for record in records)]:
        there = ", ".join(str(column) for column in dict.fromkeys(key for record in records for key in record))
        raise UserError(f"{path}: has no column {', '.join(lacking)}; it has {there}")
    return [_point(path, i, record) for i, record in enumerate(records, 1)]


def _point(path: Path, line: int, record: Mapping[str, Any]) -> Point:
    numbers = {}
    for key in (*_COLUMNS, *(["flops"] if record.get("flops") not in (None, "") else [])):
        try:
            numbers[key] = float(record[key])
        except (KeyError, TypeError, ValueError):
            raise UserError(f"{path}, point {line}: {key}={record.get(key)!r} must be a number above 0") from None
        if not _sound(numbers[key]):
            raise UserError(f"{path}, point {line}: {key}={record[key]} must be a finite number above 0")
    name = record.get("name") or f"{path.stem}:{line}"
    return Point(**{"flops": 6 * numbers["params"] * numbers["tokens"], **numbers, "name": str(name)})


def _best(runs: Iterable[tuple[Point, Experiment]], left_out: list[tuple[str, str]]) -> list[Point]:
    """The best configuration of each size and length, as a point; adds the others to what is left out, with why."""
    families: dict[str, dict[int, Point]] = {}
    for point, experiment in runs:
        seeds = families.setdefault(select.family(experiment), {})
        if (before := seeds.setdefault(experiment.train.seed, point)) is not point:
            left_out.append((point.name, f"a copy of {before.name}, of the same seed"))
    places: dict[tuple[float, float], list[list[Point]]] = {}
    for seeds in families.values():
        of_family = list(seeds.values())
        places.setdefault((of_family[0].params, of_family[0].tokens), []).append(of_family)
    best = []
    for tried in places.values():
        winner = min(tried, key=lambda seeds: _mean(seeds).loss)
        best.append(_mean(winner))
        left_out += [(point.name, "beaten at its size and length") for seeds in tried if seeds is not winner
                     for point in seeds]
    return best


def _mean(seeds: Sequence[Point]) -> Point:
    """One point of several at one size and length."""
    name = seeds[0].name if len(seeds) == 1 else f"{seeds[0].name} ({len(seeds)} seeds)"
    losses = tuple(point.loss for point in seeds)
    digests = tuple(digest for point in seeds for digest in point.digests)
    runs = tuple(run for point in seeds for run in point.runs)
    return dataclasses.replace(
        seeds[0], name=name, loss=statistics.fmean(losses), losses=losses, runs=runs, digests=digests
    )


def _sound(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0
