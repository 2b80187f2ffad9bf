"""A gain over several sizes: the law that turns losses into compute, the slope of the gain, and its interval."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from maijax.errors import UserError

MARGIN = 1.1  # a gain that changes by less than this factor per tenfold compute holds
CONFIDENCE, POWER = 0.95, 0.8
_DRAWS = 400  # of the law, for its share of the interval
_FLOORS = np.concatenate([np.linspace(0, 0.9, 46), np.linspace(0.9, 0.99, 19)[1:]])
_LACK = 0.05  # how improbable the gains' distance from a line may be by their seeds' spread
_MOST = 1_000  # seeds worth naming


def student(share: float, freedom: float) -> float:
    """The quantile of Student's t."""
    return float(special.stdtrit(freedom, share))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Law:
    """loss = floor + scale * compute^-exponent."""

    floor: float
    scale: float
    exponent: float

    def compute(self, loss: float) -> float:
        """That reaches a loss; infinity at or below the floor."""
        return math.inf if loss <= self.floor else ((loss - self.floor) / self.scale) ** (-1 / self.exponent)


def frontier(compute: ArrayLike, losses: ArrayLike, *, below: float = math.inf) -> Law:
    """The law through the last losses of several sizes, its floor under all of them and under `below`.

    Least squares in the loss, the floor found on a grid. Raises UserError if the loss does not fall with compute.
    Source: the one-variable form of Hoffmann et al., arXiv 2203.15556; Kaplan et al., arXiv 2001.08361, with a floor.
    """
    x = np.log(np.asarray(compute, float))
    floor, scale, exponent = (float(v[0]) for v in _frontiers(x, np.asarray(losses, float)[None], below))
    if not exponent > 1e-6:
        raise UserError("the first side's loss does not fall with compute over its sizes, so no gain can be read "
                        "from it; look at its largest runs")
    return Law(floor=floor, scale=math.exp(min(scale, 700.0)), exponent=exponent)


def _frontiers(x: Any, y_BN: Any, below: float = math.inf) -> tuple[Any, Any, Any]:
    """(floor, log scale, exponent), each [B], of B sets of losses at log compute x."""
    least = np.minimum(y_BN.min(-1), below)
    floor_BF = _FLOORS[None] * least[:, None]
    over_BFN = y_BN[:, None] - floor_BF[..., None]
    z, w = np.log(over_BFN), over_BFN**2  # weights that make errors of the logarithm errors of the loss
    total = w.sum(-1)
    mean_x, mean_z = (w * x).sum(-1) / total, (w * z).sum(-1) / total
    dx, dz = x - mean_x[..., None], z - mean_z[..., None]
    slope = (w * dx * dz).sum(-1) / (w * dx**2).sum(-1)
    left = (w * (dz - slope[..., None] * dx) ** 2).sum(-1)
    best = np.argmin(np.where(slope < 0, left, np.inf), axis=-1)
    rows = np.arange(len(y_BN))
    chosen = slope[rows, best]
    return floor_BF[rows, best], (mean_z - slope * mean_x)[rows, best], -chosen


def log_gain(law: tuple[Any, Any], pairs: Any) -> Any:
    """ln of how much more compute A needs than B for B's loss, along A's law moved to pass through A's own loss.

    pairs [N, 4]: compute and loss of A, compute and loss of B; law: (floor, exponent), numbers or arrays [B, 1].
    Taking the law through each measured loss keeps what a size's runs share, as data and their order, out of the gain.
    """
    floor, exponent = law
    compute_a, loss_a, compute_b, loss_b = np.asarray(pairs, float).T
    return np.log((loss_a - floor) / (loss_b - floor)) / exponent + np.log(compute_a / compute_b)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trend:
    """How a gain moves with scale; intervals are 95%. Slopes are in ln gain per tenfold compute."""

    law: Law
    gains: tuple[float, ...]  # ln, one per pair
    slope: float
    half: float  # half-width of its interval, the law's share included
    top: float  # ln gain at the largest size, on the line
    top_half: float
    sigma: float  # of a single pair's ln gain about the line
    freedom: int
    curved: bool  # the gains do not lie on a line: sizes, not seeds, are what counts
    law_share: float  # of the slope's variance

    @property
    def verdict(self) -> str:
        """grows, holds, fades, or cannot be told."""
        low, high, margin = self.slope - self.half, self.slope + self.half, math.log(MARGIN)
        if -margin < low and high < margin:
            return "holds"
        return "grows" if low > 0 else "fades" if high < 0 else "cannot be told"


