"""Optimised HLO text as instructions, each with the number of times that a step runs it. No jax.

XLA's own totals count the body of a loop once; here a body counts as often as its loop goes round.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

_BYTES = {
    "pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4,
    "f32": 4, "s64": 8, "u64": 8, "f64": 8, "c64": 8, "c128": 16,
}
_ARRAY = re.compile(r"\b([a-z]+\d*(?:e\d+m\d+\w*)?)\[([\d,]*)\]")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_LINE = re.compile(r"^  (?:ROOT )?%?([\w.\-]+) = ")
_CALLED = re.compile(r"\b(?:calls|to_apply|called_computations)=\{?%?([\w.\-]+)")
_ENTERED = ("call", "async-start")  # run their computation as a whole, once


@dataclasses.dataclass(frozen=True, slots=True)
class Instruction:
    """One line of a computation."""

    name: str
    shape: str  # an array's, or a tuple's in parentheses
    op: str
    operands: str  # between the parentheses
    attributes: str  # after them
    root: bool = False  # what its computation returns

    @property
    def names(self) -> list[str]:
        """Of the operands."""
        return [part.split()[-1].lstrip("%") for part in re.split(r",\s*(?![^\[{]*[\]}])", self.operands) if part]

    def called(self, attribute: str) -> str | None:
        found = re.search(rf"\b{attribute}=%?([\w.\-]+)", self.attributes)
        return found.group(1) if found else None


class Visit(NamedTuple):
    """An instruction as a step comes by it."""

    instruction: Instruction
    times: int  # that a step runs it
    computation: str  # that it stands in
    fused: bool  # a part of a fusion, which runs as one


@dataclasses.dataclass(frozen=True)
class Program:
    """A module's computations, each a list of instructions."""

    computations: Mapping[str, Sequence[Instruction]]
    entry: str

    def visits(self) -> Iterator[Visit]:
        """All that the entry reaches, what is fused after its fusion; of a conditional the longer branch."""
        yield from self._visits(self.entry, 1, False)

    def unknown_loops(self) -> list[str]:
        """Names of the loops whose trip count is not in the text; they are counted once."""
        loops = {v.instruction for v in self.visits() if v.instruction.op == "while"}
        return sorted(loop.name for loop in loops if self.trips(loop) is None)

    def trips(self, loop: Instruction) -> int | None:
        """How often a while loop goes round: as XLA knows it, else from the bound, start and step of its counter."""
        if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes):
            return int(known.group(1))
        condition = self._named(loop.called("condition"))
        sides = [self._resolve(condition, name) for name in _compared(condition)]
        counter = next((k for kind, k in sides if kind == "carried"), None)
        bound = next((value for kind, value in sides if kind == "constant"), None)
        if counter is None:
            return None
        if bound is None:  # it is carried along, unchanged: the start of the other side
            carried = [k for kind, k in sides if kind == "carried"]
            starts = [(self._start(loop, k), k) for k in carried]
            if len(starts) != 2 or any(start is None for start, _ in starts):
                return None
            (start, counter), (bound, _) = sorted(starts)  # pyright: ignore[reportAssignmentType]
        else:
            start = self._start(loop, counter)
        body = self._named(loop.called("body"))
        return max(0, math.ceil(((bound or 0) - (start or 0)) / self._step(body, counter)))

    def _visits(self, name: str, times: int, fused: bool) -> Iterator[Visit]:
        for one in self.computations.get(name, ()):
            yield Visit(one, times, name, fused)
            if one.op == "while":
                known = self.trips(one)
                yield from self._visits(one.called("body") or "", times * (1 if known is None else known), fused)
            elif one.op == "conditional":
                yield from self._visits(max(_branches(one), key=self._length, default=""), times, fused)
            elif one.op == "fusion" or one.op in _ENTERED:
                for called in _CALLED.findall(one.attributes):
                    yield from self._visits(called, times, fused or one.op == "fusion")

    def _length(self, name: str) -> int:
        return sum(1 for _ in self._visits(name, 1, False))

    def _named(self, name: str | None) -> Mapping[str, Instruction]:
        """A computation's instructions by name, in order."""
        return self._by_name.get(name or "", {})

    def _resolve(self, where: Mapping[str, Instruction], name: str) -> tuple[str, int]:
        """("constant", its value), ("carried", the tuple's index) or ("else", 0) for a scalar of a computation."""
        one = where.get(name)
        while one is not None and one.op in ("copy", "bitcast", "convert") and one.names[0].partition("#")[0] in where:
            name = one.names[0]
            one = where.get(name)
        if one is None and (part := re.fullmatch(r"[^#]+#(\d+)", name)):  # newer text: an element of a tuple, in place
            return "carried", int(part.group(1))
        if one is not None and one.op == "constant" and one.operands.lstrip("-").isdecimal():
            return "constant", int(one.operands)
        if one is not None and one.op == "get-tuple-element":
            return "carried", int(re.findall(r"index=(\d+)", one.attributes)[0])
        return "else", 0

    def _start(self, loop: Instruction, index: int) -> int | None:
        """The constant that a loop's tuple holds at an index when it is entered."""
        where = next((named for named in self._by_name.values() if loop.name in named), {})
        tuple_ = where.get(loop.names[0])
        if tuple_ is None or tuple_.op != "tuple":
            return None
        kind, value = self._resolve(where, tuple_.names[index])
        return value if kind == "constant" else None

    def _step(self, body: Mapping[str, Instruction], index: int) -> int:
        """What a loop's body adds to its counter; 1 where that cannot be read."""
        root = _root(body)
        if root is None or root.op != "tuple":
            return 1
        one = body.get(root.names[index])
        if one is None or one.op != "add":
            return 1
        found = [value for kind, value in (self._resolve(body, name) for name in one.names) if kind == "constant"]
        return found[0] if found and found[0] > 0 else 1

    @functools.cached_property
    def _by_name(self) -> dict[str, dict[str, Instruction]]:
        return {name: {one.name: one for one in several} for name, several in self.computations.items()}


