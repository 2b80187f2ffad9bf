"""The collectives of a step against hand calculation, per axis; memory against the rules and the ladder's count."""

import dataclasses
import math

import pytest

from maijax import registry, rules, scaling, weights
from maijax.config import MESH_AXES, MeshConfig
from maijax.plan.held import groups, ways
from maijax.plan.links import lay
from maijax.plan.memory import memory, peak
from maijax.plan.traffic import padded_layers, share, traffic

registry.discover()
from configs import models  # noqa: E402


def step(name="mai_70b", topology="v5p:8x8x8", *, rows=1_024, accumulation=1, remat="full", **mesh):
    base = registry.get(name)
    experiment = dataclasses.replace(
        base, mesh=MeshConfig(data=mesh.pop("data", 1), **mesh), model=dataclasses.replace(base.model, remat=remat),
        train=dataclasses.replace(base.train, batch_size=rows, accumulation=accumulation),
    )
    found = registry.topology(topology, experiment.mesh.replica)
    return experiment, lay(found, experiment.mesh.shape(found.devices))


def collectives(*args, **options):
    return {(c.what, c.kind): c for c in traffic(*step(*args, **options))}


def layer_numbers(model):
    return sum(w.size for w in weights.declare(model) if "L" in w.letters and len(w.letters) > 2)


def test_fsdp_gathers_weights_twice_and_scatters_gradients_once():
    model = models.MAI_70B
    found = collectives(fsdp=512)
    gathered = 2 * layer_numbers(model) * 511 / 512
    assert found["weights", "all-gather"].bytes == pytest.approx(2 * gathered)
    assert found["gradients of weights", "reduce-scatter"].bytes == pytest.approx(gathered)
    assert found["weights", "all-gather"].axes == ("fsdp",) and found["weights", "all-gather"].early
    head = 2 * model.d_model * model.padded_vocab * 511 / 512
    assert found["head", "all-gather"].bytes == pytest.approx(head)
    assert not [c for c in found if c[1] == "all-reduce"]
    # Kept for the backward pass, they come once.
    assert collectives(fsdp=512, remat="none")["weights", "all-gather"].bytes == pytest.approx(gathered)
    # Each micro-batch of accumulation gathers them anew.
    assert collectives(fsdp=512, accumulation=2)["weights", "all-gather"].bytes == pytest.approx(4 * gathered)


def test_copies_of_the_weights_sum_their_gradients():
    found = collectives(topology="v5p:8x8x8", replica=2, data=8, fsdp=64)
    shard = 2 * layer_numbers(models.MAI_70B) / 64
    summed = found["gradients of weights, copies", "all-reduce"]
    assert summed.axes == ("replica", "data")
    assert summed.bytes == pytest.approx(2 * 15 / 16 * shard)


def test_tensor_gathers_and_scatters_the_stream_twice_a_layer():
    model, rows = models.MAI_70B, 1_024
    found = collectives(fsdp=64, tensor=8, rows=rows)
    stream = 2 * rows / 64 * 8_192 * model.d_model * 7 / 8
    # Forward, again under remat, backward; and once before the head. Of mlp's last product nothing runs again.
    assert found["activations", "all-gather"].bytes == pytest.approx(stream * (3 * 2 * 80 + 1))
    assert found["activations", "reduce-scatter"].bytes == pytest.approx(stream * (2 * 2 * 80 + 80 + 1))
    for remat, gathers, scatters in (("none", 2, 4), ("dots", 3, 4), ("attention", 3, 5)):
        kept = collectives(fsdp=64, tensor=8, rows=rows, remat=remat)
        assert kept["activations", "all-gather"].bytes == pytest.approx(stream * (gathers * 2 * 80 + 1))
        assert kept["activations", "reduce-scatter"].bytes == pytest.approx(stream * (scatters * 80 + 1))


def test_context_passes_keys_and_values_round():
    model, rows = models.MAI_70B, 512
    found = collectives(fsdp=128, context=4, rows=rows)
    held = 2 * 2 * rows / 128 * 8_192 / 4 * 8 * 128  # k and v of one device, bf16
    assert found["keys and values", "permute"].bytes == pytest.approx(3 * 80 * 3 * held)
    assert found["their gradients", "permute"].bytes == pytest.approx(80 * 3 * 2 * held)
    for remat in ("none", "dots", "attention"):  # attention runs once, and its gradient
        kept = collectives(fsdp=128, context=4, rows=rows, remat=remat)
        assert kept["keys and values", "permute"].bytes == pytest.approx(2 * 80 * 3 * held)
    for remat, times in (("none", 1), ("attention", 2), ("full", 2)):  # what was gathered is gathered again
        kept = collectives(fsdp=128, context=4, rows=rows, remat=remat, attention="gather")
        assert kept["keys and values", "all-gather"].bytes == pytest.approx(times * 80 * 3 * held)
    assert model.attention.kv_heads == 8


