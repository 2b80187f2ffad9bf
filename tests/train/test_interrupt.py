"""What is asked for is never lost, also where one thing that can be stopped runs another."""

import signal

import pytest

from maijax.train.interrupt import Interrupt


def test_one_inside_another_has_heard_it_and_hands_it_on():
    before = signal.getsignal(signal.SIGTERM)
    with Interrupt() as outer:
        with Interrupt() as inner:
            assert inner.asked is None
            signal.raise_signal(signal.SIGTERM)
        assert inner.asked == outer.asked == signal.SIGTERM
        with Interrupt() as later:
            assert later.asked == signal.SIGTERM
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is before
