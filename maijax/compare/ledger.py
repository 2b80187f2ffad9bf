"""Predictions kept in a file before the run, and scored after it.

The file is only appended to: a bad prediction stays. A prediction counts as one only if no run of its configuration had
begun when it was made, which is looked at twice: when it is written, and by the dates when it is scored. One whose
interval leaves hardly any loss out is kept, and is neither a hit nor a miss.
"""

from __future__ import annotations

import dataclasses
import datetime
import errno
import fcntl
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from maijax import plain
from maijax.compare.fits import LEVEL, Estimate, Fit
from maijax.compare.points import LEDGER, Point
from maijax.compare.select import Metric, digest, title
from maijax.errors import UserError
from maijax.train import metrics, rundir

Standing = Literal["open", "inside", "outside", "too late", "says nothing"]
WIDEST = 2.0  # high over low of an interval that says something: training seldom does more than halve a loss


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """One prediction, as a line of the ledger."""

    at: str  # UTC, ISO 8601
    name: str  # of the experiment
    settings: tuple[str, ...]  # --set
    digest: str  # of the configuration
    begun: str  # the run of this configuration that had begun already, which makes it no prediction; or empty
    measure: str  # "loss" in nats per token, or "bits_per_byte"
    count: str  # what N counts
    params: float
    tokens: float
    flops: float
    predicted: float
    low: float
    high: float
    level: float
    law: str
    coefficients: dict[str, float | None]  # None: beyond any number, where a term tells nothing
    points: tuple[dict[str, Any], ...]  # that it was fitted to

    @property
    def same(self) -> str:
        """Equal for predictions of the same run by the same law of the same points, whenever they were made.

        These decide the number, but for the last digits, which another machine may round otherwise.
        """
        points = sorted((point["params"], point["tokens"], point["flops"], point["loss"]) for point in self.points)
        return plain.fingerprint([self.digest, self.begun, self.measure, self.count, self.law, points])

    @property
    def said(self) -> datetime.datetime:
        """When it was made."""
        return datetime.datetime.fromisoformat(self.at).astimezone(datetime.UTC)

    @property
    def void(self) -> str:
        """Why it counts neither as a hit nor as a miss, whatever the run does; empty if it counts."""
        if self.begun:
            return f"{self.begun} is a run of this configuration and had begun"
        return "" if self.high <= WIDEST * self.low else "its interval is so wide that it says nothing"


class Score(NamedTuple):
    """A prediction beside what came of it; without a finished run, measured is None."""

    entry: Entry
    standing: Standing
    run: str
    measured: float | None

    @property
    def miss(self) -> float | None:
        """Measured over predicted, less 1."""
        return None if self.measured is None else self.measured / self.entry.predicted - 1


def foretell(
    fit: Fit, place: Point, *, settings: Sequence[str], measure: Metric, count: str, runs_dir: str | Path
) -> Entry:
    """The entry for an experiment; raises UserError if it is one of the points, or the law cannot speak of it."""
    (mine,) = place.digests
    if same := [p.name for p in fit.points if mine in p.digests]:
        raise UserError(f"{place.name} is one of the points, {same[0]}; leave that out of RUNS to foretell it")
    told: Estimate = fit.predict(place)
    if not told.told:
        raise UserError(f"{place.name}: {len(fit.points)} points cannot tell its loss, which may be anything from "
                        f"{told.low:.3g} to {told.high:.3g}; add sizes or lengths")
    begun = next((title(folder) for folder in runs_of(runs_dir).get(mine, []) if rundir.begun(folder)), "")
    return Entry(
        at=_now(), name=place.name, settings=tuple(settings), digest=mine, begun=begun, measure=measure,
        count=count, params=place.params, tokens=place.tokens, flops=place.flops, predicted=told.value, low=told.low,
        high=told.high, level=LEVEL, law=fit.form.text,
        coefficients={k: v.value if math.isfinite(v.value) else None for k, v in fit.coefficients().items()},
        points=tuple(plain.to_plain(p) for p in fit.points),
    )


