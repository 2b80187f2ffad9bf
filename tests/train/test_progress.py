"""The line of progress, with and without a terminal."""

import pytest

from maijax.train import progress
from maijax.train.progress import Progress, clock, short


@pytest.mark.parametrize(
    ("number", "text"),
    [(0.0, "0"), (12.34, "12.3"), (999.9, "1k"), (12345, "12.3k"), (3.21e6, "3.21M"), (5e9, "5B")],
)
def test_short(number, text):
    assert short(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (65, "1:05"), (3661, "1:01:01"), (90_000, "1d 1h")]
)
def test_clock(seconds, text):
    assert clock(seconds) == text


def test_plain_lines_now_and_then_and_at_the_end(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with Progress(total=100, every=10, terminal=False) as bar:
        for step in range(1, 26):
            now[0] = float(step)
            bar.update(step=step, loss=2.0, tokens_per_s=12_345.0, matmul_fraction=0.41)
        bar.note("a story [bold]")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "step 1/100  loss 2.000  12.3k tokens/s  41% of matmul peak"
    assert lines[1] == "step 11/100  loss 2.000  12.3k tokens/s  41% of matmul peak  1:29 left"
    assert lines[2].startswith("step 21/100") and lines[3] == "a story [bold]"
    assert lines[4].startswith("step 25/100") and len(lines) == 5


def test_bar_on_a_terminal(capsys):
    with Progress(total=10, start=4, terminal=True) as bar:
        bar.note("[red]note[/red]")
        bar.update(step=5, loss=float("nan"), tokens_per_s=0.0)
    told = capsys.readouterr().err
    assert "[red]note[/red]" in told and "step 5/10" in told and "loss nan" in told
