"""Accelerators. `maijax plan NAME --topology CHIP:SHAPE` takes one by its name.

TPU rates: docs.cloud.google.com/tpu (v5e, v5p, v6e, tpu7x). One ICI link sustains nine tenths of its nominal rate
(jax-ml.github.io/scaling-book/tpus): 45 GB/s each way on v5e, 90 on the others. `hbm_bytes` is what the compiler's
own out-of-memory messages grant. GPU rates: NVIDIA's HGX sheets; collectives sustain 0.8 of NVLink's 450 and 900 GB/s
each way and 0.9 of 400 Gb/s InfiniBand per GPU.

Prices are on demand, in dollars per chip hour. They change and resellers contradict one another: set your own here.
"""

from maijax.hardware import Chip, GiB

# The dated price table. TPU: list prices as remembered in 2026-05, us-central and us-east; GPU: medians of public
# clouds in 2026-05 (aimultiple.com, mercatus: H100 2.0-5.0, H200 2.5-7.0, B200 4-10).
_LISTED = "2026-05, list price from memory: check before you rely on it"
_CLOUDS = "2026-05, median of public clouds"

_PLANE = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = (
    "2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16", "16x16x16",
    "16x16x24",
)
_NODES = ("1", "2", "4", "8", "2x8", "8x8", "64x8", "128x8", "512", "1024")

V5E = Chip(
    name="v5e", platform="tpu", compile_name="v5e", peak_flops=197e12,
    matrix=128, efficiency=0.83, hbm_bytes=int(15.75 * GiB),
    hbm_bandwidth=819e9, clock=1.5e9, torus=2, link_bandwidth=45e9, wrap=16, domain=256,
    scale_out=25e9 / 8,  # 2 x 100 Gb/s for a host of 8
    forms=_PLANE, price=1.20, priced=_LISTED,
)

V5P = Chip(
    name="v5p", platform="tpu", compile_name="v5p", peak_flops=459e12,
    matrix=128, efficiency=0.88, hbm_bytes=int(95.74 * GiB),
    hbm_bandwidth=2765e9, clock=1.75e9, torus=3, link_bandwidth=90e9, wrap=4,
    domain=8960,  # the pod; one job gets up to 6,144 of them without asking
    scale_out=50e9 / 8, forms=_CUBES, price=4.20, priced=_LISTED,
)

V6E = Chip(
    name="v6e", platform="tpu", compile_name="v6e", peak_flops=918e12,
    matrix=256, efficiency=0.74, hbm_bytes=int(31.25 * GiB),
    hbm_bandwidth=1638e9, clock=1.75e9, torus=2, link_bandwidth=90e9, wrap=16, domain=256,
    scale_out=100e9 / 8, forms=_PLANE, price=2.70, priced=_LISTED,
)

TPU7X = Chip(
    name="tpu7x", platform="tpu", compile_name="tpu7x", devices=2, peak_flops=2307e12,
    matrix=256, efficiency=0.78,
    hbm_bytes=int(2 * 94.75 * GiB), hbm_bandwidth=7380e9, clock=2.2e9, torus=3, link_bandwidth=90e9, wrap=4,
    domain=9216, scale_out=100e9 / 8, forms=_CUBES, price=12.00, priced=_LISTED,
)

H100 = Chip(
    name="h100", platform="gpu", compile_name="NVIDIA H100 80GB HBM3", peak_flops=989e12,
    matrix=64, efficiency=0.71, hbm_bytes=78 * GiB,
    hbm_bandwidth=3350e9, clock=1.755e9, link_bandwidth=360e9, domain=8, scale_out=45e9, forms=_NODES,
    price=2.95, priced=_CLOUDS,
)

H200 = Chip(
    name="h200", platform="gpu", compile_name="NVIDIA H200", peak_flops=989e12,
    matrix=64, efficiency=0.71, hbm_bytes=139 * GiB,
    hbm_bandwidth=4800e9, clock=1.755e9, link_bandwidth=360e9, domain=8, scale_out=45e9, forms=_NODES,
    price=3.80, priced=_CLOUDS,
)

B200 = Chip(
    name="b200", platform="gpu", compile_name="NVIDIA B200", peak_flops=2250e12,
    matrix=64, efficiency=0.71, hbm_bytes=178 * GiB,
    hbm_bandwidth=7700e9, clock=1.965e9, link_bandwidth=720e9, domain=8, scale_out=45e9, forms=_NODES,
    price=6.00, priced=_CLOUDS,
)
