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

from maijax.data import cachedir

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


def changes(file: Path, here: dict[str, Any]) -> list[str]:
    """What of an earlier description, in a file, is other now and can change the last bits of a sum."""
    try:
        there = json.loads(file.read_text())
        known = {"cpu": there["cpu"], "devices": there["devices"], **there["versions"]}
    except (OSError, ValueError, KeyError, TypeError):
        return []  # nothing is known of it
    now = {"cpu": here["cpu"], "devices": here["devices"], **here["versions"]}
    return [f"{k} was {known[k]}, is {v}" for k, v in now.items() if k != "maijax" and known.get(k, v) != v]


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
    """Measured FLOP/s of a large product on the local devices together: the best that this machine has ever shown.

    A busy machine shows less than it can, so the best is kept in the cache folder and each run tries again.
    """
    device = jax.local_devices()[0]
    on_cpu = device.platform == "cpu"
    size = 2048 if on_cpu else 8192
    x = jax.device_put(jnp.ones((size, size), dtype), device)
    product = jax.jit(lambda a: a @ a)
    product(x).block_until_ready()
    times = []
    for _ in range(3):
        start = time.perf_counter()
        product(x).block_until_ready()
        times.append(time.perf_counter() - start)
    key = f"{platform.node()}, {cpu_model()} x {os.cpu_count()}, {device.device_kind}, {jnp.dtype(dtype).name}"
    file = cache / "matmul_peak.json"
    try:
        known = json.loads(file.read_text())
        best = max(float(known.get(key, 0.0)), 2 * size**3 / min(times))
    except (OSError, ValueError, AttributeError):
        known, best = {}, 2 * size**3 / min(times)
    try:
        cachedir.write_file(file, json.dumps(known | {key: best}, indent=1).encode())
    except OSError:
        pass  # measured again next time
    # Simulated CPU devices share one machine's cores.
    return best * (1 if on_cpu else jax.device_count())


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
