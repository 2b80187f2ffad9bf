"""Ctrl-C and SIGTERM ask a run to save and leave; a second Ctrl-C leaves at once."""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import Any


class Interrupt:
    """While open, the first SIGINT or SIGTERM is only noted; the loop looks at `asked` between steps.

    One opened inside another has heard what that one has, and leaves it what it heard itself.
    """

    def __init__(self) -> None:
        self.asked: signal.Signals | None = None
        self._before: dict[int, Any] = {}
        self._outer: Interrupt | None = None

    def __enter__(self) -> Interrupt:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._note)
        outer = getattr(self._before[signal.SIGTERM], "__self__", None)
        if isinstance(outer, Interrupt):
            self._outer = outer
            self.asked = self.asked or outer.asked
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._outer is not None:
            self._outer.asked = self._outer.asked or self.asked

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked is not None:
            raise KeyboardInterrupt
        self.asked = signal.Signals(number)
        # Written past Python's buffers, which the interrupted code may be in the middle of.
        os.write(2, b"\nmaijax: stopping as soon as all is saved; Ctrl-C again leaves at once, without saving\n")
