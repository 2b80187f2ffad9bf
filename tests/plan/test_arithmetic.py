"""The estimate as a whole: its sums agree, and it moves the right way."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from maijax import registry, scaling
from maijax.config import MeshConfig
from maijax.errors import UserError
from maijax.plan import arithmetic
from maijax.plan.arithmetic import KINDS, Estimate, estimate
from maijax.plan.links import lay


def planned(name="mai_70b", topology="v5p:8x8x8", slices=1, **mesh):
    base = registry.get(name)
    train = dataclasses.replace(base.train, batch_size=mesh.pop("rows", 1_024))
    return estimate(
        dataclasses.replace(base, mesh=MeshConfig(data=1, **mesh), train=train), registry.topology(topology, slices)
    )


def test_figures_follow_from_one_another():
    found = planned(fsdp=512)
    assert found.tokens == 1_024 * 8_192
    assert found.step_seconds == pytest.approx(sum(t.seconds for t in found.times))
    assert found.tokens_per_chip == pytest.approx(found.tokens / found.step_seconds / 512)
    model = registry.get("mai_70b").model
    assert found.flops_per_token == scaling.train_flops_per_token(model, 8_192)
    assert found.mfu == pytest.approx(found.tokens_per_chip * found.flops_per_token / 459e12)
    assert found.full_mfu > found.mfu
    steps = registry.get("mai_70b").train.steps
    assert found.days == pytest.approx(steps * found.step_seconds / 86_400)
    assert found.cost == pytest.approx(found.days * 24 * 512 * 4.20)
    assert found.slowest.what != "products"


def test_every_figure_says_what_it_is():
    fields = {f.name for f in dataclasses.fields(Estimate)} | {
        name for name, value in vars(Estimate).items() if isinstance(value, property)
    }
    assert fields - set(KINDS) == {"topology", "mesh", "run_tokens", "memory", "slowest"}
    assert set(KINDS.values()) == {"exact", "model"}


def test_full_attention_counts_twice_the_scores():
    found = planned(fsdp=512)
    scores = next(p.useful for p in found.parts if p.name == "scores")
    assert found.full_flops_per_token - found.flops_per_token == pytest.approx(scores)


def test_products_alone_bound_the_step():
    found = planned(fsdp=512)
    least = found.tokens * found.flops_per_token / (512 * 459e12)
    assert found.step_seconds > least / registry.chip("v5p").efficiency
    assert found.mfu < registry.chip("v5p").efficiency


def test_more_remat_and_slower_links_take_longer():
    base = registry.get("mai_70b")
    topology = registry.topology("v6e:16x16")

    def seconds(remat):
        model = dataclasses.replace(base.model, remat=remat)
        changed = dataclasses.replace(base, model=model, mesh=MeshConfig(data=1, fsdp=256))
        return estimate(changed, topology).step_seconds

    assert seconds("none") < seconds("dots") < seconds("attention") < seconds("full")
    chip = dataclasses.replace(topology.chip, link_bandwidth=topology.chip.link_bandwidth / 4)
    slow = estimate(
        dataclasses.replace(base, mesh=MeshConfig(data=1, fsdp=256)), dataclasses.replace(topology, chip=chip)
    )
    assert slow.step_seconds > seconds("full")


def test_a_pipeline_idles_less_with_more_micro_batches_and_repeats():
    def idle(**mesh):
        found = planned(stage=8, fsdp=64, **mesh)
        return next(t.seconds for t in found.times if t.what == "idle in the pipeline"), found

    few, found = idle(microbatches=8)
    busy = sum(t.seconds for t in found.times if "products" in t.what)
    assert few == pytest.approx(busy * 7 / 8)
    assert idle(microbatches=16)[0] < few
    assert idle(microbatches=8, repeats=2)[0] < few


def test_grouped_products_pay_for_narrow_experts():
    moe = registry.get("mai_500b_moe")
    wide = dataclasses.replace(moe, train=dataclasses.replace(moe.train, batch_size=4 * moe.train.batch_size))
    topology = registry.topology("v5p:8x8x16")

    def share(experiment, **mesh):
        sized = dataclasses.replace(experiment, mesh=MeshConfig(data=1, **mesh))
        found = estimate(sized, topology)
        part = next(part for part in found.parts if part.name == "experts")
        return arithmetic.efficiency(sized, lay(topology, found.mesh), part) / topology.chip.efficiency

    assert share(moe, fsdp=1_024) < share(wide, fsdp=1_024) < arithmetic.EXPERTS
    assert share(moe, fsdp=4, expert=256) == 1.0  # one expert each is a plain product


def test_a_mesh_that_does_not_fit_the_devices_is_refused():
    with pytest.raises(UserError, match="the axes multiply to 8 devices, there are 512"):
        planned(fsdp=8)


def test_tpu7x_counts_chips_and_not_devices():
    found = planned(topology="tpu7x:4x4x4", fsdp=128)
    assert found.topology.devices == 128 and found.topology.chips == 64
    assert found.mfu == pytest.approx(
        found.tokens / found.step_seconds / 64 * found.flops_per_token / found.topology.chip.peak_flops
    )


def test_planning_needs_no_jax():
    program = (
        "import sys\nfrom maijax.plan import arithmetic, search\n"
        "print(*(m for m in ('jax', 'numpy', 'flax') if m in sys.modules))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
