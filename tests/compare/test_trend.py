"""The slope of a gain: against scipy's regression, on families whose truth is known, with coverage counted."""

import collections
import math

import numpy as np
import pytest
from scipy import stats

from maijax.compare import trend
from maijax.errors import UserError

FLOOR, EXPONENT = 1.0, 0.12


def family(rng, beta, *, sizes=5, seeds=2, noise=0.003, shared=0.0, misfit=0.0, gain=1.3):
    """Pairs of runs where B's gain is gain * (C / middle)^beta; shared: noise that both runs of a pair have."""
    compute = np.logspace(14, 16.5, sizes)

    def loss(c):
        return FLOOR + 2.0 * (c / 1e14) ** -EXPONENT

    pairs, index = [], []
    for i, c in enumerate(compute):
        off = rng.normal() * misfit
        for _ in range(seeds):
            both = rng.normal() * shared + off
            better = c * gain * (c / 10**15.25) ** beta
            pairs.append((c, loss(c) + both + rng.normal() * noise, c, loss(better) + both + rng.normal() * noise))
            index.append(i)
    return pairs, index, compute


def test_the_law_is_recovered():
    compute = np.logspace(14, 17, 6)
    found = trend.frontier(compute, 1.2 + 3.0 * (compute / 1e14) ** -0.2)
    assert found.floor == pytest.approx(1.2, abs=0.02) and found.exponent == pytest.approx(0.2, rel=0.03)
    assert found.compute(1.2 + 3.0 * 100**-0.2) == pytest.approx(1e16, rel=0.01)
    assert found.compute(0.5) == math.inf


def test_a_law_needs_losses_that_fall():
    with pytest.raises(UserError, match="does not fall with compute"):
        trend.frontier([1e14, 1e15, 1e16], [2.0, 2.1, 2.2])


@pytest.mark.parametrize("beta", [0.0, 0.1, -0.1])
def test_without_noise_the_truth_is_found(beta):
    pairs, index, compute = family(np.random.default_rng(0), beta, noise=0.0)
    found = trend.trend(pairs, index)
    assert found.slope == pytest.approx(beta * math.log(10), abs=0.005)
    assert math.exp(found.top) == pytest.approx(1.3 * (compute[-1] / 10**15.25) ** beta, rel=0.02)


def test_unequal_budgets_are_taken_into_account():
    """B of half the compute, equal to A at 0.65 of it: a gain of 1.3."""
    compute = np.logspace(14, 16, 4)
    pairs = [(c, FLOOR + 2 * (c / 1e14) ** -0.1, c / 2, FLOOR + 2 * (0.65 * c / 1e14) ** -0.1) for c in compute]
    found = trend.trend(pairs, range(4))
    assert [math.exp(g) for g in found.gains] == pytest.approx([1.3] * 4, rel=0.02)


def test_the_line_is_scipys():
    pairs, index, _ = family(np.random.default_rng(3), 0.05, seeds=3)
    found = trend.trend(pairs, index)
    assert not found.curved
    line = stats.linregress(np.log10([p[0] for p in pairs]), found.gains)
    assert found.slope == pytest.approx(line.slope)
    half = stats.t.ppf(0.975, len(pairs) - 2) * line.stderr
    assert found.half == pytest.approx(half / math.sqrt(1 - found.law_share))


def test_two_sizes_give_no_verdict():
    pairs, index, _ = family(np.random.default_rng(0), 0.1, sizes=2, seeds=5)
    with pytest.raises(UserError, match="3 sizes or more that both sides have, there are 2"):
        trend.trend(pairs, index)


@pytest.mark.parametrize(
    ("beta", "truth", "how", "often"),
    [
        (0.10, "grows", {}, 0.95),
        (-0.10, "fades", {}, 0.95),
        (0.0, "holds", {}, 0.9),
        (0.02, "cannot be told", {"sizes": 3, "seeds": 1, "noise": 0.02}, 0.85),  # too few runs, too much noise
        (0.0, "cannot be told", {"noise": 0.03}, 0.85),
        (0.10, "grows", {"sizes": 4, "seeds": 3, "shared": 0.02, "misfit": 0.01}, 0.9),  # pairing takes it out
    ],
)
def test_verdicts_and_coverage_on_families_of_known_truth(beta, truth, how, often):
    rng = np.random.default_rng(7)
    said: collections.Counter = collections.Counter()
    covered, trials = 0, 100
    for _ in range(trials):
        pairs, index, _ = family(rng, beta, **how)
        found = trend.trend(pairs, index)
        said[found.verdict] += 1
        covered += abs(found.slope - beta * math.log(10)) <= found.half
    assert said[truth] >= often * trials, said
    opposite = {"grows": "fades", "fades": "grows"}.get(truth)
    assert opposite is None or said[opposite] == 0
    assert covered >= 0.89 * trials  # 95%, less three standard errors of so many trials


def test_sizes_off_the_line_are_not_settled_by_seeds():
    rng = np.random.default_rng(0)
    pairs, index, compute = family(rng, 0.0, sizes=4, seeds=6, noise=0.001)
    bent = [(a, b, c, d - 0.03 * (i == 1)) for (a, b, c, d), i in zip(pairs, index, strict=True)]
    found = trend.trend(bent, index)
    assert found.curved and found.freedom == 2 and found.verdict == "cannot be told"
    assert trend.needed(found, np.log10(compute), 6).seeds is None
    straight = trend.trend(pairs, index)
    assert not straight.curved and straight.freedom == 22


def test_needed_runs_by_hand():
    """Three sizes a decade apart (S = 2), sigma 0.1, slope 0: D = ln 1.1; r = 10 is the first that does."""
    found = trend.Trend(
        law=trend.Law(floor=1, scale=1, exponent=0.1), gains=(0.0,) * 3, slope=0.0, half=1.0, top=0.0, top_half=1.0,
        sigma=0.1, freedom=1, curved=False, law_share=0.0,
    )
    told = trend.needed(found, [14.0, 15.0, 16.0], 1)

    def reach(r):
        freedom = 3 * r - 2
        return (stats.t.ppf(0.975, freedom) + stats.t.ppf(0.8, freedom)) * 0.1 / math.sqrt(2 * r)

    assert told.towards == "holds"
    assert reach(told.seeds) <= math.log(1.1) < reach(told.seeds - 1)
    assert told.sizes is not None and told.sizes > 3


def test_the_seeds_asked_for_settle_it():
    """The power is what the formula says: with that many seeds a real slope is called in about 80% of the studies."""
    noise, beta = 0.02, 0.06
    slope = beta * math.log(10)
    sigma = math.sqrt(2) * noise / (EXPONENT * 2.0 * (10**1.25) ** -EXPONENT)  # of a pair, at the middle size
    assumed = trend.Trend(
        law=trend.Law(floor=1, scale=1, exponent=EXPONENT), gains=(), slope=slope, half=1.0, top=0.0, top_half=1.0,
        sigma=sigma, freedom=3, curved=False, law_share=0.0,
    )
    x = np.linspace(14, 16.5, 5)
    told = trend.needed(assumed, x, 1)
    assert told.towards == "grows" and told.seeds is not None
    rng = np.random.default_rng(5)
    called = sum(trend.trend(*family(rng, beta, seeds=told.seeds, noise=noise, gain=1.1)[:2]).verdict == "grows"
                 for _ in range(60))
    assert 0.6 <= called / 60 <= 0.95
