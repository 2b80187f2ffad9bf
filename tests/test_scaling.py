"""Arithmetic of scale against an independent calculation and the published figures of the laws."""

import dataclasses
import math

import pytest

from maijax import registry, scaling, weights
from maijax.config import AttentionConfig, ModelConfig, OptimConfig

registry.discover()
from configs import models  # noqa: E402

# Training FLOPs per token at the full context, mask counted, window not, by another program.
FLOPS = {
    "PHI_TEST": 837_120,
    "PHI_TINY": 7_477_248,
    "PHI_10M": 71_596_032,
    "PHI_30M": 188_792_832,
    "PHI_125M": 906_117_120,
    "PHI_350M": 2_202_304_512,
    "PHI_1B": 8_405_975_040,
    "PHI3_MINI": 24_751_374_336,
    "MAI_7B": 46_709_342_208,
    "PHI3_MEDIUM": 87_809_556_480,
    "MAI_70B": 449_368_817_664,
    "MAI_500B": 3_112_943_616_000,
    "LLAMA3_405B": 2_523_980_759_040,
    "MAI_MOE_3M": 8_822_928,
    "MAI_MOE_1B": 1_122_883_200,
    "MAI_MOE_16B": 16_782_370_944,
    "MAI_500B_MOE": 185_856_390_144,
}
# Step Law's rate and batch in tokens, at 20 tokens per active parameter.
STEP_LAW = {
    "PHI_10M": (6.3e-3, 33e3), "PHI_30M": (4.2e-3, 59e3), "PHI_125M": (2.3e-3, 135e3), "PHI_350M": (1.5e-3, 243e3),
    "PHI_1B": (9.1e-4, 506e3), "PHI3_MINI": (5.8e-4, 950e3), "MAI_7B": (4.5e-4, 1.4e6),
    "PHI3_MEDIUM": (3.4e-4, 2.0e6), "MAI_70B": (1.8e-4, 5.0e6), "MAI_500B": (8.0e-5, 15.4e6),
}


def unwindowed(model: ModelConfig) -> ModelConfig:
    return dataclasses.replace(model, attention=dataclasses.replace(model.attention, window=None))


@pytest.mark.parametrize("name", FLOPS)
def test_flops_per_token_are_the_ladders(name):
    assert scaling.train_flops_per_token(unwindowed(getattr(models, name))) == FLOPS[name]


def test_flops_of_llama_405b_are_those_that_maxtext_reports():
    # MaxText counts 1261.40 TFLOP/s at 499.77 tokens/s for one device.
    found = scaling.train_flops_per_token(models.LLAMA3_405B, 8_192)
    assert found == pytest.approx(1261.40e12 / 499.77, rel=1e-4)


def test_flops_by_counting_multiplications():
    """A matmul [m, k] x [k, n] is 2mkn; the backward pass costs twice the forward one."""
    attention = AttentionConfig(num_heads=4, kv_heads=2, head_dim=8)
    model = ModelConfig(num_layers=3, d_model=32, d_ff=48, vocab_size=128, context=16, attention=attention)
    s, forward = 16, 0.0
    per_layer = 2 * 32 * (4 + 2 + 2) * 8 + 2 * 4 * 8 * 32 + 3 * 2 * 32 * 48
    forward += s * (3 * per_layer + 2 * 32 * 128)
    forward += 3 * 4 * 2 * (2 * 8) * (s * s / 2)  # scores and values of the visible half
    found = scaling.train_flops_per_token(model) * s
    norms = 6 * s * 3 * 2 * 32  # counted by convention as if they were matmul parameters
    assert found == pytest.approx(3 * forward + norms)


def test_a_window_sees_fewer_keys():
    attention = AttentionConfig(num_heads=1, kv_heads=1, head_dim=2)
    base = ModelConfig(num_layers=1, d_model=2, d_ff=2, vocab_size=128, context=1_000, attention=attention)

    def keys(window: int | None) -> float:
        model = dataclasses.replace(base, attention=dataclasses.replace(attention, window=window))
        return (scaling.train_flops_per_token(model) - 6 * scaling.matmul_parameters(model)) / (12 * 2)

    assert keys(None) == keys(1_000) == keys(5_000) == 500
    exact = sum(min(i + 0.5, 100) for i in range(1_000)) / 1_000
    assert keys(100) == pytest.approx(exact, rel=1e-3)


@pytest.mark.parametrize("name", STEP_LAW)
def test_step_law_gives_the_ladders_figures(name):
    model = getattr(models, name)
    tokens = scaling.chinchilla_tokens(model)
    rate, batch = STEP_LAW[name]
    assert tokens == 20 * weights.count_active(model)
    assert scaling.step_law_lr(weights.count_active(model), tokens) == pytest.approx(rate, rel=0.02)
    assert scaling.step_law_batch(tokens) == pytest.approx(batch, rel=0.03)


def test_budget_states_its_laws_and_covers_the_horizon():
    budget = scaling.step_law_budget(models.MAI_500B_MOE, tokens=15 * 10**12, max_lr=3e-4)
    assert budget.lr == 3e-4 and "capped" in dict(budget.rules)["optim.lr"]
    assert math.log2(budget.batch_size).is_integer()
    assert 0 <= budget.steps * budget.batch_size * 8_192 - 15 * 10**12 < budget.batch_size * 8_192
    law = scaling.step_law_batch(15e12) / 8_192
    assert 2**-0.5 <= budget.batch_size / law <= 2**0.5


def test_activations_are_what_remat_keeps():
    phi = registry.get("phi_125m")

    def kept(remat):
        model = dataclasses.replace(phi.model, remat=remat, dtype="bfloat16")
        return scaling.activation_bytes(dataclasses.replace(phi, model=model), 1)

    assert kept("full") == kept("offload") < kept("attention") < kept("dots") < kept("none")
    # Beside the layers' inputs 16 layers of 12 heads of 64 numbers of 2 bytes, of 2,048 tokens.
    assert kept("attention") - kept("full") == 2_048 * 16 * 12 * 64 * 2


def test_chinchilla_loss():
    assert scaling.chinchilla_loss(499_496_601_600, 9.99e12) == pytest.approx(1.90, abs=0.01)
    assert scaling.chinchilla_loss(1_266_780_160, 25.3e9) == pytest.approx(2.47, abs=0.01)


def test_parameters():
    mini = scaling.parameters(models.PHI3_MINI)
    assert (mini.total, mini.embedding) == (3_821_079_552, 2 * 32_064 * 3_072)
    assert scaling.parameters(models.PHI_TINY).embedding == 2_048 * 128


@pytest.mark.parametrize("name", ["adamw", "muon", "adafactor", "lion"])
@pytest.mark.parametrize("shape", ["PHI_TEST", "MAI_MOE_3M"])
def test_state_bytes_are_those_of_the_real_optimizer(name, shape):
    jax = pytest.importorskip("jax")
    from maijax import optim
    from maijax.parallel.sharding import tree

    model, config = getattr(models, shape), OptimConfig(name=name)
    params = tree({w.path: jax.ShapeDtypeStruct(w.sizes, "float32") for w in weights.declare(model)})
    state = jax.eval_shape(optim.build(config, model, 10).init, params)
    slots = sum(x.size * 4 for x in jax.tree.leaves(state) if x.ndim)
    both = 2 * 4 * sum(x.size for x in jax.tree.leaves(params))  # weights and gradients
    assert scaling.state_bytes(model, config) == both + slots
