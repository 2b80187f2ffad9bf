"""Which trials to stop early, by what all have measured at equal steps. No jax."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from maijax.errors import UserError
from maijax.space import Prune

Curve = dict[int, float]  # step -> held-out bits per byte

ENOUGH = 4  # other trials that must have come as far
REDUCTION = 3  # of halving: a third goes on from each rung


def loses(rule: Prune, curve: Curve, others: Sequence[Curve]) -> bool:
    """Whether the trial of a curve, which ends at its newest evaluation, should stop there.

    median: it is, at its best so far, worse than the median of what the others had at this step. halving: this is
    rung 1, 3, 9, ... of its evaluations, and it is not among the better third of all that came to this rung.

    Source: median: Golovin et al., Google Vizier, 2017, section 3.2.2, as in Optuna; halving: Li et al., ASHA,
    arXiv 1810.05934, algorithm 2.
    """
    if rule == "none" or not curve:
        return False
    step = max(curve)
    there = [other[step] for other in others if step in other]
    if len(there) < ENOUGH:
        return False
    if rule == "median":
        return min(curve.values()) > statistics.median(there)
    if rule != "halving":
        raise UserError(f"prune={rule!r} must be none, median or halving")
    evaluations, rung = len(curve), 1
    while rung < evaluations:
        rung *= REDUCTION
    if rung != evaluations:
        return False
    keep = max(1, (len(there) + 1) // REDUCTION)
    return curve[step] > sorted([*there, curve[step]])[keep - 1]
