"""The verb doctor: what this machine has, and whether an experiment fits it. The one reading verb that needs jax."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import json
import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path

from maijax import __version__, registry, rules, scaling, weights
from maijax.cli import choose
from maijax.cli.table import rows, size
from maijax.config import Experiment
from maijax.errors import UserError
from maijax.hardware import Topology
from maijax.plan import arithmetic, checks

_ENOUGH_DISK = 2e9  # bytes: the stories, a few checkpoints


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line of the report; `bad` says how to mend it, or is None."""

    what: str
    found: str
    bad: str | None = None


@dataclasses.dataclass(frozen=True)
class Machine:
    """The devices that jax sees, and the memory that each has left."""

    platform: str
    kind: str
    count: int
    memory: float | None  # bytes per device; simulated devices share the machine's


def doctor(args: argparse.Namespace) -> int:
    """Returns 1 if something stands in the way, else 0; the experiment's own problems raise UserError."""
    experiment = choose.experiment(args)[0] if args.name else None
    if args.topology:
        if experiment is None:
            raise UserError("--topology asks whether an experiment fits it; name one, e.g. maijax doctor mai_70b ...")
        findings = list(_elsewhere(experiment, registry.topology(args.topology, args.slices)))
    else:
        machine = _machine()
        findings = [*_software(), *_hardware(machine), *_folders()]
        if experiment is not None:
            findings += _fits(experiment, machine)
    bad = [finding for finding in findings if finding.bad]
    if args.json:
        print(json.dumps({"ok": not bad, "findings": [dataclasses.asdict(f) for f in findings]}, indent=1))
    else:
        rows([("BAD" if f.bad else "ok", f.what, _line(f)) for f in findings], widths=(3, 22, 71))
        print(f"\n{len(bad)} to mend" if bad else "\nnothing to mend")
    return 1 if bad else 0


def _elsewhere(experiment: Experiment, topology: Topology) -> Iterator[Finding]:
    """On a machine that is not here: every rule of the layout, then memory by arithmetic. No jax."""
    yield Finding("experiment", f"{experiment.name}: its values fit each other")
    yield Finding("topology", f"{topology.title}: {topology.chips:,} chips, {topology.devices:,} devices")
    problems = checks.problems(experiment, topology)
    for problem in problems:
        yield Finding("mesh", problem, "change it with --set, or choose another --mesh")
    if problems:
        return
    estimate = arithmetic.estimate(experiment, topology)
    axes = " x ".join(f"{axis} {ways}" for axis, ways in estimate.mesh.items() if ways > 1) or "one device"
    yield Finding("mesh", axes)
    room = topology.chip.device_hbm
    yield Finding(
        "fits in memory", f"about {size(estimate.peak_bytes)} per device (model), {size(room)} there",
        None if estimate.fits else "see maijax plan --search, which looks for a layout that fits",
    )


def obstacles(experiment: Experiment) -> list[str]:
    """What stands in an experiment's way on this machine, one line each."""
    return [_line(finding) for finding in _fits(experiment, _machine()) if finding.bad]


def _line(finding: Finding) -> str:
    return f"{finding.found}: {finding.bad}" if finding.bad else finding.found


def _software() -> Iterator[Finding]:
    yield Finding("maijax", __version__)
    version = platform.python_version()
    supported = (3, 11) <= tuple(map(int, platform.python_version_tuple()[:2])) < (3, 14)
    yield Finding("python", version, None if supported else "use 3.11, 3.12 or 3.13")
    from maijax.train.environment import PACKAGES

    for name in PACKAGES[1:]:  # the first is maijax
        try:
            yield Finding(name, importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            yield Finding(name, "missing", f"pip install {name}")


def _machine() -> Machine:
    import jax  # seconds; only this verb pays for it

    device = jax.local_devices()[0]
    memory = (device.memory_stats() or {}).get("bytes_limit")
    if memory is None:
        free = _free_memory()
        memory = free / jax.local_device_count() if free else None
    return Machine(platform=device.platform, kind=device.device_kind, count=jax.device_count(), memory=memory)


def _hardware(machine: Machine) -> Iterator[Finding]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Finding("cores", str(cores))
    free = _free_memory()
    yield Finding("memory free", size(free) if free else "unknown")
    each = f", {size(machine.memory)} each" if machine.memory else ""
    yield Finding("devices", f"{machine.count} x {machine.kind} ({machine.platform}){each}")


def _free_memory() -> float | None:
    """Bytes that a new process can have; None where the system does not say."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return float(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def _folders() -> Iterator[Finding]:
    from maijax.data import cachedir

    for what, folder, remedy in (
        ("cache folder", cachedir.default(), "set MAIJAX_CACHE to a folder of yours"),
        ("runs folder", Path("runs"), "go to a folder of yours, or give --runs-dir"),
    ):
        there = folder.absolute()
        while not there.exists():  # it is made when it is first needed
            there = there.parent
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            yield Finding(what, f"{folder} cannot be written", remedy)
            continue
        free = shutil.disk_usage(there).free
        low = f"free some disk, or {remedy}" if free < _ENOUGH_DISK else None
        yield Finding(what, f"{folder}, {size(free)} free", low)


def _fits(experiment: Experiment, machine: Machine) -> Iterator[Finding]:
    yield Finding("experiment", f"{experiment.name}: its values fit each other")
    yield from _corpora(experiment)
    try:
        sizes = experiment.mesh.shape(machine.count)
        need = _bytes_per_device(experiment, sizes, machine)
    except UserError as error:
        yield Finding("mesh", str(error), "choose another with --mesh, e.g. FSDP")
        return
    axes = " x ".join(f"{axis} {ways}" for axis, ways in sizes.items() if ways > 1) or "one device"
    yield Finding("mesh", axes)
    needed = f"about {size(need)} per device for state and activations"
    if machine.memory is None:
        yield Finding("fits in memory", f"{needed}; free memory is unknown")
        return
    remedy = "more devices with --mesh FSDP, a smaller train.batch_size, or model.remat=full"
    found = f"{needed}, {size(machine.memory)} there"
    yield Finding("fits in memory", found, remedy if need > machine.memory else None)


def _corpora(experiment: Experiment) -> Iterator[Finding]:
    files = [("data.sources", source.uri) for source in experiment.data.sources]
    if experiment.data.tokenizer is not None:
        files.append(("data.tokenizer", experiment.data.tokenizer))
    for path, uri in files:
        here = uri.startswith("tfds:") or Path(uri).expanduser().exists()
        remedy = None if here else f"name yours with --set {path}="
        yield Finding(path, f"{uri} is {'there' if here else 'not there'}", remedy)


def _bytes_per_device(experiment: Experiment, sizes: dict[str, int], machine: Machine) -> float:
    """State exactly by the rules, activations roughly; raises UserError if the mesh does not divide them."""
    if bad := rules.problems(experiment, sizes):
        raise UserError("; ".join(bad))
    model = experiment.model

    state = sum(
        scaling.weight_state_bytes(w, experiment.optim) / rules.shares(w.logical_axes, w.sizes, sizes, w.path)
        for w in weights.declare(model)
    )
    batch = experiment.train.batch_size
    dtype = model.dtype if model.dtype != "auto" else ("float32" if machine.platform == "cpu" else "bfloat16")
    resolved = dataclasses.replace(experiment, model=dataclasses.replace(model, dtype=dtype))
    share = rules.shares(("batch",), (batch,), sizes, "train.batch_size") * experiment.train.accumulation
    return state + scaling.activation_bytes(resolved, max(1, batch // share))
