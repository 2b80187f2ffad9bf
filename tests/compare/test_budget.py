"""Equal budgets and gains on curves whose answer is known."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from run_folders import experiment, make_run
from scipy import stats

from maijax.compare import budget, runs


def power_law(compute, *, floor=1.0, exponent=0.3, faster=1.0):
    return floor + 10 * (compute * faster) ** -exponent


def test_interpolation_is_linear_in_the_logarithm():
    points = [(10.0, 4.0), (1_000.0, 2.0)]
    assert budget.at(points, 100.0) == pytest.approx(3.0)  # half way in log10
    assert budget.at(points, 10.0) == 4.0 and budget.at(points, 1_000.0) == 2.0
    assert budget.at(points, 9.99) is None and budget.at(points, 1_001.0) is None


def test_reach_is_the_first_crossing_and_never_extrapolates():
    points = [(10.0, 4.0), (100.0, 3.0), (1_000.0, 3.5), (10_000.0, 2.5)]
    assert budget.reach(points, 3.5) == pytest.approx(10**1.5)
    assert budget.reach(points, 2.75) == pytest.approx(10**3.75)
    assert budget.reach(points, 2.4) is None and budget.reach(points, 4.1) is None
    assert budget.reach(points, 4.0) == 10.0


@given(st.lists(st.tuples(st.floats(0.01, 3), st.floats(0.001, 1)), min_size=2, max_size=12), st.floats(0, 1))
def test_reach_undoes_at(steps, share):
    """On any falling curve."""
    x, y, points = 1.0, 50.0, []
    for up, down in steps:
        x, y = x * (1 + up), y - down
        points.append((x, y))
    spent = math.exp((1 - share) * math.log(points[0][0]) + share * math.log(points[-1][0]))
    spent = min(max(spent, points[0][0]), points[-1][0])
    loss = budget.at(points, spent)
    found = budget.reach(points, loss)
    assert found == pytest.approx(spent, rel=1e-6) or budget.at(points, found) == pytest.approx(loss, abs=1e-9)


def sides(tmp_path, curves):
    """One side per name: {name: [losses by step of each seed]}; sides differ in their rate."""
    for i, (name, seeds) in enumerate(curves.items()):
        for seed, losses in enumerate(seeds):
            made = experiment(lr=0.001 * (i + 1), seed=seed, steps=max(losses))
            make_run(tmp_path / f"{name}{seed}", made, losses)
    return runs.gather(tmp_path, [f"{name}*" for name in curves])


def test_the_gain_is_what_the_curves_were_made_with(tmp_path):
    steps = [10 * 2 ** (i / 8) for i in range(49)]
    grid = sorted({round(s) for s in steps})
    a, b = sides(tmp_path, {
        "a": [{s: power_law(s) for s in grid}], "b": [{s: power_law(s, faster=1.5) for s in grid if s <= 300}],
    })
    for kind in runs.BUDGETS:  # the curves are of one shape, so tokens, FLOPs and seconds agree
        found = budget.gain(a, b, kind, "loss")
        assert found.factor == pytest.approx(1.5, rel=2e-3)
        assert "before its rate decayed" in " ".join(found.why)
    back = budget.gain(b, a, "flops", "loss")
    assert back.factor is None and back.low == pytest.approx(max(s for s in grid if s <= 300) / grid[-1])
    assert "never reaches" in " ".join(back.why)


def test_a_gain_below_the_first_evaluation_is_a_bound(tmp_path):
    a, b = sides(tmp_path, {"a": [{50: 2.0, 100: 1.9}], "b": [{50: 3.0, 100: 2.5}]})
    found = budget.gain(a, b, "tokens", "loss")
    assert (found.factor, found.low, found.high) == (None, None, 0.5) and "is better at its first" in found.why[0]


def test_levels_agree_with_welch(tmp_path):
    ours, theirs = [2.00, 2.03, 1.98], [1.90, 1.91]
    a, b = sides(tmp_path, {
        "a": [{25: 4.0 + x, 50: 3.0 + x, 100: x} for x in ours],
        "b": [{25: 4.0 + x, 50: 3.0 + x, 100: x} for x in theirs],
    })
    levels = budget.levels([a, b], "tokens", "loss")
    assert [level.spent for level in levels] == [25 * 512, 50 * 512, 100 * 512]
    last = levels[-1]
    assert last.losses[0].mean == pytest.approx(2.003333, abs=1e-6) and last.losses[0].runs == 3
    welch = stats.ttest_ind(theirs, ours, equal_var=False).confidence_interval(0.95)
    gap, half = last.differences[1]
    assert (gap - half, gap + half) == pytest.approx((welch.low, welch.high))
    assert last.differences[0] is None


def test_no_interval_where_the_seeds_do_not_differ(tmp_path):
    a, b = sides(tmp_path, {"a": [{25: 3.0, 100: 2.0}] * 3, "b": [{25: 3.0, 100: 2.5}] * 3})
    assert len(a.runs) == 3
    assert budget.levels([a, b], "tokens", "loss")[-1].differences[1] == (0.5, None)


def test_no_level_beyond_the_shorter_run(tmp_path):
    a, b = sides(tmp_path, {"a": [{80: 3.0, 100: 2.9}], "b": [{10: 5.0, 40: 4.0}]})
    assert budget.levels([a, b], "tokens", "loss") == []  # at 40 steps A has not been measured yet
    c, d = sides(tmp_path / "2", {"a": [{10: 5.0, 1000: 3.0}], "b": [{10: 6.0, 100: 4.5}]})
    found = budget.levels([c, d], "tokens", "loss")
    assert [level.spent / 512 for level in found] == [25, 50, 100]
    assert found[-1].losses[0].mean == pytest.approx(4.0) and found[-1].losses[0].deviation is None
    assert found[-1].differences[1] == (pytest.approx(0.5), None)
