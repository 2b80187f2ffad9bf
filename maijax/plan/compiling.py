"""Compiles of a plan, each in a process of its own and kept by what it is made of, so that a search resumes. No jax."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from maijax import plain
from maijax.config import Experiment
from maijax.data import cachedir
from maijax.errors import RunError, UserError
from maijax.hardware import Topology
from maijax.plan import topology as topologies

_COMPILERS = ("jax", "jaxlib", "flax", "optax", "libtpu", "jax-cuda13-plugin", "jax-cuda13-pjrt")
_TICK = 5.0  # seconds between two words of progress


def compiled(
    experiment: Experiment, topology: Topology, *, cache: Path, say: Callable[[str], None] | None = None
) -> dict[str, Any]:
    """What the compiler says of an experiment's step on a topology: `program.compile_for`, fresh or kept.

    Raises UserError for what a person can mend, RunError if the compiler fails for another reason than memory.
    """
    file = cache / "plans" / f"{key(experiment, topology)}.json"
    if (kept := _read(file)) is not None:
        return kept | {"kept": True}
    if (lacking := topologies.missing(topology)) is not None:
        raise UserError(lacking)
    told = _compile(experiment, topology, say or (lambda _: None))
    cachedir.write_file(file, json.dumps(told, indent=1).encode())
    return told | {"kept": False}


def key(experiment: Experiment, topology: Topology) -> str:
    """Of all that decides a compile: values, topology, compilers, and this package's own source."""
    values = {path: v for path, v in plain.flatten(experiment).items() if path not in plain.METADATA}
    made_of = {
        "values": plain.to_plain(values), "topology": [topology.text, topology.slices],
        "versions": {name: _version(name) for name in _COMPILERS}, "source": source(),
    }
    return hashlib.sha256(json.dumps(made_of, sort_keys=True, default=str).encode()).hexdigest()[:32]


def source() -> str:
    """A digest of the source that a step is traced from, and of what reads the compiler's words."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for folder in ("models", "optim", "parallel", "train"):
        for file in sorted((root / folder).rglob("*.py")):
            digest.update(file.name.encode() + file.read_bytes())
    # Of this folder not the arithmetic, which may be mended without compiling anew.
    plan = ("collectives", "dump", "hlo", "program", "topology", "worker")
    for name in ("config", "dims", "parametrization", "rules", "weights", *(f"plan/{name}" for name in plan)):
        digest.update((root / f"{name}.py").read_bytes())
    return digest.hexdigest()


def _compile(experiment: Experiment, topology: Topology, say: Callable[[str], None]) -> dict[str, Any]:
    folder = Path(tempfile.mkdtemp(prefix="maijax-plan-"))
    try:
        dump, asked, answer, heard = (folder / name for name in ("xla", "asked.json", "answer.json", "heard.txt"))
        asked.write_text(json.dumps({
            "experiment": plain.to_plain(experiment), "topology": topology.text, "slices": topology.slices,
            "dump": str(dump),
        }))
        environment = os.environ | topologies.environment(topology, str(dump))
        # The worker must import the maijax that asks, whatever the current folder is.
        root = str(Path(__file__).parents[2])
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (root, environment.get("PYTHONPATH"))))
        environment.pop("JAX_COMPILATION_CACHE_DIR", None)  # a kept program has no dump
        command = [sys.executable, "-m", "maijax.plan.worker", str(asked), str(answer)]
        began = time.monotonic()
        with open(heard, "wb") as out, subprocess.Popen(command, env=environment, stdout=out, stderr=out) as worker:
            try:
                while True:
                    try:
                        code = worker.wait(_TICK)
                        break
                    except subprocess.TimeoutExpired:
                        say(f"{_stage(dump)} for {topology.title}, {time.monotonic() - began:.0f} s")
            except BaseException:
                worker.kill()
                raise
        found = _read(answer)
        if found is None:
            raise RunError(f"the compile for {topology.title} {_end(code, heard.read_text(errors='replace'))}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if "user_error" in found:
        raise UserError(found["user_error"])
    if "error" in found:
        lines = _told(found["error"])
        raise RunError(f"the step of {experiment.name} does not compile for {topology.title}: {lines[-1][:400]}")
    return found["told"]


def _end(code: int, heard: str) -> str:
    """How a compile ended that gave no answer, from its exit code and what it printed."""
    if code in (-signal.SIGKILL, 128 + signal.SIGKILL):
        return "was killed, perhaps for want of memory"
    if code < 0:
        return (f"died of {signal.Signals(-code).name}, inside the compiler: a fault of this layout's program in this "
                f"version of it; another layout may compile (--search tries several)")
    return f"ended with code {code}: {(heard.strip().splitlines() or ['no word'])[-1]}"


def _told(error: str) -> list[str]:
    """The lines of a traceback, without what JAX says of tracebacks after the error itself."""
    said = error.partition("\n--------------------\n")[0]
    return [line.strip() for line in said.splitlines() if line.strip()]


def _stage(dump: Path) -> str:
    """What the compiler is at, by what it has written down so far."""
    names = [file.name for file in dump.glob("*jit_step*")] if dump.is_dir() else []
    if any("buffer-assignment" in name for name in names):
        return "writing the program"
    return "compiling" if names else "tracing the step"


def _read(file: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
