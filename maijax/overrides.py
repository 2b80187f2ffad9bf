"""One syntax to change an experiment: `--set a.b=v`, typed by the field.

  whole number    1200, 1_200, 1.2e3            text       as it stands
  number          3e-4                          choice     one of the field's words
  yes or no       true, false                   off        none, where the field may be none
  several         1.0,2.5                       none of them: ()
  sources         data.sources=a.jsonl,b.txt@0.3       (the weight after @, 1 if left out)
  a whole block   model.moe={"num_experts": 8, "top_k": 2, "d_ff": 64}     (JSON; [..] for several blocks)
A path goes into blocks by name and into several by index: data.sources[0].weight=2.
"""

from __future__ import annotations

import dataclasses
import math
import re
import typing
from collections.abc import Iterable
from typing import Any, get_args, get_origin

from maijax import plain
from maijax.config import Experiment, SourceConfig
from maijax.errors import UserError
from maijax.plain import ABSENT, diff, flatten, from_json, from_plain, to_json, to_plain

__all__ = ["ABSENT", "apply", "check", "diff", "flatten", "from_json", "from_plain", "show", "to_json", "to_plain"]

_SEGMENT = re.compile(r"([A-Za-z_]\w*)((?:\[\d+\])*)")
_WEIGHTED = re.compile(r"(.+)@([-+]?[\d.][-+.\deE]*)")


def apply(experiment: Experiment, settings: Iterable[str]) -> Experiment:
    """The experiment with each `a.b=v` set in turn, validated.

    Raises UserError that lists every problem: of each setting, and of the values together.
    """
    problems: list[str] = []
    values = to_plain(experiment)
    for setting in settings:
        path, equals, text = setting.partition("=")
        if not equals or not path.strip():
            problems.append(f"{setting!r} must be of the form a.b=value")
            continue
        try:
            _set(values, path.strip(), text.strip())
        except UserError as error:
            problems.append(str(error))
    changed = _assemble(values, to_plain(experiment), problems)
    problems += changed.problems()
    if problems:
        raise UserError("; ".join(problems))
    return changed


def check(path: str, text: str) -> None:
    """Raises UserError if a field, named without indices, cannot take this text; blocks that are off count as on."""
    hint: typing.Any = Experiment
    for name in re.sub(r"\[\d+\]", "", path).split("."):
        kind, _ = plain.optional(hint)
        hint = plain.hints(get_args(kind)[0] if get_origin(kind) is tuple else kind)[name]
    _checked(_parse(text, hint, path), hint, path)


def _assemble(values: dict[str, Any], before: dict[str, Any], problems: list[str]) -> Experiment:
    """The experiment of these values; a block that cannot be made stays as before, so that all are seen."""
    usable = {}
    for name, hint in plain.hints(Experiment).items():
        found: list[str] = []
        plain.convert(hint, values[name], name, found)
        usable[name] = before[name] if found else values[name]
        problems += found
    return typing.cast(Experiment, plain.build(Experiment, usable, "", problems))


def _set(values: dict[str, Any], path: str, text: str) -> None:
    """Puts one value into an experiment's plain form, converted to its field's type; raises UserError."""
    block, node = Experiment, values
    *parents, last = path.split(".")
    for depth, segment in enumerate([*parents, last]):
        match = _SEGMENT.fullmatch(segment)
        if match is None or match[1] not in plain.hints(block) or path in plain.METADATA:
            raise plain.no_field(path)
        hint, holder, key = plain.hints(block)[match[1]], typing.cast(Any, node), typing.cast(Any, match[1])
        here = ".".join([*parents[:depth], match[1]])
        for index in map(int, re.findall(r"\d+", match[2])):
            if get_origin(hint) is not tuple:
                raise UserError(f"{path}: {here} is one value; leave out [{index}]")
            if index >= len(holder[key]):
                raise UserError(f"{path}: {here} has {len(holder[key])} of them, counted from [0]")
            hint, holder, key = get_args(hint)[0], holder[key], index
        if depth == len(parents):
            holder[key] = _checked(_parse(text, hint, path), hint, path)
            return
        kind, _ = plain.optional(hint)
        if not dataclasses.is_dataclass(kind):
            several = get_origin(kind) is tuple and dataclasses.is_dataclass(get_args(kind)[0])
            raise UserError(f"{path}: say which, e.g. {here}[0].{last}") if several else plain.no_field(path)
        if holder[key] is None:  # a block that was off; what it still lacks is named when it is made
            holder[key] = {}
        block, node = typing.cast(type, kind), holder[key]


def _checked(value: Any, hint: Any, path: str) -> Any:
    problems: list[str] = []
    plain.convert(hint, value, path, problems)
    if problems:
        raise UserError("; ".join(problems))
    return value


def _parse(text: str, hint: Any, path: str) -> Any:
    """Text to the plain form of a type; what does not fit stays text, for `plain.convert` to refuse."""
    kind, may_be_none = plain.optional(hint)
    if may_be_none and text.lower() == "none":
        return None
    if dataclasses.is_dataclass(kind):
        return _parse_json(text, path) if text.startswith("{") else _refuse(text, hint, path)
    if get_origin(kind) is tuple:
        return _parse_several(text, get_args(kind)[0], path)
    if kind is bool:
        return {"true": True, "false": False}.get(text.lower(), text)
    return _number(text, kind) if kind in (int, float) else text


def _refuse(text: str, hint: Any, path: str) -> typing.NoReturn:
    raise UserError(f"{path}={text!r} must be {plain.wanted(hint)}")


def _parse_json(text: str, path: str) -> Any:
    try:
        return plain.parse_json(text)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _parse_several(text: str, item: Any, path: str) -> Any:
    if text.startswith("["):
        return _parse_json(text, path)
    parts = [part.strip() for part in text.split(",")] if text not in ("", "()") else []
    if item is SourceConfig:
        split = [_WEIGHTED.fullmatch(part) or (part, part, "1") for part in parts]
        return [{"uri": match[1], "weight": _number(match[2], float)} for match in split]
    return [_parse(part, item, path) for part in parts]


def _number(text: str, kind: type) -> int | float | str:
    try:
        if kind is int and re.fullmatch(r"[+-]?\d[\d_]*", text):
            return int(text)
        value = float(text)
    except ValueError:
        return text
    fits = math.isfinite(value) and (kind is float or value.is_integer())
    return kind(value) if fits else text


def show(value: Any) -> str:
    """A value as `--set` takes it."""
    if value is None:
        return "none"
    if value == ():
        return "()"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return _shortest(value)
    if isinstance(value, tuple):
        return ",".join(map(show, value))
    return str(value)


def _shortest(value: float) -> str:
    """0.0003 as 3e-4 and 10000.0 as 10000: what a person would write for exactly this number."""
    plainly = repr(value)
    if plainly.endswith(".0") and len(plainly) < 12:
        return plainly[:-2]
    if 1e-3 <= abs(value) < 1e12:
        return plainly
    exact = next(text for digits in range(17) if float(text := f"{value:.{digits}e}") == value)
    mantissa, _, exponent = exact.partition("e")
    return f"{mantissa}e{int(exponent)}"
