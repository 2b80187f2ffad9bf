"""One line that tells how training goes: a bar on a terminal, now and then a line elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

EVERY = 10.0  # seconds between lines where there is no terminal


class Progress:
    """Shows numbers that it is given and reads nothing from a device; use as a context manager."""

    def __init__(
        self, *, total: int, start: int = 0, every: float = EVERY, terminal: bool | None = None, enabled: bool = True,
        what: str = "step",
    ) -> None:
        self._what = what  # is counted
        self._enabled = enabled  # all processes but the first are silent
        self._total, self._start, self._every = total, start, every
        self._terminal = enabled and (sys.stderr.isatty() if terminal is None else terminal)
        self._bar: Any = None
        self._task: Any = None
        self._anchor: tuple[int, float] | None = None  # step and time of the first update: compiling is past
        self._last_line = -float("inf")
        self._text = ""
        self._pending = False
        self._done = 0  # by `count`

    def __enter__(self) -> Progress:
        if self._terminal:
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn
            from rich.progress import Progress as Bar

            columns = (
                TextColumn(f"{self._what} {{task.completed}}/{{task.total}}", markup=False),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[numbers]}", markup=False),
            )
            # Twice a second: the bar's thread takes the interpreter from the loop.
            self._bar = Bar(*columns, console=Console(stderr=True), refresh_per_second=2)
            self._bar.start()
            words = "compiling" if self._what == "step" else ""
            self._task = self._bar.add_task("", total=self._total, completed=self._start, numbers=words)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self._pending:
            self._line()

    def update(
        self, *, step: int, loss: float, tokens_per_s: float | None, matmul_fraction: float | None = None
    ) -> None:
        """The numbers of a step: loss in nats per token, fraction of the machine's measured matmul peak.

        None: not known yet, as in the step that compiles.
        """
        now = time.monotonic()
        self._anchor = self._anchor or (step, now)
        parts = [f"loss {loss:.3f}"]
        if tokens_per_s is not None:
            parts.append(f"{short(tokens_per_s)} tokens/s")
        if matmul_fraction is not None:
            parts.append(f"{matmul_fraction:.0%} of matmul peak")
        first, since = self._anchor
        if step > first and step < self._total:
            parts.append(f"{clock((now - since) / (step - first) * (self._total - step))} left")
        self._text = f"step {step}/{self._total}  " + "  ".join(parts)
        if self._bar is not None:
            self._bar.update(self._task, completed=step, numbers="  ".join(parts))
            return
        self._pending = True
        if now - self._last_line >= self._every:
            self._line()

    def count(self, done: int, text: str, *, total: int | None = None) -> None:
        """So many are done, and a few words; `total` where it was not known at the start.

        Where there is no terminal, a line at once if there are more than before.
        """
        self._total = self._total if total is None else total
        told = f"{self._what} {done}/{self._total}  {text}".rstrip()
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=self._total, numbers=text)
        elif told != self._text:
            self._text, self._pending = told, True
        more, self._done = done > self._done, done
        if self._pending and (more or time.monotonic() - self._last_line >= self._every):
            self._line()

    def doing(self, text: str) -> None:
        """Says what keeps the next step waiting; the next update replaces it."""
        if self._bar is not None:
            self._bar.update(self._task, numbers=text)

    def note(self, text: str) -> None:
        """A line of its own, above the bar."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        elif self._enabled:
            print(text, file=sys.stderr, flush=True)

    def _line(self) -> None:
        if self._enabled:
            print(self._text, file=sys.stderr, flush=True)
        self._last_line, self._pending = time.monotonic(), False


def short(number: float) -> str:
    """1234567 as 1.23M: three digits that matter."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= size * 0.9995:
            return f"{number / size:.3g}{letter}"
    return f"{number:.3g}"


def clock(seconds: float) -> str:
    """Seconds as 0:42, 12:05, 3:07:00 or 2d 4h."""
    whole = max(0, round(seconds))
    if whole >= 86_400:
        return f"{whole // 86_400}d {whole % 86_400 // 3600}h"
    hours, minutes = whole // 3600, whole % 3600 // 60
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"
