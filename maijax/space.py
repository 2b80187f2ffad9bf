"""A sweep as a value: an experiment, what is varied about it, and how trials are chosen. Standard library only.

A space is written as settings are, one line per path:

  optim.lr=log:1e-4..1e-1:7     a range, even in the logarithm; 7 points of it in a grid
  optim.weight_decay=lin:0..0.3 a range, even
  model.num_layers=2,4,8        several values
  optim.name=adamw,muon         several words
"""

from __future__ import annotations

import dataclasses
import math
import random
import re
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args, get_origin

from maijax import overrides, plain
from maijax.config import Experiment
from maijax.errors import UserError

Sampler = Literal["grid", "random", "tpe"]
Prune = Literal["none", "median", "halving"]
Point = dict[str, str]  # of a space: path -> value, as --set takes it
MOST = 10_000  # trials of one sweep

_RANGE = re.compile(r"(log|lin):(.+?)\.\.(.+?)(?::([^:]*))?")
_KINDS = (int, float, bool)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Range:
    """All numbers from low to high, both included."""

    low: float
    high: float
    log: bool
    whole: bool  # whole numbers only
    points: int | None  # in a grid

    def at(self, share: float) -> str:
        """The number at a share 0..1 of the way, rounded to 6 digits unless it is an end."""
        if share in (0.0, 1.0):
            found = self.low if share == 0.0 else self.high
        elif self.log:
            found = math.exp(math.log(self.low) + share * (math.log(self.high) - math.log(self.low)))
        else:
            found = self.low + share * (self.high - self.low)
        if self.whole:
            return overrides.show(round(found))
        return overrides.show(found if share in (0.0, 1.0) else self.near(found))

    def near(self, value: float) -> float:
        """A number to 6 digits, which a person can read, yet inside the range."""
        return min(max(float(f"{value:.6g}"), self.low), self.high)

    def grid(self) -> list[str]:
        count = self.points or 1
        found = [self.at(i / (count - 1) if count > 1 else 0.5) for i in range(count)]
        return list(dict.fromkeys(found))  # whole numbers may coincide

    def draw(self, source: random.Random) -> str:
        return self.at(source.random())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
    """One of several values, as --set takes them."""

    values: tuple[str, ...]

    def grid(self) -> list[str]:
        return list(self.values)

    def draw(self, source: random.Random) -> str:
        return source.choice(self.values)


Dimension = Range | Choice


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep:
    """A base experiment and a space around it; every trial is a run of the base with one point's values set.

    The figure of a trial is its held-out bits per byte, which does not depend on the tokenizer.
    """

    name: str = ""  # the registry gives it the name of its function
    base: Experiment
    space: Mapping[str, str]  # path -> range or values, see the module's text
    sampler: Sampler = "grid"
    trials: int | None = None  # None: all of a grid, 20 otherwise
    prune: Prune = "none"  # stop what is worse than the median, or than the better third, at equal steps
    seed: int = 0  # of the choice of points

    @property
    def dimensions(self) -> dict[str, Dimension]:
        """The space, parsed; raises UserError that lists every problem."""
        found, problems = {}, []
        for path, text in self.space.items():
            try:
                found[path] = parse(path, text)
                if self.sampler == "grid" and isinstance(found[path], Range) and found[path].points is None:
                    problems.append(f"{path}={text}: a grid needs a number of points, e.g. {path}={text}:7")
            except UserError as error:
                problems.append(str(error))
        if problems:
            raise UserError("; ".join(problems))
        return found

    @property
    def count(self) -> int:
        """Trials in all."""
        if self.sampler == "grid":
            return math.prod(len(dimension.grid()) for dimension in self.dimensions.values())
        return 20 if self.trials is None else self.trials

    def validate(self) -> Sweep:
        """Returns itself, or raises one UserError that lists every problem of space, base and grid."""
        problems = [] if self.space else ["the space is empty; vary something, e.g. --set optim.lr=log:1e-4..1e-1:7"]
        problems += self.base.problems()
        for name, words in (("sampler", get_args(Sampler)), ("prune", get_args(Prune))):
            if getattr(self, name) not in words:
                problems.append(f"{name}={getattr(self, name)!r} must be {', '.join(words[:-1])} or {words[-1]}")
        try:
            if self.sampler == "grid" and self.trials is not None:
                problems.append(f"trials={self.trials}: a grid has {self.count}; leave it out, or sample at random")
            if not 0 < self.count <= MOST:
                problems.append(f"{self.count:,} trials: there must be 1 to {MOST:,}")
            elif self.sampler == "grid" and not problems:
                problems += self._misfits()
        except UserError as error:
            problems.append(str(error))
        if self.prune != "none" and self.base.train.eval_every is None:
            problems.append(f"prune={self.prune} looks at the evaluations of training; set train.eval_every")
        if problems:
            raise UserError(f"{self.name or self.base.name}: " + "; ".join(dict.fromkeys(problems)))
        return self

    def _misfits(self) -> list[str]:
        """What is wrong with points of a grid, each problem once."""
        found: list[str] = []
        for number in range(self.count):
            try:
                self.experiment(self.point(number))
            except UserError as error:
                found += str(error).split("; ")
        return list(dict.fromkeys(found))

    def point(self, number: int) -> Point:
        """The values of a trial of a grid or of a random search: a pure function of its number."""
        dimensions = self.dimensions
        if self.sampler == "grid":
            found: Point = {}
            for path, dimension in reversed(dimensions.items()):  # the last varies fastest
                values = dimension.grid()
                number, at = divmod(number, len(values))
                found[path] = values[at]
            return dict(reversed(found.items()))
        source = random.Random(f"{self.seed}/{number}")
        return {path: dimension.draw(source) for path, dimension in dimensions.items()}

    def experiment(self, point: Point) -> Experiment:
        """The base with a point's values set; raises UserError if they do not go together."""
        return overrides.apply(self.base, settings(point))


