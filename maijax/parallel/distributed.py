"""How the processes of a run find each other: from the environment of each, which its launcher sets.

Four launchers are known, tried in this order; see docs/launch.md:
  by hand     MAIJAX_COORDINATOR=host:port, MAIJAX_PROCESS_ID, MAIJAX_NUM_PROCESSES; or MAIJAX_COORDINATOR=auto alone,
              where jax finds out by itself (TPU VMs, Open MPI)
  TPU on GKE  TPU_WORKER_HOSTNAMES or TPU_PROCESS_ADDRESSES of several hosts, or MEGASCALE_NUM_SLICES above 1
  JobSet      JOBSET_NAME, JOBSET_JOB, JOBSET_JOB_INDEX, JOBSET_JOB_COUNT, JOBSET_JOB_PROCESSES, JOB_COMPLETION_INDEX
  Slurm       the SLURM_ variables of an `srun` step of several tasks
"""

from __future__ import annotations

import dataclasses
import re
import socket
import time
from collections.abc import Mapping
from typing import Any

import jax

from maijax.errors import RunError, UserError

OWN = ("MAIJAX_COORDINATOR", "MAIJAX_PROCESS_ID", "MAIJAX_NUM_PROCESSES")
JOBSET = (
    "JOBSET_NAME", "JOBSET_JOB", "JOBSET_JOB_INDEX", "JOBSET_JOB_COUNT", "JOBSET_JOB_PROCESSES",
    "JOB_COMPLETION_INDEX",
)
SLURM = ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_STEP_NODELIST", "SLURM_JOB_ID")
JOBSET_PORT = 8476
_HEARTBEAT = 30  # seconds without a sign of life after which a process counts as dead, and all end
_STARTING = 300  # seconds that a process waits for process 0 to listen
_LEAVING = 300  # seconds that a process which is done waits for the others


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """One process's place among several."""

    coordinator: str | None  # host:port of process 0; None: jax finds all of this by itself
    process_id: int = 0
    num_processes: int = 1
    local_devices: tuple[int, ...] | None = None  # of the host's GPUs; None: all that are visible

    @property
    def bind(self) -> str | None:
        """Where process 0 listens: nobody outside is let in if all processes are on this machine."""
        loopback = self.coordinator and re.match(r"(localhost|127\.[\d.]+|\[::1\]):", self.coordinator)
        return self.coordinator if loopback else None


def settings(environ: Mapping[str, str]) -> Settings | None:
    """What an environment says; None: this process is the only one. A pure function.

    Raises UserError that names the variables which are missing or wrong.
    """
    if any(name in environ for name in OWN):
        return _own(environ)
    hosts = environ.get("TPU_PROCESS_ADDRESSES") or environ.get("TPU_WORKER_HOSTNAMES") or ""
    if "," in hosts or environ.get("MEGASCALE_NUM_SLICES", "1") not in ("", "1"):
        return Settings(coordinator=None)
    if any(name in environ for name in JOBSET[:-1]):
        return _jobset(environ)
    if environ.get("SLURM_STEP_NUM_TASKS", "1") != "1":
        return _slurm(environ)
    return None


def start(found: Settings) -> None:
    """Connects this process with the others, before anything asks jax for its devices; raises RunError if it cannot."""
    # Our own handlers note Ctrl-C and SIGTERM, and the loop agrees on a step; before it, a signal ends the process.
    jax.config.update("jax_enable_preemption_service", False)
    waits: dict[str, Any] = {"heartbeat_timeout_seconds": _HEARTBEAT, "shutdown_timeout_seconds": _LEAVING}
    try:
        if found.coordinator is None:
            jax.distributed.initialize(**waits)
            return
        if found.process_id:
            _reach(found.coordinator)  # jax would wait as long, and then abort
        jax.distributed.initialize(
            found.coordinator, found.num_processes, found.process_id, found.local_devices,
            cluster_detection_method="deactivate", coordinator_bind_address=found.bind, **waits,
        )
    except (RuntimeError, ValueError, OSError) as error:
        where = found.coordinator or "the coordinator that jax found"
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise RunError(
            f"process {found.process_id} of {found.num_processes}: no connection by {where} ({first}); is process 0 "
            "up, and its port free and reachable?"
        ) from error


