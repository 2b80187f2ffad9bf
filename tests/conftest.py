"""Every test sees 8 simulated devices and a cache of its own; this runs before anything imports jax."""

import os
import sys
import tempfile
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()
os.environ.setdefault("MAIJAX_CACHE", tempfile.mkdtemp(prefix="maijax-test-"))
# Programs compiled once are found again, by later tests and by the processes that tests start.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.environ["MAIJAX_CACHE"] + "/xla")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
sys.path.insert(0, str(Path(__file__).parents[1]))  # tests of a bare checkout, too

import pytest  # noqa: E402

from maijax import registry  # noqa: E402


def pytest_addoption(parser):
    parser.addoption("--all-layouts", action="store_true", help="train on every layout, for 20 minutes")
    parser.addoption("--update-golden", action="store_true", help="rewrite tests/golden/ from the code as it is")


@pytest.fixture
def update_golden(request):
    return request.config.getoption("--update-golden")


@pytest.fixture
def clean_registry(monkeypatch):
    """Experiments that a test registers are gone after it, and so are the modules it imports."""
    registry.discover()
    monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]
