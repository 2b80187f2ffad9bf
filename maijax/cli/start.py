"""What a command does before its verb: how it ends when it is interrupted, and which devices are not looked for."""

from __future__ import annotations

import glob
import importlib.util
import os
import signal
import sys
import threading
from typing import Any

_DEVICES = ("/dev/accel*", "/dev/vfio/*", "/dev/nvidia*", "/dev/kfd")  # of TPUs and GPUs


def skip_absent_tpu() -> None:
    """Leaves jax to the CPU where libtpu is installed, as for plans, on a machine that has neither a TPU nor a GPU.

    Looking for a TPU, libtpu prints a page of errors. JAX_PLATFORMS, if it is set, stands.
    """
    if importlib.util.find_spec("libtpu") and not any(map(glob.glob, _DEVICES)):
        os.environ.setdefault("JAX_PLATFORMS", "cpu")


def leave_at_once() -> Any:
    """Until a run asks for its own handler, Ctrl-C ends the process in one line; returns the handler before.

    An exception would come up in the middle of an import, or be lost in a callback of the compiler. What is
    written is written whole or not at all, so nothing needs to be undone.
    """
    if threading.current_thread() is not threading.main_thread():
        return None
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler:  # ignored, under nohup, or somebody else's
        return None

    def leave(*_: object) -> None:
        show_cursor = "\x1b[?25h" if sys.stderr.isatty() else ""
        os.write(2, f"{show_cursor}maijax: interrupted\n".encode())
        os._exit(130)

    return signal.signal(signal.SIGINT, leave)