def write(runs_dir: str | Path, entry: Entry) -> Entry:
    """Appends an entry, the whole line on disk or none of it, whoever else writes; returns what is kept.

    A prediction that is there already is not kept twice: what is returned then is the earlier one.
    """
    file = Path(runs_dir) / LEDGER
    file.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(plain.to_plain(entry), allow_nan=False).encode() + b"\n"
    with open(file, "ab+", buffering=0) as out:
        fcntl.flock(out, fcntl.LOCK_EX)
        if (earlier := kept(runs_dir, entry)) is not entry:
            return earlier
        end = out.seek(0, os.SEEK_END)
        if end:
            out.seek(end - 1)
            line = line if out.read(1) == b"\n" else b"\n" + line  # what a crash left torn stays a line of its own
        try:
            if out.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))
            os.fsync(out.fileno())
        except OSError:
            os.ftruncate(out.fileno(), end)
            raise
    return entry


def kept(runs_dir: str | Path, entry: Entry) -> Entry:
    """The same prediction, as it is in the ledger already; the entry itself if it is not there."""
    return next((earlier for earlier in read(runs_dir) if earlier.same == entry.same), entry)


def read(runs_dir: str | Path) -> list[Entry]:
    """All entries, oldest first, each prediction once, as it was first made, however the file is ordered.

    A damaged line is passed over, see `examine`. A missing file has none.
    """
    return examine(runs_dir)[0]


def examine(runs_dir: str | Path) -> tuple[list[Entry], list[int]]:
    """(the entries, the numbers of the lines that are none)."""
    file = Path(runs_dir) / LEDGER
    try:
        lines = file.read_bytes().split(b"\n")
    except FileNotFoundError:
        return [], []
    made: list[tuple[datetime.datetime, str, Entry]] = []
    damaged: list[int] = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            entry = Entry(**record | {k: tuple(record[k]) for k in ("settings", "points")})
            if not all(isinstance(x, int | float) for x in (entry.predicted, entry.low, entry.high)):
                raise TypeError
            made.append((entry.said, entry.same, entry))
        except (ValueError, TypeError, KeyError):
            damaged += [number] * bool(line.strip())
    found: dict[str, Entry] = {}
    for _, same, entry in sorted(made, key=lambda one: one[0]):
        found.setdefault(same, entry)
    return list(found.values()), damaged


def scores(runs_dir: str | Path) -> list[Score]:
    """Every entry beside the finished runs of its configuration, those in folders of runs included."""
    runs = runs_of(runs_dir)
    return [_score(entry, runs.get(entry.digest, [])) for entry in read(runs_dir)]


def runs_of(runs_dir: str | Path) -> dict[str, list[Path]]:
    """Run folders by the digest of their configuration; what cannot be read is none."""
    found: dict[str, list[Path]] = {}
    root = Path(runs_dir)
    for file in sorted([*root.glob("*/experiment.json"), *root.glob("*/*/experiment.json")]):
        try:
            found.setdefault(digest(rundir.load(file.parent)), []).append(file.parent)
        except UserError:
            continue
    return found


def _score(entry: Entry, folders: Sequence[Path]) -> Score:
    late = bool(entry.begun) or any(rundir.begun(folder) and _started(folder) <= entry.said for folder in folders)
    void: Standing | None = "too late" if late else "says nothing" if entry.void else None
    for folder in folders:
        last = metrics.final(metrics.read(folder))
        if last is None or not isinstance(measured := last.get(entry.measure), int | float):
            continue
        inside: Standing = "inside" if entry.low <= measured <= entry.high else "outside"
        return Score(entry, void or inside, title(folder), float(measured))
    return Score(entry, void or "open", entry.begun, None)


def _started(folder: Path) -> datetime.datetime:
    """When a run began: as it says itself, else by its first file. A second is the finest that it says."""
    try:
        started = plain.parse_json((folder / "environment.json").read_text())["started"]
        return datetime.datetime.fromisoformat(started)
    except (OSError, ValueError, KeyError, TypeError):
        written = math.floor((folder / "experiment.json").stat().st_mtime)
        return datetime.datetime.fromtimestamp(written, datetime.UTC)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
