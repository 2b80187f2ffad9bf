"""What devices send one another in a step, read from a compiled program: bytes by kind and by mesh axis. No jax."""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from collections.abc import Mapping, Sequence

from maijax.plan.hlo import Instruction, Program, arrays

_KINDS = {
    "all-gather": "all-gather", "all-reduce": "all-reduce", "reduce-scatter": "reduce-scatter",
    "all-to-all": "all-to-all", "ragged-all-to-all": "all-to-all", "collective-permute": "permute",
    "collective-broadcast": "broadcast",
}
_GROUPS = re.compile(
    r"replica_groups=(mesh\[.*?\}|\[[\d,]+\]<=\[[\d,]+\](?:T\([\d,]+\))?|\{\{.*?\}\}|\{\})"
)
_IOTA = re.compile(r"^\[([\d,]+)\](?:T\(([\d,]+)\))?$")


@dataclasses.dataclass(frozen=True, order=True)
class Traffic:
    """All collectives of one kind over the same mesh axes."""

    kind: str
    axes: tuple[str, ...]  # of the mesh, in its order
    ways: int  # devices in a group
    times: int  # per step
    sent: int  # bytes per device and step, by a ring


def read(program: Program, mesh: Mapping[str, int]) -> list[Traffic]:
    """The collectives of a program that was partitioned over a mesh of these sizes, the most bytes first."""
    times: collections.Counter[tuple[str, tuple[str, ...], int]] = collections.Counter()
    sent: collections.Counter[tuple[str, tuple[str, ...], int]] = collections.Counter()
    for one, runs, computation, _ in program.visits():
        kind = _KINDS.get(one.op.removesuffix("-start"))
        if kind is None or _seen_before(one, computation, program):
            continue
        groups = _moves(one, mesh) if kind == "permute" else _group(one, mesh)
        axes = _varying(groups, mesh)
        ways = max(map(len, groups), default=1)
        # The TPU compiler writes a reduce-scatter as an all-reduce fused with the slice that is kept.
        if kind == "all-reduce" and computation.startswith("all-reduce-scatter"):
            kind = "reduce-scatter"
            moved = sum(arrays(one.shape)) * (ways - 1) / ways
        else:
            moved = _sent(one, kind, ways)
        key = (kind, axes, ways)
        times[key] += runs
        sent[key] += round(moved) * runs
    found = [Traffic(*key, times=times[key], sent=sent[key]) for key in times if key[2] > 1]
    return sorted(found, key=lambda t: (-t.sent, t))


def _seen_before(one: Instruction, computation: str, program: Program) -> bool:
    """The TPU compiler repeats a collective in every fusion that carries it on; the one that starts it counts."""
    if "async_collective_fusion_config" not in one.attributes:
        return False
    return not any('"AsyncCollectiveStart"' in other.attributes for other in program.computations[computation])


def _sent(one: Instruction, kind: str, ways: int) -> float:
    """Bytes that a device sends in one run, if the group is a ring."""
    result: float = sum(arrays(one.shape))
    if one.op.endswith("-start"):  # its shape holds the operands too
        if kind == "all-gather":
            result *= ways / (ways + 1)
        elif kind == "reduce-scatter":
            result /= ways + 1
        elif kind in ("permute", "all-to-all"):
            result /= 2
    if kind == "permute":
        return result
    if kind == "reduce-scatter":
        return result * (ways - 1)
    return result * (ways - 1) / ways * (2 if kind == "all-reduce" else 1)


def _group(one: Instruction, mesh: Mapping[str, int]) -> list[list[int]]:
    """One group of devices that talk with each other, by their place in the mesh."""
    devices = math.prod(mesh.values())
    found = _GROUPS.search(one.attributes)
    text = found.group(1) if found else "{}"
    if text.startswith("mesh"):
        return [_of_mesh(text)]
    if text.startswith("["):
        shape, _, order = text.partition("<=")
        size = int(shape.strip("[]").split(",")[-1])
        return [_iota(order, range(size))]
    first = re.match(r"\{\{([\d,]*)\}", text)
    return [[int(n) for n in first.group(1).split(",") if n] if first else list(range(devices))]


def _moves(one: Instruction, mesh: Mapping[str, int]) -> list[list[int]]:
    """(from, to) of the devices that send to another."""
    found = re.search(r"source_target_pairs=\{(.*?)\}\}", one.attributes)
    pairs = re.findall(r"\{(\d+),(\d+)", found.group(1) + "}" if found else "")
    return [[int(a), int(b)] for a, b in pairs if a != b]


def _of_mesh(text: str) -> list[int]:
    """The first group of "mesh['a'=4,'b'=2], device_ids=([4,2]T(1,0)) {'b'}"; an axis may be part of one: 'a':(2)2."""
    inside, _, rest = text.removeprefix("mesh[").partition("]")
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", inside)}
    order = re.search(r"device_ids=\(([^{]*)\) *\{", rest)
    steps, step = {}, 1
    for name, size in reversed(sizes.items()):
        steps[name] = step
        step *= size
    members = [0]
    for name, before, part in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", rest[rest.rindex("{") :]):
        size = int(part) if part else sizes[name]
        stride = steps[name] * (sizes[name] // (int(before) * size) if part else 1)
        members = [m + i * stride for m in members for i in range(size)]
    return _iota(order.group(1), members) if order and _IOTA.match(order.group(1)) else members


def _iota(text: str, places: Sequence[int]) -> list[int]:
    """The numbers at some places of "[4,2]T(1,0)": 0, 1, 2, ... in that shape, transposed, laid out in a row."""
    found = _IOTA.match(text)
    if found is None:
        return list(places)
    shape = [int(n) for n in found.group(1).split(",")]
    order = [int(n) for n in found.group(2).split(",")] if found.group(2) else list(range(len(shape)))
    strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
    numbers = []
    for place in places:
        number = 0
        for axis in reversed(order):
            place, index = divmod(place, shape[axis])
            number += index * strides[axis]
        numbers.append(number)
    return numbers


def _varying(groups: Sequence[Sequence[int]], mesh: Mapping[str, int]) -> tuple[str, ...]:
    """The mesh axes along which the devices of a group differ."""
    found = []
    for axis, size in mesh.items():
        names = list(mesh)
        stride = math.prod(mesh[a] for a in names[names.index(axis) + 1 :])
        if size > 1 and any(len({device // stride % size for device in group}) > 1 for group in groups):
            found.append(axis)
    return tuple(found)
