"""Parabolas find known best sizes, their laws known exponents, and budgets that say nothing are named."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maijax.compare import isoflop
from maijax.compare.points import Point

BUDGETS = np.geomspace(1e17, 1e20, 5)


def best(flops, factor=0.1, power=0.45):
    return factor * flops**power


def at(n, c, loss):
    return Point(name=f"{n:.3g}", params=float(n), tokens=float(c / 6 / n), flops=float(c), loss=float(loss))


def made(noise=0.0, seed=0, sizes=6, budgets=BUDGETS, off=1.0, power=0.45):
    """Runs on parabolas whose lowest points lie at `best`, in the middle of the sizes or off it."""
    rng = np.random.default_rng(seed)
    return [
        at(n, c, 2 + 30 / c**0.1 + 0.05 * np.log(n / best(c, power=power)) ** 2 + noise * rng.standard_normal())
        for c in budgets for n in off * best(c, power=power) * np.geomspace(0.25, 4, sizes) * np.exp(0.1 * rng.random())
    ]


@given(st.floats(0.2, 0.9), st.randoms(use_true_random=False))
@settings(max_examples=20, deadline=None)
def test_known_exponents_are_found_whatever_the_order(power, random):
    points = made(power=power)
    random.shuffle(points)
    found = isoflop.fit(points, resamples=20)
    assert found.params.power.value == pytest.approx(power, abs=1e-6)
    assert found.params.factor.value == pytest.approx(0.1, rel=1e-4)
    assert found.tokens.power.value == pytest.approx(1 - power, abs=1e-6)
    assert found.left_out == () and len(found.budgets) == 5
    for one in found.budgets:
        assert one.params.value == pytest.approx(best(one.flops, power=power))
        assert one.loss.value == pytest.approx(2 + 30 / one.flops**0.1)
        assert 6 * one.params.value * one.tokens.value == pytest.approx(one.flops)


def test_numpys_parabola_is_the_same():
    points = made(noise=5e-3)[:6]
    c2, c1, _ = np.polyfit(np.log([p.params for p in points]), [p.loss for p in points], 2)
    (one,) = isoflop.fit(points, resamples=1).budgets
    assert one.params.value == pytest.approx(np.exp(-c1 / (2 * c2)))


def test_intervals_hold_as_often_as_they_say():
    trials, exponent, size = 150, 0, []
    for seed in range(trials):
        found = isoflop.fit(made(noise=4e-3, seed=seed), resamples=300, seed=seed)
        exponent += found.params.power.low <= 0.45 <= found.params.power.high
        size += [b.params.low <= best(b.flops) <= b.params.high for b in found.budgets]
    assert 0.88 <= exponent / trials <= 1.0  # 95% are asked for
    assert 0.92 <= np.mean(size) <= 0.98


def test_budgets_without_a_bottom_are_told_of():
    low, high = made(budgets=[1e17], off=5.0), made(budgets=[1e18], off=0.2)
    bent = [at(n, 1e19, 3 - 0.1 * np.log(n / best(1e19)) ** 2) for n in best(1e19) * np.geomspace(0.25, 4, 6)]
    found = isoflop.fit([*low, *high, *bent, *made(budgets=[1e20])], resamples=5)
    assert [b.flops for b in found.budgets] == [pytest.approx(1e20)]
    assert found.params is None and found.tokens is None  # one budget is no law
    (_, below), (_, above), (_, turned) = found.left_out
    assert "below the smallest size" in below and "above the largest size" in above and "turn up" in turned


def test_too_few_sizes_are_no_budget():
    assert isoflop.fit(made(sizes=3), resamples=5) is None


def test_a_budget_is_what_lies_close():
    points = [at(1e7, c, 3) for c in (1e18, 1.1e18, 1.2e18, 2e18)]
    assert [len(group) for group in isoflop.grouped(points)] == [2, 1, 1]
