"""A scaling law fitted to points, how sure each of its numbers is, and what it says of runs not made yet.

Intervals come from a bootstrap of residuals: the points stay where they are, and what they missed the law by is dealt
out anew. A few points miss a law with as many coefficients by too little, so residuals are widened by what the
coefficients took up, and by how unsure their own size is (a chi-square draw per resample, which makes Student's t of
the normal). Pairs of (place, loss), which Besiroglu et al. (arXiv 2404.10102) draw, leave a dozen points without enough
places to fit. A point is a mean over seeds, so that what a size's seeds share counts once; a prediction is of one run,
and holds the seeds' spread as well. What no interval holds is that the law itself may bend outside the points.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from maijax.compare import descent, laws
from maijax.compare.laws import Form, column
from maijax.compare.points import Point
from maijax.errors import UserError

RESAMPLES = 1000
LEVEL = 0.95  # share of resamples inside an interval
FLOPS = 6  # per parameter and token, where a law of both is asked for the best split of compute
_NOTHING, _ANYWHERE = 1e-9, 1e4  # a low end that is as good as 0; ends so many times apart
_FAR = 30.0  # of log loss: what a resample misses the law by at most, a factor of 1e13
_AT_ONCE = 64_000_000  # numbers in memory at once, about


class Estimate(NamedTuple):
    """A number and the interval of its resamples."""

    value: float
    low: float
    high: float

    def span(self, shown: Callable[[float], str]) -> str:
        """The interval in words."""
        if not self.told:
            return "cannot be told"
        return f"at most {shown(self.high)}" if self.low < _NOTHING else f"{shown(self.low)} to {shown(self.high)}"

    @property
    def told(self) -> bool:
        """Whether the interval ends somewhere near: a term that the points do not tell of may be anything."""
        near = max(self.value, 1.0) if self.low < _NOTHING else self.low
        return self.high <= _ANYWHERE * near


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Fit:
    """A law and its resamples. Letters: R resamples, P unknowns, n points."""

    form: Form
    points: tuple[Point, ...]
    theta: np.ndarray  # [P]: log E, logs of the factors, logs of the exponents
    draws: np.ndarray  # [R, P]
    residuals: np.ndarray  # [n] of log loss
    noise: np.ndarray  # [R] what one more run would miss the law by, of log loss

    def coefficients(self) -> dict[str, Estimate]:
        """By the names of tables: E, then a factor and an exponent for each variable."""
        count = len(self.form.variables)
        found = {"E": self._of(0)}
        for i, (factor, exponent) in enumerate(self.form.names(), 1):
            found |= {factor: self._of(i), exponent: self._of(count + i)}
        return found

    def curve(self, *, params: np.ndarray, tokens: np.ndarray, flops: np.ndarray) -> np.ndarray:
        """Loss at places [m], by the law alone."""
        return np.exp(descent.log_loss(self.theta[None], self._logs(params, tokens, flops))[0][0])

    def predict(self, place: Point, *, level: float = LEVEL) -> Estimate:
        """Held-out loss of one run at a place, with the noise of a single run in its interval.

        Raises UserError if the place differs in what all points share.
        """
        self._check(place)
        z = self._logs(*(np.array([v]) for v in (place.params, place.tokens, place.flops)))
        with np.errstate(over="ignore"):  # of a term that tells nothing
            found = np.exp(descent.log_loss(self.draws, z)[0][:, 0] + self.noise)
        return interval(float(np.exp(descent.log_loss(self.theta[None], z)[0][0, 0])), found, level)

    def best_split(self) -> tuple[Estimate, Estimate] | None:
        """(k, p) of N_opt = k C^p, at C = 6 N D; None unless the law has both variables.

        p = beta / (alpha + beta), k = (alpha A / beta B)^(1 / (alpha + beta)) / 6^p.
        Source: Hoffmann et al., arXiv 2203.15556, equation 4.
        """
        if len(self.form.variables) != 2:
            return None
        (k, p), (ks, ps) = _split(self.theta[None]), _split(self.draws)
        return interval(k[0], ks), interval(p[0], ps)

    def best_params(self, flops: float) -> Estimate:
        """N_opt at a budget, of a law with both variables."""
        (k, p), (ks, ps) = _split(self.theta[None]), _split(self.draws)
        with np.errstate(over="ignore"):
            return interval(k[0] * flops ** p[0], ks * flops**ps)

    def _of(self, i: int) -> Estimate:
        with np.errstate(over="ignore"):  # the factor of a term that tells nothing
            return interval(float(np.exp(self.theta[i])), np.exp(self.draws[:, i]))

    def _logs(self, params: np.ndarray, tokens: np.ndarray, flops: np.ndarray) -> np.ndarray:
        values = {"params": params, "tokens": tokens, "flops": flops}
        return np.log(np.stack([values[v] for v in self.form.variables]))

    def _check(self, place: Point) -> None:
        if off := laws.off(self.form, self.points, place):
            raise UserError(f"{place.name}: {off}")


def fit(
    points: Sequence[Point], *, resamples: int = RESAMPLES, seed: int = 0, command: str = laws.COMMAND
) -> Fit:
    """Fits the fullest law that the points can tell; raises UserError if they can tell none, which may advise to give
    `command` other runs.

    A thousand resamples of 240 points take about a second on one core.
    """
    form = laws.choose(points, command)
    logs = np.log(np.stack([column(points, v) for v in form.variables]))
    middle = logs.mean(axis=1, keepdims=True)
    z, y = logs - middle, np.log(column(points, "loss"))
    theta, _ = descent.fit(y[None], z)
    law = descent.log_loss(theta, z)[0][0]
    residuals = y - law
    rng = np.random.default_rng(seed)
    dealt = np.clip(deal(residuals, len(points) - form.coefficients, resamples, rng), -_FAR, _FAR)
    size = max(1, _AT_ONCE // (30 * len(points)))
    draws = np.concatenate([
        descent.fit(law + dealt[i : i + size, :-1], z, near=theta[0])[0] for i in range(0, resamples, size)
    ])
    return Fit(
        form=form, points=tuple(points), theta=_uncentred(theta, middle)[0], draws=_uncentred(draws, middle),
        residuals=residuals, noise=dealt[:, -1] + apart(points, resamples, rng),
    )


def deal(residuals: np.ndarray, spare: int, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Residuals [n] drawn anew [R, n + 1], as wide as those of a law known beforehand would be.

    `spare`: points more than coefficients. The last column is for a point that is not among these.
    """
    count = len(residuals)
    centred = residuals - residuals.mean()
    width = np.sqrt(count / spare) * np.sqrt(spare / rng.chisquare(spare, (resamples, 1)))
    return width * rng.choice(centred, (resamples, count + 1))


