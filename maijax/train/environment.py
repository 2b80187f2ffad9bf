"""What a run ran on: versions, hardware, and the speed that its matmuls could reach."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

PACKAGES = (
    "maijax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets",
    "sentencepiece", "numpy",
)


def describe() -> dict[str, Any]:
    """The environment of this process, for environment.json: no variable of it, since those hold secrets."""
    device = jax.devices()[0]
    return {
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "git": git_revision(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "devices": f"{jax.device_count()} x {device.device_kind}",
        "processes": jax.process_count(),
    }


def git_revision() -> str | None:
    """The commit of the checkout that this package lies in, with a plus if files differ; None outside one."""
    where = Path(__file__).resolve().parents[2]
    if not (where / ".git").exists():
        return None
    try:
        def git(*words: str) -> str:
            done = subprocess.run(["git", *words], cwd=where, capture_output=True, text=True, timeout=5, check=True)
            return done.stdout.strip()

        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def matmul_peak(cache: Path, dtype: Any = jnp.float32) -> float:
    """Measured FLOP/s of one large product on all local devices together, best of a few; kept per machine."""
    device = jax.devices()[0]
    size = 2048 if device.platform == "cpu" else 8192
    name = jnp.dtype(dtype).name
    key = f"{platform.node()} {cpu_model()} x{os.cpu_count()} {device.device_kind} {name} {jax.__version__}"
    file = cache / "matmul_peak.json"
    known: dict[str, float] = {}
    try:
        known = json.loads(file.read_text())
    except (OSError, ValueError):
        pass
    if key not in known:
        x = jax.device_put(jnp.ones((size, size), dtype), device)
        product = jax.jit(lambda a: a @ a)
        product(x).block_until_ready()
        best = float("inf")
        for _ in range(5):
            start = time.perf_counter()
            product(x).block_until_ready()
            best = min(best, time.perf_counter() - start)
        known[key] = 2 * size**3 / best
        try:
            cache.mkdir(parents=True, exist_ok=True)
            part = file.with_suffix(f".{os.getpid()}")
            part.write_text(json.dumps(known))
            part.replace(file)
        except OSError:
            pass  # measured again next time
    # Simulated CPU devices share one machine's cores.
    return known[key] * (1 if device.platform == "cpu" else jax.device_count())


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
