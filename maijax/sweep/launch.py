"""Where workers run: processes of this machine, jobs of a Slurm cluster, tasks of Ray. All do the same work. No jax."""

from __future__ import annotations

import contextlib
import glob
import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Protocol

from maijax.errors import RunError, UserError
from maijax.sweep import worker

_SHARED = 15.0  # seconds until what a job wrote at its end is seen over a network file system


class Launcher(Protocol):
    """Starts workers and knows which are there; `ended` empties the list of those that ended: (code, its last line)."""

    workers: int

    def start(self) -> None: ...
    def alive(self) -> int: ...
    def ended(self) -> list[tuple[int, str]]: ...
    def stop(self) -> None: ...


def make(text: str, folder: Path, *, workers: int, together: int) -> Launcher:
    """As `parse` reads it; raises UserError, too, for an option that is none, or a package that is not installed."""
    kind, options = parse(text)
    return _KINDS[kind](folder, workers, together, options)


def parse(text: str) -> tuple[str, dict[str, int | float | str]]:
    """(kind, options) of "local", "slurm:partition=gpu,timeout_min=60,gpus_per_node=1" or "ray:num_gpus=1".

    Raises UserError for another word.
    """
    kind, _, rest = text.partition(":")
    pairs = [part.partition("=") for part in rest.split(",") if part]
    if bad := [name for name, equals, _ in pairs if not equals]:
        raise UserError(f"--launcher {text}: {bad[0]!r} must be of the form option=value")
    options = {name.strip(): _value(value.strip()) for name, _, value in pairs}
    if kind == "local" and options:
        raise UserError(f"--launcher {text}: local takes no options")
    if kind not in _KINDS:
        *others, last = _KINDS
        raise UserError(f"--launcher {kind!r} must be {', '.join(others)} or {last}")
    return kind, options


def _value(text: str) -> int | float | str:
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text


class Local:
    """Processes of this machine, each with its share of the cores and, where there are any, its own GPU."""

    words = (sys.executable, "-m", "maijax.sweep.worker")

    def __init__(self, folder: Path, workers: int, together: int, options: dict[str, Any]) -> None:
        self.folder, self.workers, self.together = folder, workers, together
        self._places: dict[int, subprocess.Popen] = {}

    def start(self) -> None:
        place = next((i for i in range(self.workers) if i not in self._places), None)
        if place is None:
            return  # one has just died, and `ended` has not told yet
        logs = self.folder / "workers"
        logs.mkdir(exist_ok=True)
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        own = cores[place::self.workers] or cores
        words = [*self.words, str(self.folder), str(self.workers), str(self.together)]
        with open(logs / f"{place}.log", "ab") as log:
            # A session of its own: Ctrl-C is the driver's, which hands it on.
            process = subprocess.Popen(
                words, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True,
                env=os.environ | {worker.TIED: "1"} | _device(place, self.workers),
            )
        if len(cores) > 1 and self.workers > 1:
            with contextlib.suppress(OSError):  # it may have ended already
                os.sched_setaffinity(process.pid, own)
        self._places[place] = process

    def alive(self) -> int:
        return sum(process.poll() is None for process in self._places.values())

    def ended(self) -> list[tuple[int, str]]:
        found = []
        for place, process in list(self._places.items()):
            if (code := process.poll()) is not None:
                del self._places[place]
                if process.stdin:
                    process.stdin.close()
                found.append((code, _last_line(self.folder / "workers" / f"{place}.log").removeprefix("maijax: ")))
        return found

    def stop(self) -> None:
        for process in self._places.values():
            process.terminate()


