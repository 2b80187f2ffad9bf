"""Before a verb: a TPU is not looked for where there is none."""

import glob
import importlib.util
import os

import pytest

from maijax.cli import start


@pytest.mark.parametrize(
    ("libtpu", "device", "given", "left"),
    [
        (True, None, None, "cpu"), (False, None, None, None), (True, "/dev/accel0", None, None),
        (True, "/dev/vfio/0", None, None), (True, "/dev/nvidia0", None, None), (True, None, "tpu", "tpu"),
    ],
)
def test_jax_is_left_to_the_cpu_where_only_the_compiler_is_installed(monkeypatch, libtpu, device, given, left):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if libtpu else None)
    monkeypatch.setattr(glob, "glob", lambda pattern: [device] if device and device[:8] == pattern[:8] else [])
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    if given:
        monkeypatch.setenv("JAX_PLATFORMS", given)
    else:
        monkeypatch.setenv("JAX_PLATFORMS", "")  # so that what is set is taken back
        del os.environ["JAX_PLATFORMS"]
    start.skip_absent_tpu()
    assert os.environ.get("JAX_PLATFORMS") == left
