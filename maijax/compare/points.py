"""What a law is fitted to: size, length and held-out loss of finished runs, or of a file of published ones. No jax."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from maijax import plain, scaling, weights
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
MEASURES = {"loss": "nats per token", "bits_per_byte": "bits per byte"}
# What must be the same for two held-out losses to be comparable; bits per byte need less.
_TEXT = ("data.sources", "data.held_out")
_PIECES = ("model.vocab_size", "data.tokenizer", "data.tokenizer_kind")
_FILES = (".csv", ".json")
LEDGER = "ledger.jsonl"  # lies among the runs, so that `runs/*` names it too
_COLUMNS = ("params", "tokens", "loss")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Point:
    """One finished run."""

    name: str
    params: float
    tokens: float  # trained on
    flops: float
    loss: float  # held out, at the end; nats per token unless bits per byte were asked for
    digest: str = ""  # of the configuration, see `digest`; empty for points of a file


@dataclasses.dataclass(frozen=True, kw_only=True)
class Points:
    """What was found, and what was not taken: (name, why)."""

    points: tuple[Point, ...]
    left_out: tuple[tuple[str, str], ...] = ()
    run: tuple[str, Experiment] | None = None  # one of the runs, by whose text others are compared; None: files only


def digest(experiment: Experiment) -> str:
    """A short hash of what a configuration computes: equal on every machine, layout and numeric format, so that a
    prediction made here is found again when the run is made elsewhere. The seed is part of it."""
    return plain.fingerprint({k: v for k, v in rundir.identity(experiment).items() if k not in ("name", "model.dtype")})


def gather(
    runs: Sequence[str], *, runs_dir: str | Path = "runs", count: str = "active", measure: str = "loss"
) -> Points:
    """The points of runs, of folders of runs, and of .csv or .json files of points; raises UserError.

    Only the last evaluation of a finished run counts: one before the cooldown belongs to another curve. Of several
    configurations at one size and length the best is taken, by its mean over seeds.
    """
    found: list[Point] = []
    left_out: list[tuple[str, str]] = []
    values: dict[Path, Experiment] = {}  # by the run's folder, so that none counts twice
    for run in runs:
        if Path(run).name == LEDGER:
            continue
        if run.endswith(_FILES) and Path(run).is_file():
            found += read_file(run, measure)
            continue
        for folder in _folders(runs_dir, run):
            if folder in values:
                continue
            experiment, last = rundir.load(folder), last_evaluation(folder)
            if last is None or not _sound(last.get(measure)):
                left_out.append((folder.name, "not finished"))
                continue
            values[folder] = experiment
            found.append(of_experiment(experiment, name=folder.name, count=count, loss=last[measure]))
    run = next(((folder.name, experiment) for folder, experiment in values.items()), None)
    for folder, experiment in values.items():
        comparable(run, folder.name, experiment, measure)
    best, beaten = _best(found, list(values.values()))
    if not best:
        raise UserError(f"no finished run among {', '.join(runs)}; `maijax run NAME` makes one")
    return Points(points=tuple(best), left_out=(*left_out, *beaten), run=run)


def of_experiment(experiment: Experiment, *, name: str, count: str, loss: float = math.nan) -> Point:
    """Where an experiment lies among the points."""
    return Point(
        name=name, params=float(COUNTS[count](experiment.model)), tokens=float(experiment.tokens),
        flops=scaling.train_flops(experiment), loss=float(loss), digest=digest(experiment),
    )


def comparable(run: tuple[str, Experiment] | None, name: str, experiment: Experiment, measure: str) -> None:
    """Raises UserError if an experiment's loss is of another text than a run's, or of other pieces of it."""
    if run is None:
        return
    paths = _TEXT if measure == "bits_per_byte" else (*_TEXT, *_PIECES)
    there, here = ({k: v for k, v in plain.flatten(e).items() if k.startswith(paths)} for e in (run[1], experiment))
    if changed := sorted(k for k in there.keys() | here.keys() if there.get(k) != here.get(k)):
        text = any(k.startswith(_TEXT) for k in changed)
        way = "take those of one text" if text else "take bits per byte, with --bits"
        raise UserError(f"{run[0]} and {name} differ in {', '.join(changed)}: their losses cannot be compared; {way}")


def last_evaluation(folder: Path) -> Mapping[str, Any] | None:
    """Of a finished run: over all that is held out."""
    return next((line for line in metrics.read(folder) if line["kind"] == "eval" and line.get("final")), None)


def read_file(file: str | Path, measure: str = "loss") -> list[Point]:
    """Points from columns params, tokens and loss (flops and name if there), CSV or a JSON list; raises UserError.

    Without a column flops they are 6 params tokens.
    """
    path = Path(file)
    if measure != "loss":
        raise UserError(f"{path}: points of a file have no bits per byte; leave --bits out, or give run folders only")
    try:
        text = path.read_text()
        records = json.loads(text) if path.suffix == ".json" else list(csv.DictReader(io.StringIO(text)))
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as {path.suffix[1:].upper()} ({error})") from None
    if not isinstance(records, list) or not all(isinstance(r, dict) for r in records) or not records:
        raise UserError(f"{path}: must hold points with {', '.join(_COLUMNS)}: a CSV header and lines, or a JSON list")
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


def _folders(runs_dir: str | Path, run: str) -> list[Path]:
    """A run's folder, or those of all runs in a folder of runs."""
    inside = sorted(p.parent for p in Path(run).glob("*/experiment.json")) if Path(run).is_dir() else []
    if inside and not (Path(run) / "experiment.json").is_file():
        return [folder.resolve() for folder in inside]
    return [rundir.find(runs_dir, run).resolve()]


def _best(found: Sequence[Point], experiments: Iterable[Experiment]) -> tuple[list[Point], list[tuple[str, str]]]:
    """(points kept, those left out and why): of the configurations of one size and length, the best mean over seeds."""
    kinds = {}  # digest -> the configuration without its seed
    for experiment in experiments:
        flat = rundir.identity(experiment)
        kinds[digest(experiment)] = plain.fingerprint({k: v for k, v in flat.items() if k != "train.seed"})
    places: dict[tuple[float, float], dict[str, list[Point]]] = {}
    for point in found:
        if point.digest:
            kind = kinds[point.digest]
            places.setdefault((point.params, point.tokens), {}).setdefault(kind, []).append(point)
    winners = {
        id(point) for configurations in places.values()
        for point in min(configurations.values(), key=lambda seeds: sum(p.loss for p in seeds) / len(seeds))
    }
    kept = [p for p in found if not p.digest or id(p) in winners]
    return kept, [(p.name, "beaten at its size and length") for p in found if p.digest and id(p) not in winners]


def _sound(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0