def test_experts_send_their_room_and_keep_their_gradients():
    moe = models.MAI_500B_MOE
    experiment, links = step("mai_500b_moe", "v5p:8x8x8", rows=512, fsdp=64, expert=8)
    found = {(c.what, c.kind): c for c in traffic(experiment, links)}
    tokens = 512 / 512 * 8_192
    sent = 2 * experiment.mesh.exchange_room * tokens * 8 * moe.d_model * 7 / 8
    assert found["tokens to experts and back", "all-to-all"].bytes == pytest.approx(5 * 62 * sent)
    # Experts lie on `expert`, so their rows are gathered over fsdp only; the rest over both.
    assert {c.axes for (what, _), c in found.items() if what == "weights"} <= {("fsdp",), ("fsdp", "expert")}
    assert not [c for (_, kind), c in found.items() if kind == "all-reduce"]
    # An exchange never sends a token twice to one device.
    wide = dataclasses.replace(experiment, mesh=dataclasses.replace(experiment.mesh, exchange_room=100.0))
    most = next(c for c in traffic(wide, links) if c.kind == "all-to-all")
    assert most.bytes == pytest.approx(5 * 62 * 2 * tokens * 8 * 8 * moe.d_model * 7 / 8)


def test_a_pipeline_passes_activations_on_and_gathers_once():
    experiment, links = step(stage=8, fsdp=64, rows=1_024, microbatches=16, repeats=2)
    found = {(c.what, c.kind): c for c in traffic(experiment, links)}
    micro = 2 * 1_024 / 64 / 16 * 8_192 * 8_192
    assert found["to the next stage", "permute"].bytes == pytest.approx(2 * 16 * 2 * micro)
    stage = 2 * layer_numbers(models.MAI_70B) / 8
    assert found["weights of a stage", "all-gather"].bytes == pytest.approx(stage * 511 / 512)
    assert share(experiment, links.mesh).layers == 10
    uneven = dataclasses.replace(experiment, mesh=dataclasses.replace(experiment.mesh, repeats=3))
    assert padded_layers(uneven, links.mesh) == 96  # of 80, in 24 equal parts


@pytest.mark.parametrize("name", ["mai_70b", "mai_500b_moe"])
def test_what_a_device_holds_is_what_the_rules_say(name):
    experiment, links = step(name, "v5p:8x8x16", data=2, fsdp=16, expert=4 if "moe" in name else 1,
                             context=1 if "moe" in name else 4, tensor=8)
    exact = sum(
        w.size / rules.shares(w.logical_axes, w.sizes, links.mesh, w.path) for w in weights.declare(experiment.model)
    )
    grouped = groups(experiment.model, experiment.optim)
    assert sum(g.size / ways(links.mesh, g.at_rest(links.mesh)) for g in grouped) == pytest.approx(exact)
    uses = {use.what: use for use in memory(experiment, links)}
    assert uses["parameters"].size == pytest.approx(4 * exact) and uses["parameters"].kind == "exact"


@pytest.mark.parametrize("name", ["adamw", "muon", "lion", "adafactor"])
def test_state_on_one_device_is_what_scaling_counts(name):
    base = registry.get("phi_1b")
    optim = dataclasses.replace(base.optim, name=name)
    experiment = dataclasses.replace(base, mesh=MeshConfig(data=1), optim=optim)
    links = lay(registry.topology("h100:1"), dict.fromkeys(MESH_AXES, 1))
    uses = {use.what: use.size for use in memory(experiment, links)}
    total = uses["parameters"] + uses["optimizer state"] + uses["gradients"]
    assert total == pytest.approx(scaling.state_bytes(experiment.model, experiment.optim))


def test_remat_keeps_less():
    def kept(remat):
        uses = {use.what: use.size for use in memory(*step(fsdp=64, tensor=8, remat=remat))}
        return uses["activations kept"]

    assert kept("full") == 2 * 80 * 16 * 8_192 * 8_192 / 8
    assert kept("full") < kept("attention") < kept("dots") < kept("none")


def test_the_peak_is_the_larger_phase():
    uses = memory(*step(fsdp=64, tensor=8))
    always = sum(use.size for use in uses if use.when == "always")
    layers = sum(use.size for use in uses if use.when == "layers")
    head = sum(use.size for use in uses if use.when == "head")
    assert peak(uses) == always + max(layers, head) and min(always, layers, head) > 0


def test_micro_batches_need_less_and_hold_their_sum():
    whole = {u.what: u for u in memory(*step(fsdp=512, rows=1_024))}
    half = {u.what: u for u in memory(*step(fsdp=512, rows=1_024, accumulation=2))}
    assert half["activations kept"].size == whole["activations kept"].size / 2
    assert half["gradients"].size == 2 * whole["gradients"].size
    assert half["gradients"].when == "always"
    assert math.isclose(half["batch"].size, whole["batch"].size)
