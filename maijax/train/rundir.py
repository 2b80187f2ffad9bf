"""A run's folder: complete, only appended to, one writer at a time, and never outside the runs folder."""

from __future__ import annotations

import difflib
import fcntl
import json
import os
import re
import socket
from pathlib import Path
from typing import Any, TextIO

from maijax import plain
from maijax.config import Experiment
from maijax.errors import UserError

SWEEP = "sweep.json"  # lies in a sweep's folder, see maijax.sweep.study
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")

# Fields that change how a run is watched or laid out, not what it computes: they may differ at a resume.
NEUTRAL = (
    "data.workers", "mesh.", "model.layers", "model.remat", "model.kernels", "train.log_every", "train.eval_every",
    "train.eval_sequences", "train.sample_every", "train.prompt", "train.checkpoint_every", "train.keep",
)


def locate(runs_dir: str | Path, name: str) -> Path:
    """The folder of a run by name; raises UserError for a name that could leave the runs folder."""
    root = Path(runs_dir)
    if not NAME.fullmatch(name):
        raise UserError(
            f"run name {name!r}: use letters, digits, dot, dash and underscore, at most 100, none but a letter or "
            "digit first"
        )
    folder = root / name
    if folder.resolve().parent != root.resolve():
        raise UserError(f"run name {name!r} leads out of {root}; choose another")
    return folder


def find(runs_dir: str | Path, run: str) -> Path:
    """An existing run by name or SWEEP/trial-0007, or by its folder; raises UserError with the names there are."""
    name = run.rstrip("/")  # as a shell completes it
    named = all(NAME.fullmatch(part) for part in name.split("/", 1))
    folders = (Path(run), *([Path(runs_dir) / name] if named else []))
    for folder in folders:
        if (folder / "experiment.json").is_file():
            return folder
    for folder in folders:
        if (folder / SWEEP).is_file():
            trials = sorted(p.parent.name for p in folder.glob("*/experiment.json"))
            how = f"name one of its trials, as {name}/{trials[0]}" if trials else "none of its trials has begun yet"
            raise UserError(f"{folder} is a sweep, no run; {how}")
        if folder.is_dir():
            holds = "holds no experiment.json" if any(folder.iterdir()) else "is empty"
            raise UserError(f"{folder} is no run: the folder {holds}; make a run with `maijax run`")
        if folder.is_file():
            raise UserError(f"{folder} is a file, not a run; give a run's name or folder")
    there = sorted(p.parent.name for p in Path(runs_dir).glob("*/experiment.json"))
    near = difflib.get_close_matches(name, there, n=8, cutoff=0.5) or there[:8]
    are = "is" if len(there) == 1 else "are"
    known = f"there {are} {', '.join(near)}" if there else "there are none yet; make one with `maijax run`"
    raise UserError(f"no run {run!r} in {runs_dir}: {known}")


def identity(experiment: Experiment) -> dict[str, Any]:
    """The values that decide what is computed, by path."""
    flat = plain.flatten(experiment)
    return {k: v for k, v in flat.items() if not k.startswith(NEUTRAL) and not k.startswith("rules")}


class RunFolder:
    """An open run folder, locked until `close`; use as a context manager. Only a writer locks or changes anything."""

    def __init__(self, folder: Path, *, writer: bool = True) -> None:
        self.path = folder
        self._lock: TextIO | None = None
        if writer:
            self._lock = self._take()

    def _take(self) -> TextIO:
        folder = self.path
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = open(folder / ".lock", "a+")
        except OSError as error:
            raise UserError(
                f"run folder {folder}: cannot be written ({error.strerror}); choose another with --runs-dir"
            ) from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            holder = lock.read().strip() or "another process"
            lock.close()
            raise UserError(f"run folder {folder}: in use by {holder}; wait for it, or give --name another") from None
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        lock.flush()
        return lock

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._lock is not None:
            self._lock.close()

    def claim(self, experiment: Experiment, record: dict[str, Any]) -> bool:
        """Writes experiment.json, or checks the one there. True: the run is new, and this process begins it.

        Raises UserError with the difference if the folder holds another experiment.
        """
        check(self.path, experiment)
        if self._lock is None:
            return False
        file = self.path / "experiment.json"
        if file.exists() and begun(self.path):
            return False
        write_json(file, record)
        return True


def begun(folder: Path) -> bool:
    """Whether a run has come so far that something would be lost: a step, a checkpoint."""
    if not (folder / "experiment.json").exists():
        return False
    metrics, checkpoints = folder / "metrics.jsonl", folder / "checkpoints"
    return (metrics.exists() and metrics.stat().st_size > 0) or (checkpoints.is_dir() and any(checkpoints.iterdir()))


def check(folder: Path, experiment: Experiment, *, resolved: bool = True) -> None:
    """Raises UserError, with the difference, if the folder holds another experiment's run; writes nothing.

    `resolved=False`: "auto" has not been decided for this machine yet, and so differs from nothing.
    """
    if (folder / SWEEP).exists():
        raise UserError(f"{folder} is a sweep, not a run; give --name another")
    if not begun(folder):
        return
    there, here = identity(load(folder)), identity(experiment)
    changed = [
        f"{path} was {_show(there.get(path))}, is {_show(here.get(path))}"
        for path in sorted(there.keys() | here.keys())
        if there.get(path) != here.get(path) and (resolved or here.get(path) != "auto")
    ]
    if changed:
        more = f" and {len(changed) - 4} more" if len(changed) > 4 else ""
        raise UserError(
            f"run folder {folder} holds another experiment: {'; '.join(changed[:4])}{more}; "
            "give --name another, or remove the folder"
        )


def load(folder: Path) -> Experiment:
    """The experiment of a run folder; raises UserError if its file is damaged."""
    file = folder / "experiment.json"
    try:
        return plain.from_plain(plain.parse_json(file.read_text())["experiment"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: cannot be read as an experiment ({error}); restore it, or start anew") from None


def provenance(folder: Path) -> dict[str, str]:
    """Where each value of a run came from, as was written when it began; empty if that cannot be read."""
    try:
        found = plain.parse_json((folder / "experiment.json").read_text())["provenance"]
        return {path: origin for path, origin in found.items() if isinstance(origin, str)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def write_json(file: Path, value: Any) -> None:
    """Writes the whole file or nothing."""
    part = file.with_name(f".{file.name}.{os.getpid()}")
    part.write_text(json.dumps(value, indent=1, sort_keys=False) + "\n")
    part.replace(file)


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
