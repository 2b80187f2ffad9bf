"""Ctrl-C and SIGTERM ask a run to save and leave; a second Ctrl-C leaves at once."""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import Any


class Interrupt:
    """While open, the first SIGINT or SIGTERM is only noted; the loop looks at `asked` between steps."""

    def __init__(self) -> None:
        self.asked: signal.Signals | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked is not None:
            raise KeyboardInterrupt
        self.asked = signal.Signals(number)
        # Written past Python's buffers, which the interrupted code may be in the middle of.
        os.write(2, b"\nmaijax: stopping as soon as all is saved; Ctrl-C again leaves at once, without saving\n")
