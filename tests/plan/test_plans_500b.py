"""The committed plans of the 500B models: still what the model says, and good enough."""

import json

import pytest

from benchmarks import plans_500b
from maijax import overrides, registry
from maijax.plan import arithmetic, checks


@pytest.mark.parametrize(("name", "topology", "slices", "settings"), plans_500b.PLANS)
def test_it_fits_and_the_model_still_says_so(name, topology, slices, settings):
    made = json.loads(plans_500b.file(name, topology, slices, settings).read_text())
    machine = registry.topology(topology, slices)
    experiment = overrides.apply(registry.get(name), made["settings"])
    assert checks.problems(experiment, machine) == []
    assert made["fits"] and made["memory"]["compiler"]["peak"] <= machine.chip.device_hbm
    assert arithmetic.estimate(experiment, machine).mfu == pytest.approx(made["run"]["mfu"])


@pytest.mark.parametrize(
    ("plan", "least"),
    [
        (("mai_500b", "v5p:16x16x32", 1, ()), 0.60), (("mai_500b", "v5p:8x8x16", 1, ()), 0.60),
        (("mai_500b_moe", "v5p:8x8x16", 1, ()), 0.35), (("mai_500b_moe", "v5p:16x16x32", 1, plans_500b.WIDE), 0.35),
        (("mai_500b_moe", "v5p:16x16x32", 1, ()), 0.24),
    ],
)
def test_on_v5p_it_is_fast(plan, least):
    assert json.loads(plans_500b.file(*plan).read_text())["run"]["mfu"] >= least


def test_the_table_is_of_these_files():
    assert (plans_500b.FOLDER / "README.md").read_text() == plans_500b.INTRO + plans_500b.table()
