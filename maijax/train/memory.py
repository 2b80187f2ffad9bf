"""Keep the C library from handing freed memory back to the kernel between steps."""

from __future__ import annotations

import ctypes
import functools
import platform
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8  # malloc.h of glibc


@functools.cache
def reuse_freed_memory() -> bool:
    """Make glibc's malloc keep freed memory for the next request, and say whether it will.

    XLA's CPU client mallocs the temporary buffer of a step (1.4 GB at 8M parameters and 4,096 tokens) each
    time it runs. glibc maps such a block anew and unmaps it after, so the kernel zeroes 355,000 pages per
    step: a fifth of the step's CPU time. Call once, before the first large allocation, i.e. before the
    first jax array. The price: the process does not shrink after a peak. Does nothing on another C library.
    Source: mallopt(3); figures from benchmarks/cpu_step.py.
    """
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # One arena: the heaps of the others hold at most 64 MiB, so a larger block would be mapped all the same.
    return all([mallopt(_M_MMAP_MAX, 0), mallopt(_M_TRIM_THRESHOLD, -1), mallopt(_M_ARENA_MAX, 1)])
