"""Experiments as plain data: JSON that comes back the same, paths with values, and the difference of two."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import hashlib
import json
import re
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args, get_origin

from maijax.config import Experiment
from maijax.errors import UserError

METADATA = ("name", "rules")  # of an Experiment: they decide nothing about the run


class _Absent:
    """The value of a path that one of two experiments does not have."""

    def __repr__(self) -> str:
        return "-"


ABSENT = _Absent()


def flatten(experiment: Experiment) -> dict[str, Any]:
    """Path -> value of every field, several blocks by index, None for a block that is off."""
    return dict(leaves(experiment))


def diff(a: Experiment, b: Experiment) -> dict[str, tuple[Any, Any]]:
    """Path -> (value in a, value in b) wherever they differ, ABSENT where one has no such path.

    Name and rules are left out: they do not change what a run does.
    """
    left, right = flatten(a), flatten(b)
    paths = [path for path in left | right if path not in METADATA]
    pairs = {path: (left.get(path, ABSENT), right.get(path, ABSENT)) for path in paths}
    return {path: pair for path, pair in pairs.items() if pair[0] != pair[1]}


def fingerprint(values: Any) -> str:
    """A short digest of JSON-able values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:16]


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(path, value) of everything inside a block that is not a block itself."""
    if dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from leaves(getattr(value, field.name), f"{path}.{field.name}" if path else field.name)
    elif isinstance(value, tuple) and value and dataclasses.is_dataclass(value[0]):
        for i, item in enumerate(value):
            yield from leaves(item, f"{path}[{i}]")
    else:
        yield path, value


def to_plain(value: Any) -> Any:
    """Dicts, lists and scalars, as JSON has them."""
    if dataclasses.is_dataclass(value):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return [to_plain(item) for item in value] if isinstance(value, tuple) else value


def to_json(experiment: Experiment) -> str:
    return json.dumps(to_plain(experiment), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def from_json(text: str) -> Experiment:
    """Raises UserError that names every unknown, missing, repeated or ill-typed field."""
    return from_plain(parse_json(text))


def from_plain(plain: Any) -> Experiment:
    """As `from_json`, of what `to_plain` makes."""
    problems: list[str] = []
    made = build(Experiment, plain, "", problems, complete=True)
    if problems:
        raise UserError("; ".join(problems))
    return typing.cast(Experiment, made)


def parse_json(text: str) -> Any:
    """JSON without repeated keys and without NaN or infinities; raises UserError."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        seen: dict[str, Any] = {}
        for key, value in pairs:
            if key in seen:
                raise UserError(f"the key {key!r} stands twice; keep one")
            seen[key] = value
        return seen

    def refuse(word: str) -> Any:
        raise UserError(f"{word} is no JSON number; write a finite one")

    try:
        return json.loads(text, object_pairs_hook=unique, parse_constant=refuse)
    except json.JSONDecodeError as error:
        raise UserError(f"not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from error
    except RecursionError as error:
        raise UserError("not JSON of an experiment: it is nested too deeply") from error


def build(
    block: type, plain: Any, path: str, problems: list[str], *, complete: bool = False
) -> object | None:
    """A block from its plain form; appends what is wrong, and returns None if it cannot be made.

    Fields with a default may be left out, unless `complete`.
    """
    if not isinstance(plain, Mapping):
        problems.append(f"{path or 'the experiment'}={plain!r} must be a block")
        return None
    types_of, before = hints(block), len(problems)
    prefix = f"{path}." if path else ""
    problems += [str(no_field(f"{prefix}{key}")) for key in plain if key not in types_of]
    values = {}
    for field in dataclasses.fields(block):
        here = f"{prefix}{field.name}"
        if field.name in plain:
            hint = types_of[field.name]
            values[field.name] = convert(hint, plain[field.name], here, problems, complete=complete)
        elif complete or field.default is dataclasses.MISSING:
            problems.append(f"{here} is missing")
    return block(**values) if len(problems) == before else None


def convert(hint: Any, plain: Any, path: str, problems: list[str], *, complete: bool = False) -> Any:
    """A field's value from its plain form; appends what is wrong, strict about types but for 1 as a float."""
    kind, may_be_none = optional(hint)
    if plain is None and may_be_none:
        return None
    if dataclasses.is_dataclass(kind):
        return build(typing.cast(type, kind), plain, path, problems, complete=complete)
    if get_origin(kind) is tuple and isinstance(plain, list | tuple):
        args = get_args(kind)
        if args[-1] is Ellipsis:
            args = args[:1] * len(plain)
        if len(args) == len(plain):
            return tuple(
                convert(arg, item, f"{path}[{i}]", problems, complete=complete)
                for i, (arg, item) in enumerate(zip(args, plain, strict=True))
            )
    elif get_origin(kind) is Literal:
        if isinstance(plain, str) and plain in get_args(kind):
            return plain
    elif kind is float:
        # A longer whole number has no float; a bool is an int to Python, not to us.
        if isinstance(plain, int | float) and type(plain) is not bool and abs(plain) <= sys.float_info.max:
            return float(plain)
    elif kind in (int, bool, str) and type(plain) is kind:
        return plain
    problems.append(f"{path}={plain!r} must be {wanted(hint)}")
    return None


@functools.cache
def hints(block: type) -> dict[str, Any]:
    """Field name -> type."""
    return typing.get_type_hints(block)


def optional(hint: Any) -> tuple[Any, bool]:
    """(the type without None, whether None was in it)."""
    if get_origin(hint) in (typing.Union, types.UnionType):
        return next(arg for arg in get_args(hint) if arg is not types.NoneType), True
    return hint, False


def wanted(hint: Any) -> str:
    """A type in words, for an error."""
    kind, may_be_none = optional(hint)
    if get_origin(kind) is Literal:
        *words, last = map(str, get_args(kind))
        text = f"{', '.join(words)} or {last}"
    elif get_origin(kind) is tuple:
        text = "a list"
    else:
        names = {int: "int", float: "a finite float", bool: "true or false", str: "text"}
        text = names.get(kind, 'a block as JSON, {"field": value}')
    return f"{text} or none" if may_be_none else text


@functools.cache
def all_paths(block: type = Experiment, path: str = "") -> tuple[str, ...]:
    """Every path that a setting may have, indices left out."""
    found: list[str] = []
    for name, hint in hints(block).items():
        if block is Experiment and name in METADATA:
            continue
        kind, _ = optional(hint)
        kind = get_args(kind)[0] if get_origin(kind) is tuple else kind
        here = f"{path}.{name}" if path else name
        found.append(here)
        if dataclasses.is_dataclass(kind):
            found += all_paths(typing.cast(type, kind), here)
    return tuple(found)


def no_field(path: str) -> UserError:
    """The error of a path that does not exist, with the nearest that does."""
    bare = re.sub(r"\[\d+\]", "", path)
    parent, _, leaf = bare.rpartition(".")
    known = all_paths()
    by_leaf = {p.rpartition(".")[2]: p for p in reversed(known)}
    near = (
        [p for p in known if p.rpartition(".")[2] == leaf][:3]
        or difflib.get_close_matches(bare, known, n=1, cutoff=0.75)
        or [by_leaf[name] for name in difflib.get_close_matches(leaf, by_leaf, n=1)]
    )
    siblings = [p.rpartition(".")[2] for p in known if p.rpartition(".")[0] == parent]
    if near:
        hint = f"did you mean {' or '.join(near)}?"
    elif siblings:
        hint = f"{parent or 'an experiment'} has {', '.join(siblings)}"
    else:
        hint = "`maijax show NAME` lists them"
    return UserError(f"{path}: no such field; {hint}")
