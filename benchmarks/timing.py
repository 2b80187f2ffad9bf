"""What every side of the step benchmark shares: the sizes, the FLOPs of a step, and how a step is timed.

Standard library only: Levanter's side imports it in an environment of its own.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SIZES = {
    "S": dict(layers=6, d=256, heads=8, ffn=1024, vocab=4096, seq=256, batch=16),
    "M": dict(layers=12, d=512, heads=8, ffn=1536, vocab=4096, seq=256, batch=8),
}
WARM = 3  # steps that do not count


def step_flops(size: dict[str, int]) -> int:
    """Return the FLOPs of a step: 6 per weight of a product and token, and the attention scores without skipping."""
    layer = 4 * size["d"] ** 2 + 3 * size["d"] * size["ffn"]
    weights = size["layers"] * layer + size["vocab"] * size["d"]
    return size["batch"] * size["seq"] * (6 * weights + 12 * size["layers"] * size["d"] * size["seq"])


def busy_seconds() -> float:
    """Return the CPU-seconds that the whole machine has worked since it started."""
    fields = [int(x) for x in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")


def medians(rows: list[tuple[float, float, float]]) -> dict[str, Any]:
    """Return the medians of steps given as CPU-seconds, wall seconds, CPU-seconds of the whole machine."""
    cpu, wall, others = zip(*((own, wall, max(0.0, busy - own) / wall) for own, wall, busy in rows), strict=True)
    return {"cpu_s": statistics.median(cpu), "wall_s": statistics.median(wall), "others": statistics.median(others)}


def timed(step: Callable[[], float], steps: int) -> dict[str, Any]:
    """Return medians over steps: CPU-seconds, wall seconds, and the cores that others were using."""
    first = step()
    for _ in range(WARM - 1):
        step()
    rows = []
    for _ in range(steps):
        own, wall, busy = time.process_time(), time.perf_counter(), busy_seconds()
        last = step()
        rows.append((time.process_time() - own, time.perf_counter() - wall, busy_seconds() - busy))
    return medians(rows) | {"first_loss": first, "last_loss": last}