def apart(points: Sequence[Point], resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Of log loss, what one seed's run misses the mean of its point by, drawn anew [R]; 0 where no point has seeds.

    A mean of k seeds misses the law by u + e / k^(1/2), u the size's own share and e a run's. A run's distance from
    that mean has the variance e^2 (1 - 1/k), so that both together are u + e: what a single run misses it by.
    """
    away = [np.log(p.losses or (p.loss,)) - math.log(p.loss) for p in points]
    freedom = sum(len(of_point) - 1 for of_point in away)
    if not freedom:
        return np.zeros(resamples)
    likely = np.concatenate([np.full(len(of_point), 1 / len(of_point)) for of_point in away]) / len(points)
    return np.sqrt(freedom / rng.chisquare(freedom, resamples)) * rng.choice(np.concatenate(away), resamples, p=likely)


def interval(value: float, draws: np.ndarray, level: float = LEVEL) -> Estimate:
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], method="nearest")  # some may be infinite
    return Estimate(float(value), float(low), float(high))


def _uncentred(theta: np.ndarray, middle: np.ndarray) -> np.ndarray:
    count = len(middle)
    moved = theta.copy()
    moved[:, 1 : 1 + count] += np.exp(theta[:, 1 + count :]) * middle[:, 0]
    return moved


def _split(theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    a, b, log_alpha, log_beta = theta[:, 1:].T
    with np.errstate(over="ignore", divide="ignore"):  # of a term that tells nothing
        power = 1 / (1 + np.exp(log_alpha - log_beta))
        factor = np.exp((log_alpha + a - log_beta - b) / (np.exp(log_alpha) + np.exp(log_beta))) / FLOPS**power
    return factor, power