def parse(text: str) -> Program:
    """The program of an HLO module's text, as compilers dump it; lines of another form are passed over."""
    computations: dict[str, list[Instruction]] = {}
    entry, name = "", None
    written: list[str] = []  # an instruction may go on over lines: a kernel's metadata has line breaks
    for line in text.splitlines():
        if name is None:
            if head := _HEAD.match(line):
                name = head.group(2)
                entry = name if head.group(1) else entry
        elif line.rstrip() == "}":
            computations[name] = [one for text in written if (one := _instruction(text)) is not None]
            name, written = None, []
        elif _LINE.match(line):
            written.append(line)
        elif written:
            written[-1] += line
    return Program(computations=computations, entry=entry)


def arrays(shape: str) -> list[int]:
    """Bytes of each array in a shape's text, layout padding not counted."""
    return [
        math.ceil(math.prod(int(n) for n in dims.split(",") if n) * _BYTES.get(dtype, 1))
        for dtype, dims in _ARRAY.findall(shape)
    ]


def _instruction(line: str) -> Instruction | None:
    if (found := _LINE.match(line)) is None:
        return None
    at = found.end()
    end = _closing(line, at) if line[at : at + 1] == "(" else line.find(" ", at)
    opened = line.find("(", end)
    if end < 0 or opened < 0:
        return None
    closed = _closing(line, opened)
    return Instruction(
        name=found.group(1), shape=line[at:end], op=line[end:opened].strip(), operands=line[opened + 1 : closed - 1],
        attributes=line[closed:], root=line.lstrip().startswith("ROOT "),
    )


def _closing(line: str, opened: int) -> int:
    """The place after the parenthesis that closes the one at `opened`."""
    depth = 0
    for mark in re.compile(r"[()]").finditer(line, opened):
        depth += 1 if mark.group() == "(" else -1
        if depth == 0:
            return mark.end()
    return len(line)


def _compared(condition: Mapping[str, Instruction]) -> list[str]:
    """The two names that a loop's condition compares: of its root, or what it hands to a fused comparison."""
    root = _root(condition)
    return root.names if root is not None and root.op in ("compare", "fusion") else []


def _branches(one: Instruction) -> list[str]:
    several = re.search(r"branch_computations=\{([^}]*)\}", one.attributes)
    if several:
        return [name.strip().lstrip("%") for name in several.group(1).split(",")]
    return [name for key in ("true_computation", "false_computation") if (name := one.called(key))]


def _root(computation: Mapping[str, Instruction]) -> Instruction | None:
    return next((one for one in computation.values() if one.root), None)
