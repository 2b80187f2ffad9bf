"""The float32 matmul peak of this machine, measured: what a training step's arithmetic is compared with.

    python benchmarks/peak_matmul.py [--cores 1]

Prints GFLOP per CPU-second for numpy's BLAS and for jax, on a large square product and on the shapes of a training
step. CPU-seconds and not wall: other processes on the machine change them little.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable

SHAPES = ((2048, 2048, 2048), (4096, 256, 1024), (4096, 1024, 256), (4096, 256, 4096), (2048, 512, 1536))


def cpu_gflops(product: Callable[[], object], flops: int, repeats: int = 10) -> float:
    """Return the best GFLOP per CPU-second of this process over the repeats, after two that do not count."""
    seconds = []
    for _ in range(repeats + 2):
        start = time.process_time()
        product()
        seconds.append(time.process_time() - start)
    return flops / min(seconds[2:]) / 1e9


def measure(shape: tuple[int, int, int]) -> dict[str, float]:
    """Return the GFLOP per CPU-second of numpy and jax for an [m, k] by [k, n] product."""
    import jax
    import numpy as np

    m, k, n = shape
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((m, k), dtype=np.float32), rng.standard_normal((k, n), dtype=np.float32)
    a_jax, b_jax = jax.numpy.asarray(a), jax.numpy.asarray(b)
    dot = jax.jit(lambda x, y: x @ y)
    return {
        "numpy": cpu_gflops(lambda: a @ b, 2 * m * k * n),
        "jax": cpu_gflops(lambda: dot(a_jax, b_jax).block_until_ready(), 2 * m * k * n),
    }


def pin(cores: int) -> None:
    """Bind this process to so many cores; before numpy and jax are imported, since they size their pools by it."""
    chosen = sorted(os.sched_getaffinity(0))[-cores:]
    os.sched_setaffinity(0, chosen)
    os.environ |= {"OMP_NUM_THREADS": str(cores), "OPENBLAS_NUM_THREADS": str(cores), "JAX_PLATFORMS": "cpu"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cores", type=int, default=1)
    pin(parser.parse_args().cores)
    print("| m x k x n | numpy | jax |\n|---|---|---|")
    for shape in SHAPES:
        found = measure(shape)
        print(f"| {' x '.join(map(str, shape))} | {found['numpy']:.1f} | {found['jax']:.1f} |", flush=True)


if __name__ == "__main__":
    main()