def _reach(address: str) -> None:
    """Waits until something listens there; raises OSError if nothing does in time."""
    host, _, port = address.rpartition(":")
    until = time.monotonic() + _STARTING
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
            return
        except OSError:
            if time.monotonic() > until:
                raise
        time.sleep(0.5)


def _own(environ: Mapping[str, str]) -> Settings | None:
    if environ.get(OWN[0]) == "auto":
        if more := [name for name in OWN[1:] if name in environ]:
            raise UserError(f"MAIJAX_COORDINATOR=auto asks jax for all of it; unset {' and '.join(more)}")
        return Settings(coordinator=None)
    _complete(environ, OWN, "one of several processes")
    host, _, port = environ[OWN[0]].rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UserError(f"MAIJAX_COORDINATOR={environ[OWN[0]]!r} must be host:port of process 0, e.g. 127.0.0.1:8476")
    return _placed(environ[OWN[0]], environ, OWN[1], _number(environ, OWN[1]), _number(environ, OWN[2], least=1))


def _jobset(environ: Mapping[str, str]) -> Settings | None:
    """The pods of one replicated job; the first pod of its first job is process 0."""
    _complete(environ, JOBSET, "a pod of a JobSet")
    name, job = environ["JOBSET_NAME"], environ["JOBSET_JOB"]
    index, count = _number(environ, "JOBSET_JOB_INDEX"), _number(environ, "JOBSET_JOB_COUNT", least=1)
    each, inside = _number(environ, "JOBSET_JOB_PROCESSES", least=1), _number(environ, "JOB_COMPLETION_INDEX")
    if inside >= each:
        raise UserError(f"JOB_COMPLETION_INDEX={inside} must be below JOBSET_JOB_PROCESSES={each}, its parallelism")
    address = f"{name}-{job}-0-0.{name}:{JOBSET_PORT}"
    return _placed(address, environ, "JOBSET_JOB_INDEX", index * each + inside, count * each)


def _slurm(environ: Mapping[str, str]) -> Settings | None:
    _complete(environ, SLURM, "a task of an srun step")
    nodes = environ["SLURM_STEP_NODELIST"]
    # The first of 'a1', 'a1,b2', 'a[01-07,9]', 'a[01-07]-ib'.
    first = re.match(r"([^,\[\]]+)(?:\[(\w+)[^\]]*\]([^,\[\]]*))?", nodes)
    if first is None:
        raise UserError(f"SLURM_STEP_NODELIST={nodes!r} must begin with a host's name")
    host = "".join(part or "" for part in first.groups())
    # Above the ports that systems give away by themselves; another job or step on the same node has another.
    port = 61440 + (_number(environ, "SLURM_JOB_ID") + int(environ.get("SLURM_STEP_ID") or 0)) % 4096
    count = _number(environ, "SLURM_STEP_NUM_TASKS", least=1)
    found = _placed(f"{host}:{port}", environ, "SLURM_PROCID", _number(environ, "SLURM_PROCID"), count)
    crowded = count > int(environ.get("SLURM_STEP_NUM_NODES") or count)
    if found is None or not crowded or len(environ.get("CUDA_VISIBLE_DEVICES", "0,1").split(",")) == 1:
        return found
    # Several tasks see the same GPUs of a node: each takes one.
    _complete(environ, ("SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"), "a task that shares its node")
    return dataclasses.replace(found, local_devices=(_number(environ, "SLURM_LOCALID"),))


def _placed(
    coordinator: str, environ: Mapping[str, str], name: str, process_id: int, num_processes: int
) -> Settings | None:
    if process_id >= num_processes:
        raise UserError(f"{name}={environ[name]} makes this process {process_id} of {num_processes}; they count from 0")
    if num_processes == 1:
        return None
    return Settings(coordinator=coordinator, process_id=process_id, num_processes=num_processes)


def _complete(environ: Mapping[str, str], names: tuple[str, ...], what: str) -> None:
    if missing := [name for name in names if not environ.get(name)]:
        there = next(name for name in names if name in environ)
        raise UserError(f"{there} says that this is {what}, but {', '.join(missing)} is not set; set it, or unset all")


def _number(environ: Mapping[str, str], name: str, least: int = 0) -> int:
    text = environ[name]
    if not text.isdecimal() or int(text) < least:
        raise UserError(f"{name}={text!r} must be a whole number, {least} or more")
    return int(text)
