"""The forms of a scaling law, and which of them a set of points can tell.

Every form is L = E + sum over its variables x of A_x / x^a_x: the loss that is left however large a run gets, and what
too few parameters and too few tokens add. Source: Hoffmann et al., arXiv 2203.15556, equation 2.
"""

from __future__ import annotations

import dataclasses
import math
import shlex
from collections.abc import Sequence

import numpy as np

from maijax.compare.points import Point
from maijax.errors import UserError
from maijax.words import plural

LEAST_SPREAD = 1.5  # largest over smallest of a variable; less tells nothing of a power of it
_SAME = 1.05  # largest over smallest of what is held constant
_OFF = 1.5  # how far from the points' line a prediction may lie, in tokens
_ALONG = 0.1  # spread of log tokens at equal parameters, below which the two rise as one
_VALUES = 3  # different values of a variable that a power with an offset needs
_SPARE = 1  # points more than coefficients


@dataclasses.dataclass(frozen=True, kw_only=True)
class Form:
    """Which variables a law has: any of "params", "tokens", or "flops" alone."""

    variables: tuple[str, ...]
    why: str  # in words, for the reader of a fit

    @property
    def coefficients(self) -> int:
        return _coefficients(len(self.variables))

    @property
    def text(self) -> str:
        """L = E + A/N^a + B/D^b."""
        return "L = E + " + " + ".join(f"{f}/{LETTER[v]}^{e}" for v, (f, e) in zip(self.variables, self.names(),
                                                                                  strict=True))

    def names(self) -> list[tuple[str, str]]:
        """(factor, exponent) of each variable, as they are called in tables."""
        return [NAMES[v] for v in self.variables]


COMMAND = "maijax fit"
KIND = {"params": "size", "tokens": "length", "flops": "budget"}
_NOUN = {"params": "parameters", "tokens": "tokens", "flops": "FLOPs"}
LETTER = {"params": "N", "tokens": "D", "flops": "C"}
NAMES = {"params": ("A", "alpha"), "tokens": ("B", "beta"), "flops": ("K", "gamma")}


def column(points: Sequence[Point], variable: str) -> np.ndarray:
    """Values of one variable, float64 [points]."""
    return np.array([getattr(p, variable) for p in points], np.float64)


def choose(points: Sequence[Point], command: str = COMMAND) -> Form:
    """The fullest form that the points can tell; raises UserError that says what is missing, and which of the runs
    `command` could be given.

    Where tokens rise with parameters along one line the two terms cannot be told apart, and the law is one of compute.
    """
    varies = {v: _varies(points, v) for v in ("params", "tokens")}
    if not any(varies.values()):
        raise UserError(
            f"{plural(len(points), 'point')} of one size and one length, {points[0].params:.4g} parameters and "
            f"{points[0].tokens:.4g} tokens: a law needs {_least(1)} sizes or {_least(1)} lengths; add runs"
        )
    if all(varies.values()):
        n, d = np.log(column(points, "params")), np.log(column(points, "tokens"))
        slope, offset = np.polyfit(n, d, 1)
        if float(np.std(d - slope * n - offset)) < _ALONG:
            per = math.exp(float(np.mean(d - n)))
            form = Form(variables=("flops",), why=f"tokens rise with parameters along one line (D about {per:.3g} N), "
                        "so their shares cannot be told apart: a law of compute, along that line")
        else:
            form = Form(variables=("params", "tokens"), why="parameters and tokens both vary")
    elif varies["params"]:
        form = Form(variables=("params",), why=f"all at {points[0].tokens:.4g} tokens")
    else:
        form = Form(variables=("tokens",), why=f"all of {points[0].params:.4g} parameters")
    if lacking := _lacking(form, points, command):
        raise UserError(f"{form.text} cannot be told from {plural(len(points), 'point')}: {lacking}")
    return form


def _coefficients(variables: int) -> int:
    """What is left however large a run gets, and a factor and an exponent for each variable."""
    return 1 + 2 * variables


def _least(variables: int) -> int:
    """Points that a law of so many variables needs."""
    return _coefficients(variables) + _SPARE


def _lacking(form: Form, points: Sequence[Point], command: str) -> str:
    """What must be added before the points can tell the law, and what can be fitted without it; empty if they can."""
    least = _least(len(form.variables))
    each = least if len(form.variables) == 1 else _VALUES  # with one variable every point is a value of it
    missing = []
    for variable in form.variables:
        values = column(points, variable)
        if (distinct := _distinct(values)) < _VALUES or (distinct < each and len(points) < least):
            missing.append(f"there {'is' if distinct == 1 else 'are'} {plural(distinct, KIND[variable])}, {each} are "
                           "needed")
        elif values.max() / values.min() < LEAST_SPREAD:
            missing.append(f"{KIND[variable]}s go from {values.min():.4g} to {values.max():.4g} "
                           f"{_NOUN[variable]}, the largest must be at least {LEAST_SPREAD} times the smallest")
    if not missing and len(points) < least:
        missing.append(f"{least} points are needed")
    if not missing:
        return ""
    return f"{'; '.join(missing)}; add runs{_alone(points, command) if len(form.variables) > 1 else ''}"


def _alone(points: Sequence[Point], command: str) -> str:
    """How the runs of one length, or of one size, are fitted alone: those that lack the fewest.

    Points of a file cannot be given to a command one by one.
    """
    ways = []
    for shared, free in (("tokens", "params"), ("params", "tokens")):
        for value in sorted(set(column(points, shared)), reverse=True):
            group = [p for p in points if p.runs and value / _SAME <= getattr(p, shared) <= value]
            if not group:
                continue
            lack = max(0, _least(1) - _distinct(column(group, free)))
            if lack or _can_be_told(group):
                runs = [run for p in group for run in p.runs]
                ways.append((lack, f"{value:.4g} {_NOUN[shared]}", free, runs))
    if not ways:
        return ""
    lack, which, free, runs = min(ways, key=lambda way: way[0])
    more = f"add {lack} of another {KIND[free]} at {which} and fit these" if lack else f"fit those of {which}"
    return f"; or {more} alone: {command} {shlex.join([*runs, *['RUN'] * lack])}"


def _can_be_told(points: Sequence[Point]) -> bool:
    try:
        choose(points)
    except UserError:
        return False
    return True


def off(form: Form, points: Sequence[Point], place: Point) -> str:
    """Why a law cannot speak of a place: it differs in what all the points share. Empty if it can."""
    for variable in ("params", "tokens"):
        values, here = column(points, variable), getattr(place, variable)
        shared = variable not in form.variables and "flops" not in form.variables
        if shared and not values.min() / _SAME <= here <= values.max() * _SAME:
            return f"has {here:.4g} {variable}, all points {values.mean():.4g}; add points of other {variable}"
    if form.variables == ("flops",):
        n, d = np.log(column(points, "params")), np.log(column(points, "tokens"))
        expected = math.exp(np.polyval(np.polyfit(n, d, 1), math.log(place.params)))
        if not 1 / _OFF <= place.tokens / expected <= _OFF:
            return (f"has {place.tokens:.4g} tokens, the line of the points leads to {expected:.4g}; "
                    "add points off that line")
    return ""


def _varies(points: Sequence[Point], variable: str) -> bool:
    values = column(points, variable)
    return bool(values.max() / values.min() > _SAME)


def _distinct(values: np.ndarray) -> int:
    """Values that differ by more than what is held constant may."""
    gaps = np.diff(np.log(np.sort(values)))
    return 1 + int(np.sum(gaps > math.log(_SAME)))
