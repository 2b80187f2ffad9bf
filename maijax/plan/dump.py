"""What the compiler wrote down of a program: its instructions with their cycles, and its largest buffers. No jax."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from maijax.plan import collectives, hlo
from maijax.plan.hlo import Program

# From the last stage to earlier ones: a compile that ran out of memory has no later one.
_STAGES = (
    "after_codegen", "gpu_after_optimizations", "cpu_after_optimizations", "after_optimizations",
    "oom_intermediate_module", "before_buffer_assignment",
)
_UNITS = {"": 1, "B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_KERNEL = "tpu_custom_call"
_MODULE = "jit_step"  # our step's name among the dumped programs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """What a device does in a step, as the compiler has it."""

    cycles: int | None  # of all but kernels and collectives, by the compiler's own estimate (TPU)
    kernels: int  # calls of kernels of our own, which the compiler does not estimate
    kernel_names: tuple[str, ...]
    kernel_flops: float  # that these kernels say they need; 0 where they say nothing
    unknown_loops: tuple[str, ...]  # counted once, for want of their trip count
    traffic: tuple[collectives.Traffic, ...]


def read(folder: Path, mesh: Mapping[str, int], module: str = _MODULE) -> Work | None:
    """The work of the program that was dumped to a folder; None if it holds no program of that name."""
    file = _file(folder, module)
    if file is None:
        return None
    program = hlo.parse(file.read_text())
    return work(program, mesh)


def work(program: Program, mesh: Mapping[str, int]) -> Work:
    cycles = kernels = 0
    names: set[str] = set()
    flops = 0.0
    estimated = False
    for one, times, _, fused in program.visits():
        if fused:
            continue
        if found := re.search(r'"estimated_cycles":"(\d+)"', one.attributes):
            estimated = True
            cycles += times * int(found.group(1))
        elif one.op == "custom-call" and _KERNEL in one.attributes:
            kernels += times
            names.add(one.name.partition(".")[0])
            if cost := re.search(r'"cost_estimate":\{[^}]*"flops":"?(\d+)', one.attributes):
                flops += times * float(cost.group(1))
    return Work(
        cycles=cycles if estimated else None,
        kernels=kernels, kernel_names=tuple(sorted(names)), kernel_flops=flops,
        unknown_loops=tuple(program.unknown_loops()), traffic=tuple(collectives.read(program, mesh)),
    )


def largest(folder: Path, most: int = 5) -> list[dict[str, Any]]:
    """The largest temporary buffers, from the compiler's report: {"bytes", "holds"}, shapes in short."""
    file = _newest(folder, "memory-usage-report.txt")
    if file is None:
        return []
    found = []
    for line in file.read_text().splitlines()[1:]:
        if line.startswith("Memory Space"):
            break  # the device's own memory comes first; its caches follow
        cells = [cell.strip() for cell in line.split(";")]
        if len(cells) >= 5 and (size := _size(cells[1])) is not None:
            found.append({"bytes": size, "holds": cells[4]})
    return sorted(found, key=lambda f: -f["bytes"])[:most]


def refusal(message: str) -> dict[str, int] | None:
    """{"needs", "has"} in bytes of a compiler's out-of-memory error; zeros if it names none; None for other errors."""
    if not re.search(r"RESOURCE_EXHAUSTED|CompileTimeHbmOom|[Oo]ut of memory", message):
        return None
    number = r"([\d.]+) ?([KMGT])i?B?"
    for pattern in (
        rf"HLO temporaries \({number}\) exceeds available HBM \({number}\)",
        rf"Used {number} of {number} hbm",
    ):
        if found := re.search(pattern, message):
            needs, has = (float(found.group(i)) * 2 ** (10 * " KMGT".index(found.group(i + 1))) for i in (1, 3))
            return {"needs": round(needs), "has": round(has)}
    return {"needs": 0, "has": 0}


def _file(folder: Path, module: str) -> Path | None:
    for stage in _STAGES:
        if (file := _newest(folder, f"{stage}.txt", module)) is not None:
            return file
    return None


def _newest(folder: Path, ending: str, module: str = _MODULE) -> Path | None:
    found = sorted(folder.glob(f"*{module}*{ending}"), key=lambda file: (file.stat().st_mtime, file.name))
    return found[-1] if found else None


def _size(text: str) -> int | None:
    found = re.fullmatch(r"([\d.]+) ?([KMGT]?i?B)", text)
    return round(float(found.group(1)) * _UNITS[found.group(2)]) if found and found.group(2) in _UNITS else None
