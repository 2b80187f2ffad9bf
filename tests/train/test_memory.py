"""Freed blocks are used again: a fresh process frees and asks for 64 MiB without new page faults."""

import subprocess
import sys

import pytest

from maijax.train.memory import reuse_freed_memory

PROGRAM = """
import ctypes, resource
from maijax.train.memory import reuse_freed_memory
assert reuse_freed_memory() and reuse_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = libc.malloc(64 << 20)
    ctypes.memset(block, 1, 64 << 20)
    libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
first, *later = [faults() for _ in range(4)]
print(first, max(later))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
def test_a_second_block_costs_no_page_faults():
    if not reuse_freed_memory():
        pytest.skip("not glibc")
    ran = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    first, later = map(int, ran.stdout.split())
    assert first > 30 and later <= 4
