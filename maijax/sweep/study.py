"""The trials of a sweep, kept in its folder: the run folders are the storage, and locks say who is alive. No jax.

    RUNS_DIR/SWEEP/sweep.json              what is asked, see `maijax.space.Sweep`
    RUNS_DIR/SWEEP/trial-0007/             a run's folder, and beside the run's own files:
        trial.json                         its values, written before it begins
        .claim                             locked by the worker that runs it, for as long as that lives
        result.json                        what came of it, written once: such a trial is never run again

A kernel's flock ends with its process however that ends, so nothing has to time out. Over a network the lock of a
host that loses power or network stays until the file server gives it up, see docs/sweep.md.
Optuna's own journal was no choice: after a line torn by a kill it fails (tried, 5.0.0), and sees no worker die.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Literal, TextIO

from maijax import plain
from maijax.errors import UserError
from maijax.space import Point, Sweep
from maijax.sweep import groups, suggest
from maijax.sweep.prune import Curve
from maijax.train import metrics, rundir

MOST_DEATHS = 3  # of a trial's workers, one after the other, without a new checkpoint
MOST_MISFITS = 100  # trials of other shapes looked at for one claim, while all other workers wait
Ended = Literal["done", "pruned", "failed"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """What came of a trial."""

    state: Ended
    step: int
    bits_per_byte: float | None = None  # of all that is held out; of the last evaluation if it was pruned
    loss: float | None = None  # nats per token
    seconds: float | None = None  # its share of the time of the program that it ran in
    why: str | None = None  # it failed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial:
    """A trial that has values: it was begun by somebody."""

    number: int
    point: Point
    deaths: int
    step: int  # of the newest checkpoint when it was last taken up
    running: bool  # as its worker wrote; a worker that was killed wrote nothing more
    result: Result | None

    @property
    def figure(self) -> float | None:
        """Held-out bits per byte of a trial that came to its end, not of one that was stopped early."""
        return self.result.bits_per_byte if self.result is not None and self.result.state == "done" else None


@dataclasses.dataclass(kw_only=True)
class Claim:
    """A trial that this process alone may run, until `release`."""

    trial: Trial
    folder: Path
    lock: TextIO

    def release(self, result: Result | None) -> None:
        """Gives it back: ended for ever, or to be taken up again by anybody."""
        if result is not None:
            rundir.write_json(self.folder / "result.json", dataclasses.asdict(result))
        _write(self.folder, dataclasses.replace(self.trial, running=False))
        self.lock.close()


class Study:
    """A sweep's folder, shared by any number of drivers and workers."""

    def __init__(self, folder: Path, sweep: Sweep, provenance: dict[str, str]) -> None:
        self.folder, self.sweep, self.provenance = folder, sweep, provenance
        self.count = sweep.count
        self._known: dict[int, Trial] = {}  # those that ended: they stay as they are
        self._curves: dict[int, Curve] = {}  # theirs

    @classmethod
    def create(cls, folder: Path, sweep: Sweep, provenance: dict[str, str]) -> Study:
        """Makes the folder, or opens the one there; raises UserError with the difference if it asks another thing."""
        check(folder, sweep)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            study = cls(folder, sweep, provenance)
            with study.locked():
                check(folder, sweep)
                rundir.write_json(folder / rundir.SWEEP, _to_plain(sweep) | {"provenance": provenance})
        except OSError as error:
            raise UserError(
                f"sweep folder {folder}: cannot be written ({error.strerror}); choose another with --runs-dir"
            ) from None
        return study

    @classmethod
    def load(cls, folder: Path) -> Study:
        """The study of an existing folder; raises UserError if it is none, or damaged."""
        sweep, provenance = _read(folder)
        return cls(folder, sweep, provenance)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Alone among all processes of this sweep; never held while anything is computed for long."""
        with open(self.folder / ".lock", "a") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    def where(self, number: int) -> Path:
        return self.folder / f"trial-{number:04}"

    def trials(self) -> list[Trial]:
        """All that were begun, by number; another driver that asks for more trials has its own beyond `count`."""
        found = []
        for file in self.folder.glob("trial-*/trial.json"):
            match = re.fullmatch(r"trial-(\d{4}|[1-9]\d{4,})", file.parent.name)
            if match is not None and (number := int(match[1])) < self.count and number not in self._known:
                trial = self._trial(number)
                if trial is not None and trial.result is not None:
                    self._known[number] = trial
                elif trial is not None:
                    found.append(trial)
        return sorted([*found, *self._known.values()], key=lambda trial: trial.number)

    def _trial(self, number: int) -> Trial | None:
        folder = self.where(number)
        held = _json(folder / "trial.json")
        if held is None:
            return None
        result = _json(folder / "result.json")
        return Trial(**held, result=None if result is None else Result(**result))

    def trained(self) -> bool:
        """Whether any trial has come as far as a step."""
        return any(trial.step or (trial.result is not None and trial.result.step) for trial in self.trials())

    def curve(self, number: int) -> Curve:
        """What a trial's evaluations during training have measured."""
        if number in self._curves:
            return self._curves[number]
        ended = number in self._known  # before it is read
        lines = metrics.read(self.where(number))
        found = {line["step"]: line["bits_per_byte"] for line in lines
                 if line["kind"] == "eval" and not line.get("final") and line.get("bits_per_byte") is not None}
        if ended:
            self._curves[number] = found
        return found

    def claim(self, most: int, workers: int = 1, but: Collection[int] = ()) -> list[Claim]:
        """Trials to run now, in one program: at most so many, and a fair share of what is left; empty if none is free.

        Those of dead workers come first, since numbers rise. A trial whose workers died twice runs alone. `but`:
        numbers to leave out.
        """
        with self.locked():
            begun = {trial.number: trial for trial in self.trials()}
            left = self.count - sum(trial.result is not None for trial in begun.values())
            most = max(1, min(most, -(-left // workers)))
            if self.sweep.sampler == "tpe":  # which learns from what came before
                most = max(1, min(most, self.count // 8))
            taken: list[Claim] = []
            shape, misfits = None, 0
            for number in range(self.count):
                if len(taken) == most or misfits == MOST_MISFITS:
                    break
                trial = begun.get(number)
                if number in but or (trial is not None and trial.result is not None):
                    continue
                claim = self._take(number, [*begun.values(), *(c.trial for c in taken)])
                if claim is None:
                    continue
                own = groups.signature(self.sweep.experiment(claim.trial.point)) if most > 1 else None
                alone = own is None or claim.trial.deaths > 1
                if taken and (alone or own != shape):
                    claim.lock.close()
                    misfits += 1
                    continue
                _write(claim.folder, claim.trial)
                taken.append(claim)
                shape = own
                if alone:
                    break
            return taken

    def _take(self, number: int, others: list[Trial]) -> Claim | None:
        """Locks a trial, or None: somebody runs it, or it has ended, or is given up here."""
        folder = self.where(number)
        folder.mkdir(exist_ok=True)
        lock = open(folder / ".claim", "a")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            return None
        trial, step = self._trial(number), newest(folder)  # its worker may have ended it a moment ago
        if trial is not None and trial.result is not None:
            lock.close()
            return None
        if trial is None:
            trial = Trial(number=number, point=self._point(number, others), deaths=0, step=0, running=True, result=None)
        else:
            # It runs, and yet nobody held it: its worker was killed. Else it was given back, or its result removed.
            died = trial.running and step <= trial.step
            trial = dataclasses.replace(trial, deaths=trial.deaths + 1 if died else 0)
        trial = dataclasses.replace(trial, step=step, running=True)
        claim = Claim(trial=trial, folder=folder, lock=lock)
        why = ""
        if trial.deaths >= MOST_DEATHS:
            why = f"its worker died {trial.deaths} times, at step {step}; remove {folder}/result.json to try again"
        else:
            try:
                self.sweep.experiment(trial.point)
            except UserError as error:
                why = str(error)
        if why:
            claim.release(Result(state="failed", step=step, why=why))
            return None
        return claim

    def _point(self, number: int, others: list[Trial]) -> Point:
        if self.sweep.sampler != "tpe":
            return self.sweep.point(number)
        told = [(t.point, None if t.result is None else t.result.bits_per_byte) for t in others]
        return suggest.tpe(self.sweep.dimensions, told, seed=self.sweep.seed + number)

    def held(self) -> set[int]:
        """Numbers of the trials that somebody alive runs at this moment."""
        found = set()
        with self.locked():
            for trial in self.trials():
                if trial.result is None and trial.running:
                    with open(self.where(trial.number) / ".claim", "a") as lock:
                        try:
                            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        except OSError:
                            found.add(trial.number)
        return found


def newest(folder: Path) -> int:
    """The step of a run's newest checkpoint, 0 if there is none."""
    return max((int(p.name) for p in (folder / "checkpoints").glob("*") if p.name.isdigit()), default=0)


def check(folder: Path, sweep: Sweep) -> None:
    """Raises UserError, with the difference, if a folder holds another sweep, or a run; writes nothing."""
    if (folder / "experiment.json").exists():
        raise UserError(f"{folder} is a run, not a sweep; give --name another")
    if not (folder / rundir.SWEEP).exists():
        return
    held = _read(folder)[0]
    there, here = (_identity(s) for s in (held, sweep))
    changed = [
        f"{path} was {there.get(path, '-')}, is {here.get(path, '-')}"
        for path in sorted(there.keys() | here.keys())
        if there.get(path) != here.get(path)
    ]
    if changed:
        more = f" and {len(changed) - 4} more" if len(changed) > 4 else ""
        raise UserError(
            f"sweep folder {folder} holds another sweep: {'; '.join(changed[:4])}{more}; "
            "give --name another, or remove the folder"
        )
    if sweep.count < held.count:
        raise UserError(
            f"sweep folder {folder} has {held.count} trials, {sweep.count} would be fewer; "
            f"give --trials {held.count} or more"
        )


def _identity(sweep: Sweep) -> dict[str, Any]:
    """All that decides which trials there are; a search may grow, and be pruned otherwise."""
    base = {k: v for k, v in rundir.identity(sweep.base).items() if k not in sweep.space and k != "name"}
    space = {f"space {path}": text for path, text in sweep.space.items()}
    # Trials of a grid are numbered in the order of its paths.
    return base | space | {"order": list(sweep.space), "sampler": sweep.sampler, "sampler's seed": sweep.seed}


def _to_plain(sweep: Sweep) -> dict[str, Any]:
    return {
        "name": sweep.name, "base": plain.to_plain(sweep.base), "space": dict(sweep.space), "sampler": sweep.sampler,
        "trials": sweep.trials, "prune": sweep.prune, "seed": sweep.seed,
    }


def _read(folder: Path) -> tuple[Sweep, dict[str, str]]:
    file = folder / rundir.SWEEP
    try:
        held = plain.parse_json(file.read_text())
        provenance = held.pop("provenance")
        return Sweep(**held | {"base": plain.from_plain(held["base"])}), provenance
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: cannot be read as a sweep ({error}); restore it, or start anew") from None


def _write(folder: Path, trial: Trial) -> None:
    held = {field.name: getattr(trial, field.name) for field in dataclasses.fields(trial) if field.name != "result"}
    rundir.write_json(folder / "trial.json", held)


def _json(file: Path) -> dict[str, Any] | None:
    try:
        return json.loads(file.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read ({error}); restore it, or remove the trial's folder") from None

