"""Several corpora in one stream: which row of which source stands where, as a pure function of the row."""

from __future__ import annotations

import fractions
import math
from collections.abc import Sequence

import numpy as np

from maijax.errors import UserError

_LONGEST = 10_000  # rows after which the pattern repeats; shares are exact to 1 / _LONGEST
MIXTURE = 1  # goes up when the same weights would give another pattern


class Mixture:
    """Rows are dealt to the sources in a fixed pattern in which each source's rows lie evenly spread.

    Every row has the same number of tokens, so that shares of rows are shares of tokens. A pattern holds the
    exact shares, and its first n rows differ from them by less than one row for each source.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        self.counts = _counts(weights)
        self.period = sum(self.counts)
        # The j-th of a source's c rows would best stand at (j + 1/2) / c of the pattern.
        best = sorted(
            (fractions.Fraction(2 * j + 1, 2 * count), source)
            for source, count in enumerate(self.counts)
            for j in range(count)
        )
        self._source = np.array([source for _, source in best], np.int32)
        self._rank = np.empty(self.period, np.int64)
        for source, count in enumerate(self.counts):
            self._rank[self._source == source] = np.arange(count)

    def __call__(self, row: int) -> tuple[int, int]:
        """(source, row of this source) of a global row."""
        pattern, place = divmod(row, self.period)
        source = int(self._source[place])
        return source, pattern * self.counts[source] + int(self._rank[place])


def _counts(weights: Sequence[float]) -> list[int]:
    """Whole rows of each source in one pattern: the smallest numbers in the ratio of the weights."""
    if not weights or any(not (w > 0 and math.isfinite(w)) for w in weights):
        raise UserError(f"data.sources: weights {list(weights)} must all be above 0")
    exact = [fractions.Fraction(str(float(w))) for w in weights]  # 0.7 is meant as 7/10
    scale = math.lcm(*(w.denominator for w in exact))
    counts = [int(w * scale) for w in exact]
    shrink = math.gcd(*counts)
    counts = [count // shrink for count in counts]
    if (total := sum(counts)) > _LONGEST:
        counts = [max(1, round(fractions.Fraction(count, total) * _LONGEST)) for count in counts]
    return counts
