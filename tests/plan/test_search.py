"""The search finds what it should, and says why the rest loses."""

import dataclasses

import pytest

from maijax import registry, rules
from maijax.plan.arithmetic import USABLE
from maijax.plan.search import search, splits


@pytest.fixture(scope="module")
def found():
    return search(registry.get("mai_500b"), registry.topology("v5p:16x16x32"))


def test_mai_500b_runs_at_60_percent_on_8192_v5p(found):
    first = found.best[0]
    assert first.estimate.mfu >= 0.60
    assert first.estimate.topology.chips == 8_192
    assert first.text.count("remat") == 1


def test_the_best_come_first_and_are_legal(found):
    times = [layout.estimate.step_seconds for layout in found.best]
    assert len(times) == 3 and times == sorted(times)
    for layout in found.best:
        assert rules.problems(layout.experiment, layout.estimate.mesh) == []
        assert layout.estimate.fits
        assert layout.estimate.peak_bytes <= USABLE * layout.estimate.topology.chip.device_hbm
        assert layout.experiment.train.batch_size == registry.get("mai_500b").train.batch_size


def test_losers_say_why(found):
    assert found.tried == len(found.best) + found.slower + found.too_large + found.refused
    reasons = [loser.why for loser in found.losers]
    assert any("slower:" in why and "s more for" in why for why in reasons)
    assert any("GiB of the 90.0 there are" in why for why in reasons)
    assert any("does not divide over mesh" in why and "more)" in why for why in reasons)
    assert len({loser.text for loser in found.losers}) == len(found.losers)


def test_what_the_model_says_of_the_mixture():
    found = search(registry.get("mai_500b_moe"), registry.topology("v5p:8x8x16"), best=1)
    # Published mixtures of this kind reach 33% on v5p with longer rows for each expert, attention running again.
    assert 0.28 <= found.best[0].estimate.mfu <= 0.37
    assert any("tokens to experts and back" in loser.why for loser in found.losers)


def test_a_machine_too_small_has_no_best():
    found = search(registry.get("mai_500b"), registry.topology("v5e:4x4"))
    assert found.best == () and found.slower == 0 and found.too_large > 0
    assert all("GiB" in loser.why or "divide" in loser.why for loser in found.losers)


def test_slices_are_crossed_by_replica_and_stage():
    topology = registry.topology("v5p:8x8x16", slices=4)
    found = set()
    for mesh in splits(registry.get("mai_500b"), topology):
        ways = rules.across(mesh.shape(topology.devices), 4)
        found.add((ways["replica"], ways["stage"]))
    assert found == {(4, 1), (2, 2), (1, 4)}
    found = search(registry.get("mai_500b"), topology, best=1)
    assert "replica 4" in found.best[0].text


def test_a_model_larger_than_a_slice_is_staged_over_several():
    found = search(registry.get("mai_500b"), registry.topology("v6e:16x16", slices=16), best=1)
    assert found.best and found.best[0].estimate.mesh["stage"] > 1


def test_one_device_has_one_split():
    (mesh,) = splits(registry.get("phi_tiny"), registry.topology("h100:1"))
    found = search(registry.get("phi_tiny"), registry.topology("h100:1"))
    assert set(mesh.shape(1).values()) == {1}
    assert found.best[0].text.startswith("one device, remat none")


def test_less_memory_is_paid_for_only_where_it_is_needed():
    base = registry.get("mai_70b")
    tight = search(base, registry.topology("v6e:16x16"), best=1).best[0].experiment
    roomy = search(registry.get("mai_7b"), registry.topology("h200:64"), best=1).best[0].experiment
    assert roomy.train.accumulation == 1 and roomy.model.remat != "offload"
    assert tight.train.accumulation > 1 or tight.model.remat == "offload"
    assert dataclasses.replace(tight.train, accumulation=1) == base.train
