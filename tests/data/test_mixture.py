import pytest
from hypothesis import given
from hypothesis import strategies as st

from maijax.data.mixture import Mixture
from maijax.errors import UserError

WEIGHTS = st.lists(st.integers(1, 50).map(lambda n: n / 10), min_size=1, max_size=5)


@given(WEIGHTS)
def test_each_sources_rows_come_in_order_and_in_their_share(weights):
    mixture = Mixture(weights)
    seen = [0] * len(weights)
    for row in range(2 * mixture.period):
        source, index = mixture(row)
        assert index == seen[source]
        seen[source] += 1
        for count, weight in zip(seen, weights, strict=True):
            assert abs(count - weight / sum(weights) * (row + 1)) < len(weights)
    for count, weight in zip(seen, weights, strict=True):
        assert count == pytest.approx(weight / sum(weights) * 2 * mixture.period, abs=1e-6)


def test_small_ratios_are_exact():
    assert Mixture([0.7, 0.3]).counts == [7, 3]
    assert Mixture([1.0]).counts == [1]
    assert Mixture([2, 2, 2]).counts == [1, 1, 1]
    assert [Mixture([3, 1])(row)[0] for row in range(8)] == [0, 0, 1, 0, 0, 0, 1, 0]


def test_odd_weights_are_nearly_exact_and_no_source_is_lost():
    counts = Mixture([1 / 3, 2 / 3, 1e-9]).counts
    assert counts[2] == 1
    assert counts[0] / sum(counts) == pytest.approx(1 / 3, abs=2e-4)


@pytest.mark.parametrize("weights", [[], [1, 0], [-1.0], [float("nan")], [float("inf"), 1]])
def test_impossible_weights(weights):
    with pytest.raises(UserError, match="weights"):
        Mixture(weights)
