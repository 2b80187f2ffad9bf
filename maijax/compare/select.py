"""Which run folders a name means, which runs are one configuration's, and which losses may be compared. No jax."""

from __future__ import annotations

import fnmatch
from pathlib import Path
from typing import Literal

from maijax import plain
from maijax.config import Experiment
from maijax.errors import UserError
from maijax.train import rundir

Metric = Literal["loss", "bits_per_byte"]
UNIT: dict[Metric, str] = {"loss": "nats per token", "bits_per_byte": "bits per byte"}
# What must be the same for two held-out losses to be comparable; bits per byte need less.
TEXT = ("data.sources", "data.held_out")
PIECES = ("model.vocab_size", "data.tokenizer", "data.tokenizer_kind")


def folders(runs_dir: str | Path, name: str) -> list[Path]:
    """Run folders: the one that a name or path means, those inside it (a sweep's), or those that a pattern means."""
    bare = name.rstrip("/") or name
    if is_pattern(bare):
        root, _, last = bare.rpartition("/")
        base = Path(root) if root and Path(root).is_dir() else Path(runs_dir) / root
        inside = sorted(p for p in base.glob("*") if fnmatch.fnmatch(p.name, last)) if not is_pattern(root) else []
        return [run for folder in inside for run in _runs_at(folder)]
    for folder in (Path(bare), Path(runs_dir) / bare):
        if found := _runs_at(folder):
            return found
    return []


def title(folder: Path) -> str:
    """The name of a run; of a sweep's trial, the sweep's before it, as SWEEP/trial-0007."""
    folder = folder.resolve()
    return f"{folder.parent.name}/{folder.name}" if (folder.parent / rundir.SWEEP).is_file() else folder.name


def is_pattern(text: str) -> bool:
    return bool(set(text) & set("*?["))


def digest(experiment: Experiment) -> str:
    """A short hash of what a configuration computes: equal on every machine, layout and numeric format, so that a
    prediction made here is found again when the run is made elsewhere. The seed is part of it."""
    return plain.fingerprint({k: v for k, v in rundir.identity(experiment).items() if k not in ("name", "model.dtype")})


def family(experiment: Experiment) -> str:
    """A short hash that is the same for runs that differ only in their seed; the numeric format is part of it."""
    return plain.fingerprint({k: v for k, v in rundir.identity(experiment).items() if k not in ("name", "train.seed")})


def unlike(a: Experiment, b: Experiment, paths: tuple[str, ...]) -> list[str]:
    """The values below some paths in which two experiments differ."""
    one, other = ({k: v for k, v in plain.flatten(e).items() if k.startswith(paths)} for e in (a, b))
    return sorted(k for k in one.keys() | other.keys() if one.get(k) != other.get(k))


def comparable(a: tuple[str, Experiment], b: tuple[str, Experiment], metric: Metric) -> None:
    """Raises UserError if the losses of two (name, experiment) are of other texts, or of other pieces of one."""
    if changed := unlike(a[1], b[1], TEXT if metric == "bits_per_byte" else TEXT + PIECES):
        text = any(k.startswith(TEXT) for k in changed)
        way = "take those of one text" if text else "take bits per byte, with --bits"
        raise UserError(f"{a[0]} and {b[0]} differ in {', '.join(changed)}: their losses cannot be compared; {way}")


def _runs_at(folder: Path) -> list[Path]:
    if (folder / "experiment.json").is_file():
        return [folder]
    return sorted((p.parent for p in folder.glob("*/experiment.json")), key=_natural)


def _natural(folder: Path) -> tuple[int, str]:
    """trial-2 before trial-10."""
    return len(folder.name), folder.name
