"""The best size at each budget, read off runs of one budget and many sizes. Source: Hoffmann et al., arXiv 2203.15556,
section 3.2 (approach 2): a parabola in log N per budget, then power laws of its lowest points over the budgets.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from maijax.compare.fits import RESAMPLES, Estimate, deal, interval
from maijax.compare.laws import column
from maijax.compare.points import Point

ONE_BUDGET = 1.15  # largest over smallest FLOPs of what counts as one budget
_SIZES = 4  # of a budget: one more than a parabola has coefficients
_SPREAD = 2.0  # largest over smallest of a budget's sizes


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Profile:
    """Runs of one budget of FLOPs: loss = c0 + c1 x + c2 x^2, x = log(N / middle)."""

    flops: float
    points: tuple[Point, ...]
    middle: float
    parabola: tuple[float, float, float]  # c0, c1, c2
    params: Estimate  # at the lowest point
    tokens: Estimate
    loss: Estimate

    def curve(self, params: np.ndarray) -> np.ndarray:
        x = np.log(params / self.middle)
        return self.parabola[0] + self.parabola[1] * x + self.parabola[2] * x**2


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class PowerLaw:
    """value = factor C^power."""

    factor: Estimate
    power: Estimate


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class IsoFlop:
    """Budgets with a lowest point, those without and why, and the laws if there are two budgets or more."""

    budgets: tuple[Profile, ...]
    left_out: tuple[tuple[float, str], ...]
    params: PowerLaw | None
    tokens: PowerLaw | None


def fit(points: Sequence[Point], *, resamples: int = RESAMPLES, seed: int = 0) -> IsoFlop | None:
    """Parabolas of all budgets at which enough sizes were run; None if there is no such budget.

    Residuals of all budgets are dealt out anew together (see `fits.deal`), so that intervals hold with few sizes each.
    """
    groups = [group for group in grouped(points) if len({p.params for p in group}) >= _SIZES]
    groups = [g for g in groups if _log_range(g) >= math.log(_SPREAD)]
    if not groups:
        return None
    bases = [_basis(group) for group in groups]
    plain = [column(group, "loss") for group in groups]
    exact = [np.linalg.pinv(basis) @ loss for basis, loss in zip(bases, plain, strict=True)]
    missed = np.concatenate([y - b @ c for y, b, c in zip(plain, bases, exact, strict=True)])
    dealt = deal(missed, len(missed) - 3 * len(groups), resamples, np.random.default_rng(seed))
    parts = np.split(dealt[:, :-1], np.cumsum([len(y) for y in plain])[:-1], axis=1)
    budgets, left_out, lows = [], [], []
    for group, basis, coefficients, part in zip(groups, bases, exact, parts, strict=True):
        flops = math.exp(float(np.log(column(group, "flops")).mean()))
        if why := _no_bottom(group, coefficients):
            left_out.append((flops, why))
            continue
        drawn = coefficients + part @ np.linalg.pinv(basis).T  # [R, 3]
        n, d, low = _bottom(group, coefficients[None])
        ns, ds, losses = _bottom(group, drawn)
        budgets.append(Profile(
            flops=flops, points=tuple(group), middle=_middle(group),
            parabola=(float(coefficients[0]), float(coefficients[1]), float(coefficients[2])),
            params=interval(n[0], ns), tokens=interval(d[0], ds), loss=interval(low[0], losses),
        ))
        lows.append((np.append(n, ns), np.append(d, ds)))
    laws = (None, None)
    if len(budgets) > 1:
        budget = np.log([b.flops for b in budgets])
        laws = tuple(_power(budget, np.log(np.stack([low[i] for low in lows], axis=1))) for i in (0, 1))
    return IsoFlop(budgets=tuple(budgets), left_out=tuple(left_out), params=laws[0], tokens=laws[1])


def grouped(points: Sequence[Point]) -> list[list[Point]]:
    """Points by budget, smallest first."""
    groups: list[list[Point]] = []
    for point in sorted(points, key=lambda p: (p.flops, p.params)):
        if groups and point.flops <= ONE_BUDGET * groups[-1][0].flops:
            groups[-1].append(point)
        else:
            groups.append([point])
    return groups


def _log_range(group: Sequence[Point]) -> float:
    logs = np.log(column(group, "params"))
    return float(logs.max() - logs.min())


def _middle(group: Sequence[Point]) -> float:
    return math.exp(float(np.log(column(group, "params")).mean()))


def _basis(group: Sequence[Point]) -> np.ndarray:
    x = np.log(column(group, "params") / _middle(group))
    return np.stack([np.ones_like(x), x, x**2], axis=1)


def _no_bottom(group: Sequence[Point], coefficients: np.ndarray) -> str:
    """Why a parabola says nothing of the best size; empty if it does."""
    if coefficients[2] <= 0:
        return "the loss does not turn up on both sides"
    low = _middle(group) * math.exp(min(max(-coefficients[1] / (2 * coefficients[2]), -50.0), 50.0))
    sizes = column(group, "params")
    if low < sizes.min():
        return f"the lowest point lies below the smallest size, {sizes.min():.3g}; add smaller ones"
    if low > sizes.max():
        return f"the lowest point lies above the largest size, {sizes.max():.3g}; add larger ones"
    return ""


def _bottom(group: Sequence[Point], parabolas: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(N, D, loss) [R] at the lowest points of parabolas [R, 3]; at the edge of the sizes where one has none inside."""
    x, logs_d = np.log(column(group, "params") / _middle(group)), np.log(column(group, "tokens"))
    c0, c1, c2 = parabolas.T
    bent = c2 > 0
    # Without a bottom the lower edge is as far as the sizes can tell.
    edge = np.where(c1 > 0, x.min(), x.max())
    at = np.clip(np.where(bent, -c1 / (2 * np.where(bent, c2, 1.0)), edge), x.min(), x.max())
    order = np.argsort(x)
    tokens = np.exp(np.interp(at, x[order], logs_d[order]))  # along the budget; exactly C / 6N where C is 6ND
    return _middle(group) * np.exp(at), tokens, c0 + c1 * at + c2 * at**2


def _power(budgets: np.ndarray, logs: np.ndarray) -> PowerLaw:
    """A line through logs [1 + R, budgets] over log C; the first row is the value, the rest its resamples."""
    middle = budgets.mean()
    x = budgets - middle
    slope = (logs - logs.mean(axis=1, keepdims=True)) @ x / (x @ x)
    factor = np.exp(logs.mean(axis=1) - slope * middle)
    return PowerLaw(factor=interval(factor[0], factor[1:]), power=interval(slope[0], slope[1:]))
