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

    XLA's CPU client mallocs the temporary buffer of a step each time it runs (1.0 GB at 8M parameters and 4,096
    tokens). glibc maps such a block anew and unmaps it after, so the kernel zeroes its pages every step: there,
    262,000 page faults and a fifth of the step's CPU time. Call once, before the first jax array. Does nothing
    on another C library.

    The price: the process does not shrink after a peak, and the buffer may come to lie in a second or third
    place before one is found again each time (1.6 to 2.6 GB resident there, after which it stays).
    Source: mallopt(3); own measurement, glibc 2.36, jax 0.10.2.
    """
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # One arena: the heaps of the others hold at most 64 MiB, so a larger block would be mapped all the same.
    return all([mallopt(_M_MMAP_MAX, 0), mallopt(_M_TRIM_THRESHOLD, -1), mallopt(_M_ARENA_MAX, 1)])