def settings(point: Point) -> list[str]:
    """A point as --set takes it."""
    return [f"{path}={text}" for path, text in point.items()]


def split(given: Iterable[str]) -> tuple[list[str], dict[str, str]]:
    """(settings of one value, space) of a command line's --set: what a field could not take as one value is a space.

    A field that holds one number or one word has no use for `log:` or a comma, so these are never ambiguous; a field
    of text or of several values is always set, never varied.
    """
    fixed, space = [], {}
    for setting in given:
        path, equals, text = setting.partition("=")
        path, text = path.strip(), text.strip()
        scalar = equals and (kind(path) in _KINDS or get_origin(kind(path)) is Literal)
        if scalar and ("," in text or re.match(r"(log|lin):", text)):
            space[path] = text
        else:
            fixed.append(setting)
    return fixed, space


def parse(path: str, text: str) -> Dimension:
    """A range or several values for a field; raises UserError that names path, value and fix."""
    if not isinstance(text, str):
        raise UserError(f'{path}={text!r}: a space is text, as --set has it: "0.001,0.01" or "log:1e-4..1e-1:7"')
    field = kind(path)
    if field is None:
        raise plain.no_field(path)
    if field not in _KINDS and get_origin(field) is not Literal:
        raise UserError(f"{path} holds text or several values, and cannot be varied; register a sweep per value")
    if re.match(r"(log|lin):", text):
        return _range(path, text, field)
    values = [part.strip() for part in text.split(",")]
    problems = []
    for value in values:
        try:
            overrides.check(path, value)
        except UserError as error:
            problems.append(str(error))
    if len(set(values)) < len(values):
        problems.append(f"{path}={text} names a value twice; leave one out")
    if problems:
        raise UserError("; ".join(problems))
    return Choice(values=tuple(values))


def _range(path: str, text: str, field: Any) -> Range:
    form = f"{path}={text} must be of the form log:1e-4..1e-1, lin:0..0.3, or with points for a grid, log:1e-4..1e-1:7"
    match = _RANGE.fullmatch(text)
    if field not in (int, float) or match is None:
        raise UserError(form if field in (int, float) else f"{path}={text}: a range is of numbers; name values instead")
    try:
        low, high = (float(match[i]) for i in (2, 3))
    except ValueError:
        raise UserError(form) from None
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise UserError(f"{path}={text}: the first number must be below the second, and both finite")
    if match[1] == "log" and low <= 0:
        raise UserError(f"{path}={text}: a logarithmic range must begin above 0; say lin:{match[2]}..{match[3]}")
    if field is int and not (low.is_integer() and high.is_integer()):
        raise UserError(f"{path}={text}: the field holds whole numbers, and so must its range's ends")
    if match[4] is not None and not (match[4].isdecimal() and 2 <= int(match[4]) <= MOST):
        raise UserError(f"{path}={text}: points={match[4]!r} must be a whole number from 2 to {MOST:,}")
    points = int(match[4]) if match[4] is not None else None
    return Range(low=low, high=high, log=match[1] == "log", whole=field is int, points=points)


def kind(path: str) -> Any:
    """The type of the field at a path, without None; None if there is no such field."""
    block: Any = Experiment
    for segment in path.split("."):
        match = re.fullmatch(r"([A-Za-z_]\w*)((?:\[\d+\])*)", segment)
        if match is None or not dataclasses.is_dataclass(block) or path in plain.METADATA:
            return None
        hint = plain.hints(typing.cast(type, block)).get(match[1])
        if hint is None:
            return None
        block, _ = plain.optional(hint)
        if match[2] and get_origin(block) is tuple:
            block = get_args(block)[0]
    return block