def _device(place: int, workers: int) -> dict[str, str]:
    """The environment that gives a worker its GPUs: its share, or a share of one."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    found = [path[len("/dev/nvidia"):] for path in sorted(glob.glob("/dev/nvidia[0-9]*"))]
    here = found if named is None else [one for one in named.split(",") if one]  # none of them may be meant
    if not here or workers == 1:
        return {}
    if len(here) >= workers:
        return {"CUDA_VISIBLE_DEVICES": ",".join(here[place::workers])}
    crowd = -(-workers // len(here))
    return {
        "CUDA_VISIBLE_DEVICES": here[place % len(here)], "XLA_PYTHON_CLIENT_MEM_FRACTION": f"{0.9 / crowd:.2f}",
    }


def _last_line(file: Path) -> str:
    with contextlib.suppress(OSError):
        lines = file.read_bytes()[-4000:].decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else ""
    return ""


class Slurm:
    """Jobs of a cluster, by submitit; options are its own: partition, timeout_min, gpus_per_node, slurm_account."""

    def __init__(self, folder: Path, workers: int, together: int, options: dict[str, Any]) -> None:
        try:
            import submitit
        except ImportError:
            raise UserError('--launcher slurm needs submitit: pip install -e ".[slurm]"') from None
        self.folder, self.workers, self.together = folder, workers, together
        known = {"timeout_min", "mem_gb", "cpus_per_task", "gpus_per_node", "nodes", "name", "stderr_to_stdout"}
        options = {k if k in known or k.startswith("slurm_") else f"slurm_{k}": v for k, v in options.items()}
        try:
            self._executor = submitit.AutoExecutor(folder / "workers" / "%j", cluster="slurm")
            self._executor.update_parameters(**{"name": folder.name, "timeout_min": 24 * 60, **options})
        except RuntimeError as error:
            raise UserError(f"--launcher slurm: {error}; run it where sbatch is") from None
        except (NameError, TypeError) as error:
            raise UserError(f"--launcher slurm: {' '.join(str(error).split())}") from None
        self._jobs: dict[str, Any] = {}
        self._queued: set[str] = set()
        self._gone: dict[str, float] = {}  # since when a job has not been in the queue
        self._asked = 0.0

    def start(self) -> None:
        try:
            job = self._executor.submit(worker.told, str(self.folder), self.workers, self.together)
        except Exception as error:  # submitit has one class per way that sbatch fails
            raise RunError(f"Slurm refused the job: {' '.join(str(error).split())}") from None
        self._jobs[job.job_id] = job
        self._queued.add(job.job_id)

    def _look(self) -> None:
        """Asks the queue, now and then; its accounting need not be there."""
        if time.monotonic() - self._asked < 2.0 or not self._jobs:
            return
        self._asked = time.monotonic()
        done = subprocess.run(["squeue", "--noheader", "--me", "--format=%A"], capture_output=True, text=True)
        if done.returncode == 0:
            self._queued = set(done.stdout.split())

    def alive(self) -> int:
        self._look()
        return sum(number in self._queued for number in self._jobs)

    def ended(self) -> list[tuple[int, str]]:
        self._look()
        found = []
        for number in [n for n in self._jobs if n not in self._queued]:
            job, since = self._jobs[number], self._gone.setdefault(number, time.monotonic())
            if job.paths.result_pickle.exists():
                with contextlib.suppress(Exception):  # it died
                    found.append(job.result())
                    del self._jobs[number]
                    continue
            elif time.monotonic() - since < _SHARED:
                continue  # submitit itself would wait for ever where there is no accounting
            del self._jobs[number]
            found.append((1, _last_line(Path(job.paths.stderr))))
        return found

    def stop(self) -> None:
        for job in self._jobs.values():
            # To the worker alone; `scancel` without a signal would also kill it soon after.
            subprocess.run(["scancel", "--signal=USR2", "--full", str(job.job_id)], capture_output=True)


class Ray:
    """Tasks of Ray, in a process each; options are those of a task: num_cpus, num_gpus, memory."""

    def __init__(self, folder: Path, workers: int, together: int, options: dict[str, Any]) -> None:
        try:
            import ray  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise UserError('--launcher ray needs Ray: pip install -e ".[ray]"') from None
        self.folder, self.workers, self.together = folder, workers, together
        self._ray: Any = ray
        if not ray.is_initialized():
            ray.init(logging_level=logging.ERROR, log_to_driver=False, include_dashboard=False)
        try:
            self._task: Any = ray.remote(max_calls=1, max_retries=0, **options)(worker.told)
        except (ValueError, TypeError) as error:
            raise UserError(f"--launcher ray: {' '.join(str(error).split())}") from None
        self._running: list[Any] = []

    def start(self) -> None:
        self._running.append(self._task.remote(str(self.folder), self.workers, self.together))

    def alive(self) -> int:
        return len(self._ray.wait(self._running, num_returns=len(self._running), timeout=0)[1]) if self._running else 0

    def ended(self) -> list[tuple[int, str]]:
        if not self._running:
            return []
        ready, self._running = self._ray.wait(self._running, num_returns=len(self._running), timeout=0)
        found = []
        for one in ready:
            try:
                found.append(self._ray.get(one))
            except Exception as error:
                found.append((1, str(error).strip().splitlines()[-1]))
        return found

    def stop(self) -> None:
        for one in self._running:
            self._ray.cancel(one)  # as Ctrl-C: it saves and leaves


_KINDS: dict[str, Any] = {"local": Local, "slurm": Slurm, "ray": Ray}
