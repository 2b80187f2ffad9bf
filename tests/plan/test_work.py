"""FLOPs by part against the ladder's own count, and what remat runs again."""

import dataclasses

import pytest

from maijax import registry, scaling
from maijax.config import AttentionConfig, ModelConfig
from maijax.plan import work

registry.discover()
from configs import models  # noqa: E402

SHAPES = [name for name in vars(models) if name.isupper() and isinstance(getattr(models, name), ModelConfig)]


@pytest.mark.parametrize("name", SHAPES)
def test_the_parts_sum_to_what_scaling_counts(name):
    model = getattr(models, name)
    useful = sum(part.useful for part in work.parts(model, model.context))
    counted = scaling.train_flops_per_token(model, model.context)
    # By convention scaling counts norms and the router's bias as if they multiplied, and no padded vocabulary.
    assert useful == pytest.approx(counted, rel=5e-3)


def test_parts_by_counting_multiplications():
    attention = AttentionConfig(num_heads=4, kv_heads=2, head_dim=8)
    model = ModelConfig(num_layers=3, d_model=32, d_ff=48, vocab_size=128, context=16, attention=attention)
    found = {part.name: part.forward for part in work.parts(model, 16)}
    assert found == {
        "qkv": 3 * 2 * 32 * (4 + 2 + 2) * 8, "scores": 3 * 2 * 2 * (4 * 8) * 8, "out": 3 * 2 * 32 * 32,
        "gate_up": 3 * 2 * 2 * 32 * 48, "down": 3 * 2 * 32 * 48, "head": 2 * 32 * 128,
    }


def test_remat_runs_parts_again():
    def again(remat, shape=models.MAI_7B):
        return {p.name for p in work.parts(dataclasses.replace(shape, remat=remat), 8_192) if p.rerun}

    assert again("none") == set()
    assert again("dots") == set() and again("dots", models.MAI_MOE_16B) == {"experts"}
    assert again("full") == again("offload") == {"qkv", "scores", "out", "gate_up"} == again("attention") | {"scores"}
    assert again("full", models.MAI_MOE_16B) == {"qkv", "scores", "out", "gate_up", "router", "experts"}


def test_a_part_that_runs_again_costs_a_forward_pass_more():
    part = work.Part(name="qkv", forward=10.0, rerun=False)
    assert (part.executed, dataclasses.replace(part, rerun=True).executed, part.useful) == (30, 40, 30)
    # An attention kernel multiplies five times backward for two forward.
    assert work.Part(name="scores", forward=10.0, rerun=False).executed == 35


def test_a_window_sees_fewer_keys():
    model = models.PHI3_MINI
    assert work.visible_keys(model, 1_000) == 500
    assert work.visible_keys(model, 4_096) == pytest.approx(2_047 - 2_047**2 / 8_192)


def test_traffic_beside_products_grows_with_remat_and_experts():
    dense = work.elementwise_bytes(models.MAI_7B, rerun=False)
    assert work.elementwise_bytes(models.MAI_7B, rerun=True) > dense
    one = ModelConfig(num_layers=1, d_model=2, d_ff=3, vocab_size=128, context=8,
                      attention=AttentionConfig(num_heads=1, kv_heads=1, head_dim=2))
    assert work.elementwise_bytes(one, rerun=False) == 3 * 2 * (10 * 2 + 2 * 4 + 3 * 3) + 16 * 128
