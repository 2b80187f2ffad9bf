"""Chips and topologies: what is told of them agrees with itself, and what is mistyped is answered with the nearest."""

import math

import pytest

from maijax import registry
from maijax.errors import UserError


@pytest.mark.parametrize(
    ("text", "shape", "chips", "devices"),
    [
        ("v5p:8x8x8", (8, 8, 8), 512, 512), ("v5p:16x16x32", (16, 16, 32), 8192, 8192), ("v5p:2x2x1", (2, 2, 1), 4, 4),
        ("tpu7x:4x4x4", (4, 4, 4), 64, 128), ("V6E:16x16", (16, 16), 256, 256), ("h100:64x8", (64, 8), 512, 512),
        ("h100:512", (64, 8), 512, 512), ("h200:8", (1, 8), 8, 8), ("b200:4", (1, 4), 4, 4),
    ],
)
def test_a_topology_is_a_chip_and_a_shape(text, shape, chips, devices):
    found = registry.topology(text)
    assert (found.shape, found.chips, found.devices) == (shape, chips, devices)
    assert registry.topology(found.text) == found


def test_slices_multiply():
    found = registry.topology("v5p:8x8x8", slices=2)
    assert (found.chips, found.slice_chips, found.text, found.title) == (1024, 512, "v5p:8x8x8", "2 x v5p:8x8x8")


@pytest.mark.parametrize(
    ("text", "slices", "answer"),
    [
        ("v5:8x8", 1, "no chip 'v5'; did you mean"),
        ("zzz:8", 1, "no chip 'zzz'; there are v5e, v5p, v6e, tpu7x, h100, h200, b200"),
        ("v5p:9x9x9", 1, "v5p has no such slice; try v5p:8x8x16, .* or multiples of 4 up to 8960 chips"),
        ("v5p:32x32x32", 1, "v5p has no such slice"),
        ("v6e:4x4x4", 1, "v6e has no such slice; try v6e:8x8"),
        ("v5p", 1, "must be a chip and a shape, e.g. v5p:16x16x16"),
        ("v5p:8xx8", 1, "must be a chip and a shape"),
        ("h100:63", 1, "63 GPUs are not whole nodes of 8; try h100:56 or h100:64"),
        ("h100:2x16", 1, "h100 has at most 8 GPUs in a node; try h100:32"),
        ("h100:2x2x8", 1, "write nodes x GPUs, e.g. h100:64x8"),
        ("h100:64x8", 2, "slices=2 are for TPUs; write h100:128x8"),
        ("v5p:8x8x8", 0, "slices=0 must be above 0"),
    ],
)
def test_a_mistake_is_answered_with_the_nearest(text, slices, answer):
    with pytest.raises(UserError, match=answer):
        registry.topology(text, slices)


def test_chips_by_name():
    assert registry.chip("h100").domain == 8
    with pytest.raises(UserError, match="no chip 'h300'; configs/chips.py has v5e"):
        registry.chip("h300")


@pytest.mark.parametrize("name", list(registry.chips()))
def test_each_chip_is_whole(name):
    chip = registry.chip(name)
    assert chip.price > 0 and chip.priced[:2] == "20", "a price has its date"
    assert (chip.torus > 0) == (chip.wrap > 0) == (chip.platform == "tpu")
    assert chip.device_flops * chip.devices == chip.peak_flops
    for form in chip.forms:
        found = registry.topology(f"{name}:{form}")
        assert found.slice_chips <= chip.domain or chip.platform == "gpu"
        assert chip.platform == "gpu" or math.prod(found.shape) == found.chips