def trend(pairs: Sequence[tuple[float, float, float, float]], sizes: Sequence[int], *, seed: int = 0) -> Trend:
    """The slope of the gain over log10 compute, by ordinary least squares over pairs of runs.

    pairs: compute and loss of A, compute and loss of B; sizes: which size each pair is of, 3 different ones at least.
    The interval is Student's t with pairs - 2 degrees of freedom; where the sizes lie off the line by more than their
    seeds' spread (F test of lack of fit), their means are used and sizes - 2. To its variance that of the law is
    added, by a parametric bootstrap of A's losses with their own spread.
    """
    table, size = np.asarray(pairs, float), np.asarray(sizes)
    kinds = np.unique(size)
    if len(kinds) < 3:
        raise UserError(f"a trend needs 3 sizes or more that both sides have, there {_are(len(kinds))}")
    of_size = [table[size == k] for k in kinds]
    compute = np.asarray([_mean(rows[:, 0]) for rows in of_size])
    losses = np.asarray([rows[:, 1].mean() for rows in of_size])
    least = float(table[:, [1, 3]].min())
    law = frontier(compute, losses, below=least)
    x = np.log10(table[:, 0])
    gains = log_gain((law.floor, law.exponent), table)
    curved = _off_the_line(x, gains, size)
    if curved:
        fit_x = np.asarray([np.log10(table[size == k, 0]).mean() for k in kinds])
        fit_g, mean = np.asarray([gains[size == k].mean() for k in kinds]), _averages(size, kinds)
    else:
        fit_x, fit_g, mean = x, gains, np.eye(len(x))
    slope, middle, sigma, freedom = _line(fit_x, fit_g)
    spread = float(((fit_x - fit_x.mean()) ** 2).sum())

    # What another draw of A's runs would have made of the law, and so of the slope and of the gain at the top.
    rows = np.asarray([1 if curved else len(rows) for rows in of_size])
    noise = np.maximum(sigma * law.exponent * (losses - law.floor) / np.sqrt(rows), _own_noise(law, compute, of_size))
    drawn = losses + np.random.default_rng(seed).normal(size=(_DRAWS, len(kinds))) * noise
    floors, _, exponents = _frontiers(np.log(compute), drawn, least)
    kept = exponents > 1e-3
    others = log_gain((floors[kept, None], exponents[kept, None]), table) @ mean.T
    slopes = (others * (fit_x - fit_x.mean())).sum(-1) / spread
    away = fit_x.max() - fit_x.mean()
    tops = others.mean(-1) + slopes * away
    own = sigma**2 / spread
    extra = float(np.var(slopes)) if kept.sum() > 1 else 0.0
    t = student((1 + CONFIDENCE) / 2, freedom)
    top_variance = sigma**2 / len(fit_x) + own * away**2 + (float(np.var(tops)) if kept.sum() > 1 else 0.0)
    return Trend(
        law=law, gains=tuple(map(float, gains)), slope=slope, half=t * math.sqrt(own + extra),
        top=middle + slope * away, top_half=t * math.sqrt(top_variance), sigma=sigma, freedom=freedom, curved=curved,
        law_share=extra / (own + extra) if own + extra > 0 else 0.0,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Needed:
    """What would settle a trend, if its slope and spread are what they seem."""

    seeds: int | None  # of every size and side, in all; None: more than is sensible, or seeds do not help
    sizes: int | None  # in all, with the seeds there are, going on at the same spacing
    towards: str  # the verdict that is nearest


def needed(found: Trend, log10_compute: Sequence[float], seeds: float) -> Needed:
    """The fewest seeds r (or sizes k) with (t_.975 + t_.8) sigma / sqrt(r S) <= D, t of k r - 2 degrees of freedom.

    S is the sum of squares of log10 compute about its mean over k sizes; D is |slope| to call it growing or fading,
    margin - |slope| to call it holding, whichever is larger; sigma is per pair, the law's share included. Power 80%.
    Source: the usual sample size of a regression slope with Student's t, e.g. Cohen 1988.
    """
    margin = math.log(MARGIN)
    hold = margin - abs(found.slope)
    distance = max(abs(found.slope), hold)
    towards = "holds" if hold >= abs(found.slope) else "grows" if found.slope > 0 else "fades"
    sigma = found.sigma / math.sqrt(max(1e-12, 1 - found.law_share))
    x = np.sort(np.asarray(log10_compute, float))
    gap = float(x[-1] - x[0]) / (len(x) - 1)

    def enough(r: float, at: Any) -> bool:
        freedom = len(at) * r - 2
        if freedom < 1:
            return False
        share = float(((at - at.mean()) ** 2).sum())
        quantiles = student((1 + CONFIDENCE) / 2, freedom) + student(POWER, freedom)
        return quantiles * sigma / math.sqrt(r * share) <= distance

    more_seeds = None if found.curved else next((r for r in range(1, _MOST + 1) if enough(r, x)), None)
    r = 1.0 if found.curved else seeds
    more_sizes = next((k for k in range(len(x), len(x) + 13)
                       if enough(r, np.concatenate([x, x[-1] + gap * np.arange(1, k - len(x) + 1)]))), None)
    return Needed(seeds=more_seeds, sizes=more_sizes, towards=towards)


def _line(x: Any, y: Any) -> tuple[float, float, float, int]:
    """(slope, mean, standard deviation about the line, degrees of freedom)."""
    dx = x - x.mean()
    slope = float((dx * y).sum() / (dx**2).sum())
    left = y - y.mean() - slope * dx
    return slope, float(y.mean()), math.sqrt(float((left**2).sum()) / (len(x) - 2)), len(x) - 2


def _off_the_line(x: Any, y: Any, size: Any) -> bool:
    """Whether sizes lie off the line by more than the spread within them explains: F test of lack of fit."""
    kinds = np.unique(size)
    within = float(sum(((y[size == k] - y[size == k].mean()) ** 2).sum() for k in kinds))
    inner, outer = len(y) - len(kinds), len(kinds) - 2
    if inner < 1 or within == 0:
        return False
    slope, mean, _, _ = _line(x, y)
    about = float(sum(len(y[size == k]) * (y[size == k].mean() - mean - slope * (x[size == k].mean() - x.mean())) ** 2
                      for k in kinds))
    return float(special.fdtrc(outer, inner, (about / outer) / (within / inner))) < _LACK


def _own_noise(law: Law, compute: Any, of_size: Any) -> Any:
    """Standard error of A's mean loss at each size, with what its pairs share: seeds' spread, distance from the law."""
    losses = np.asarray([rows[:, 1].mean() for rows in of_size])
    inner = sum(len(rows) - 1 for rows in of_size)
    within = sum(((rows[:, 1] - rows[:, 1].mean()) ** 2).sum() for rows in of_size) / max(1, inner)
    left = ((losses - law.floor - law.scale * compute**-law.exponent) ** 2).sum() / max(1, len(losses) - 3)
    return np.maximum(np.sqrt(within / np.asarray([len(rows) for rows in of_size])), math.sqrt(left))


def _averages(size: Any, kinds: Any) -> Any:
    """[K, N]: each row averages the pairs of one size."""
    return np.stack([(size == k) / (size == k).sum() for k in kinds])


def _mean(values: Any) -> float:
    """Geometric."""
    return float(np.exp(np.log(values).mean()))


def _are(number: int) -> str:
    return {0: "is none", 1: "is 1"}.get(number, f"are {number}")
