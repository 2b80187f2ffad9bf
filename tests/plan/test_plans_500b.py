"""The committed plans of the 500B models: still what the model says, and good enough."""

import json

import pytest

from benchmarks import plans_500b
from maijax import overrides, registry
from maijax.plan import arithmetic, checks

@pytest.mark.parametrize(("name", "topology", "slices", "given"), plans_500b.PLANS)
def test_it_fits_and_the_model_still_says_so(name, topology, slices, given):
    made = json.loads(plans_500b.file(name, topology, slices, given).read_text())
    machine = registry.topology(topology, slices)
    experiment = overrides.apply(registry.get(name), made["settings"])
    assert checks.problems(experiment, machine) == []
    assert made["fits"] and made["memory"]["compiler"]["peak"] <= machine.chip.device_hbm
    assert arithmetic.estimate(experiment, machine).mfu == pytest.approx(made["run"]["mfu"])


@pytest.mark.parametrize(("name", "least"), [("mai_500b", 0.60), ("mai_500b_moe", 0.35)])
@pytest.mark.parametrize("topology", ["v5p:16x16x32", "v5p:8x8x16"])
def test_on_v5p_it_is_fast(name, topology, least):
    found = [json.loads(plans_500b.file(*p).read_text()) for p in plans_500b.PLANS if p[:2] == (name, topology)]
    assert max(made["run"]["mfu"] for made in found) >= least


def test_the_table_is_of_these_files():
    assert (plans_500b.FOLDER / "README.md").read_text() == plans_500b.INTRO + plans_500b.table()
