"""The driver: keeps workers going until every trial has ended, and says how it goes. No jax."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

from maijax.errors import RunError, UserError
from maijax.sweep.launch import Launcher
from maijax.sweep.study import Study, Trial
from maijax.train import metrics
from maijax.train.interrupt import Interrupt
from maijax.train.progress import Progress

EVERY = 0.3  # seconds between two looks
QUIET = 30.0  # seconds between two lines of progress, where there is no terminal and no trial ends
LOOK = 10.0  # seconds between two looks at how far the trials are
MOST_FAILURES = 4  # of workers in a row, in which no trial has moved


def drive(study: Study, launcher: Launcher) -> bool:
    """True when every trial has ended, False when asked to stop before.

    Raises UserError for what no trial can run with, as data that cannot be read, RunError if no worker can work.

    Any number of drivers may do this for one study at once.
    """
    failures, moved, delay, refused, then = 0, None, 0.0, "", None
    looked, running = 0.0, ""
    with Interrupt() as interrupt, Progress(total=study.count, every=QUIET, what="trial") as bar:
        while True:
            trials = study.trials()
            ended = [trial for trial in trials if trial.result is not None]
            now = _moment(trials)
            if now != moved or time.monotonic() - looked >= LOOK:
                looked, running = time.monotonic(), at_work(study, trials)
            bar.count(len(ended), "  ".join(filter(None, (running, said(trials)))))
            failed = [(code, line) for code, line in launcher.ended() if code not in (0, 75)]
            failures = len(failed) if now != moved else failures + len(failed)
            moved = now
            if failed:
                code, line = failed[-1]
                if code == 2 and (failures > 1 or not study.trained()):
                    # It could begin none that was free; another may be at one that can be trained.
                    refused, then = line, now
                else:
                    how = f"was killed (signal {-code})" if code < 0 else f"ended with code {code}: {line}"
                    bar.note(f"maijax: a worker {how}; another takes up its trials")
                    delay = time.monotonic() + min(30.0, 2.0**failures)
                    if failures >= MOST_FAILURES:
                        raise RunError(f"{failures} workers in a row ended before a trial moved; the last said: {line}")
            if interrupt.asked is not None:
                _stop(launcher)
                return len([t for t in study.trials() if t.result is not None]) == study.count
            alive = launcher.alive()
            if len(ended) == study.count and not alive:
                return True
            if refused and study.trained() and _moment(study.trials()) != then:
                refused = ""
            if refused and not alive:
                raise UserError(refused)
            free = study.count - len(ended) - len(study.held()) if alive < launcher.workers else 0
            if free > 0 and not refused and time.monotonic() >= delay:
                launcher.start()
            time.sleep(EVERY)


def _moment(trials: Sequence[Trial]) -> list[tuple[int, int, int, bool]]:
    """Where the trials stand; it changes when one moves."""
    return [(t.number, t.step, t.deaths, t.result is not None) for t in trials]


def at_work(study: Study, trials: Sequence[Trial]) -> str:
    """How many trials are run at this moment, and how much of their steps they have made on average."""
    held, shares = study.held(), []
    for trial in trials:
        if trial.number in held:
            steps = [line["step"] for line in metrics.read(study.where(trial.number)) if line["kind"] == "train"]
            shares.append(max(steps, default=0) / study.sweep.experiment(trial.point).train.steps)
    return f"{len(shares)} running, at {statistics.fmean(shares):.0%}" if shares else ""


def said(trials: Sequence[Trial]) -> str:
    """The best so far, and how many were stopped early or failed."""
    parts = []
    if found := best(trials):
        parts.append(f"best {found.figure:.4f} bits per byte (trial {found.number})")
    for state in ("pruned", "failed"):
        if count := sum(t.result is not None and t.result.state == state for t in trials):
            parts.append(f"{count} {state}")
    return "  ".join(parts)


def best(trials: Sequence[Trial]) -> Trial | None:
    """The finished trial with the fewest bits per byte."""
    done = [(trial.figure, trial) for trial in trials if trial.figure is not None]
    return min(done, key=lambda pair: pair[0], default=(None, None))[1]


def _stop(launcher: Launcher) -> None:
    """Waits until the workers have saved; a second Ctrl-C leaves them to it."""
    launcher.stop()
    while launcher.alive():
        time.sleep(EVERY)
    launcher.ended()
