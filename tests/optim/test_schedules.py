"""Learning rates: golden points worked out by hand, and NumPy equal to JAX."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maijax.config import OptimConfig
from maijax.optim.schedules import schedule


def test_wsd_points():
    optim = OptimConfig(lr=1.0, schedule="wsd", warmup=4, decay_fraction=0.25, final_fraction=0.2)
    rate = schedule(optim, 100)
    assert [float(rate(n)) for n in (0, 1, 2, 3, 4, 50, 75)] == [0.25, 0.5, 0.75, 1, 1, 1, 1]
    # x = 1/25 and 9/25: 0.2 + 0.8 (1 - 1/5) and 0.2 + 0.8 (1 - 3/5)
    assert float(rate(76)) == pytest.approx(0.84)
    assert float(rate(84)) == pytest.approx(0.52)
    assert float(rate(100)) == pytest.approx(0.2)


def test_cosine_points():
    optim = OptimConfig(lr=2.0, schedule="cosine", warmup=20, final_fraction=0.1)
    rate = schedule(optim, 120)
    points = {0: 0.1, 19: 2.0, 20: 2.0, 70: 2.0 * 0.55, 120: 0.2}
    for n, expected in points.items():
        assert float(rate(n)) == pytest.approx(expected), n


def test_constant_has_no_end():
    rate = schedule(OptimConfig(lr=0.5, schedule="constant", warmup=0), 10)
    assert {float(rate(n)) for n in range(20)} == {0.5}


def test_warmup_longer_than_the_run_stays_below_the_peak():
    rate = schedule(OptimConfig(lr=1.0, warmup=100), 10)
    assert 0 < max(float(rate(n)) for n in range(10)) < 0.1


def test_peak_replaces_lr():
    assert float(schedule(OptimConfig(lr=1.0, schedule="constant", warmup=0), 5, peak=3.0)(2)) == 3.0


def test_plain_numbers_touch_no_device():
    assert isinstance(schedule(OptimConfig(), 100)(3), np.ndarray | np.floating)


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from(["wsd", "cosine", "constant"]),
    st.integers(0, 30),
    st.integers(1, 60),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_positive_bounded_and_equal_in_jax(name, warmup, steps, fraction, final):
    optim = OptimConfig(
        lr=1e-2, schedule=name, warmup=warmup, decay_fraction=fraction, final_fraction=final
    )
    rate = schedule(optim, steps)
    found = np.array([rate(n) for n in range(steps)])
    assert (found > 0).all() and (found <= 1e-2 * (1 + 1e-6)).all()
    traced = rate(jnp.arange(64))[:steps]
    np.testing.assert_allclose(found, traced, rtol=2e-5, atol=1e-9)
