"""The laws against what their authors published, and what `advice` makes of the ladder."""

import math

import pytest

from maijax import laws, overrides, registry, scaling, weights

registry.discover()
from configs import models  # noqa: E402


@pytest.mark.parametrize(
    ("layers", "width", "lr", "batch"),
    [(30, 4_096, 4.2e-4, 2_304 * 4_096), (95, 8_192, 3.2e-4, 4_608 * 4_096)],  # DeepSeek LLM 7B and 67B, 2T tokens
)
def test_deepseek_gives_what_its_authors_trained_with(layers, width, lr, batch):
    flops = 2e12 * (72 * layers * width**2 + 12 * layers * width * 4_096)
    assert laws.deepseek_lr(flops) == pytest.approx(lr, rel=0.03)
    assert laws.deepseek_batch(flops) == pytest.approx(batch, rel=0.1)


def test_deepseeks_split_of_compute_multiplies_to_compute():
    assert 0.1715 * 1e22**0.5243 * laws.deepseek_tokens(1e22) == pytest.approx(1e22, rel=1e-3)
    assert laws.deepseek_flops_per_token(models.PHI_TEST, 64) == 72 * 2 * 64**2 + 12 * 2 * 64 * 64


def test_step_law_at_500b_is_what_llama_405b_chose():
    assert scaling.step_law_lr(499_496_601_600, 1e13) == pytest.approx(8.0e-5, rel=0.01)
    assert scaling.step_law_batch(1e13) == pytest.approx(15.4e6, rel=0.02)


@pytest.mark.parametrize(
    ("params", "lr", "batch"),
    [(108e6, 2.35e-3, 327_680), (125_854_464, 2.2e-3, 363e3), (7_248_023_552, 5.8e-4, 5.4e6),
     (499_496_601_600, 1.4e-4, 91e6)],
)
def test_olmos_ladder(params, lr, batch):
    assert laws.olmo_lr(params) == pytest.approx(lr, rel=0.02)
    assert laws.olmo_batch(params) == pytest.approx(batch, rel=0.01)
    assert (laws.olmo_b2(524_288), laws.olmo_b2(524_287)) == (0.95, 0.99)


def test_power_lines():
    """At 20 tokens per parameter the memory is 0.22 of the run, and the usual decay of 0.1 follows at every size."""
    assert laws.timescale(1.0, 20.0) == pytest.approx(1.084 * 20**-0.527)
    for name in ("phi_125m", "phi_1b", "mai_7b", "mai_500b"):
        rung = registry.get(name)
        batch = rung.train.batch_size * rung.train.seq_len
        found = laws.weight_decay(weights.count(rung.model), rung.tokens, lr=rung.optim.lr, batch_tokens=batch)
        assert found == pytest.approx(0.1, rel=0.35), name
    assert laws.optimal_batch(1e10) == pytest.approx(2_048 * 0.0306 * 1e10**0.383)
    assert laws.optimal_batch(1e10) < laws.critical_batch(1e10)


def test_repeated_tokens():
    """Four epochs are worth 93% of fresh ones; in the limit (1 + 15.39) times the text; half of it after about 11."""
    assert laws.effective_tokens(5e8, 1e9) == 5e8
    assert laws.effective_tokens(4e9, 1e9) == pytest.approx(3.7256e9, rel=1e-4)
    assert laws.effective_tokens(1e15, 1e9) == pytest.approx(16.3878e9)


def test_mixtures_learn_slower_the_more_experts():
    assert laws.mixture_lr(1e9, 1) == pytest.approx(math.exp(8.39) * 1e9**-0.81)
    assert laws.mixture_lr(1e9, 16) == pytest.approx(laws.mixture_lr(1e9, 1) / 2)


@pytest.mark.parametrize("name", registry.names())
def test_advice_is_finite_and_says_where_it_is_from(name):
    found = laws.advice(registry.get(name), unique_tokens=1e6)
    assert all(math.isfinite(one.value) and one.value > 0 and one.law and one.source for one in found)
    paths = {one.path for one in found}
    assert {"optim.lr", "batch tokens", "optim.weight_decay", "tokens"} <= paths


def test_moved_is_empty_for_the_standard_parametrisation():
    assert laws.moved(registry.get("mai_500b_moe")) == ()
    assert dict(laws.moved(registry.get("ladder_6"))) == {
        "learning rate, hidden": pytest.approx(1 / 3), "weight decay, hidden": pytest.approx(3),
        "Adam's eps, embed": pytest.approx(1 / 3), "Adam's eps, norm": pytest.approx(1 / 3),
        "Adam's eps, norm in the layers": pytest.approx(1 / 9), "Adam's eps, hidden": pytest.approx(1 / 9),
        "residual branches": pytest.approx(1 / 3), "logits": pytest.approx(1 / 3),
    }


def test_what_moves_of_a_mixture_is_what_the_optimizer_uses():
    how = ["model.parametrization.name=mup", "model.parametrization.base_width=64"]
    experiment = overrides.apply(registry.get("mai_moe_3m"), how)
    wider = experiment.model.d_model / 64
    moved = dict(laws.moved(experiment))
    assert moved["learning rate, router"] == pytest.approx(1 / wider)
    assert moved["weight decay, router"] == pytest.approx(wider)


def test_laws_are_set_beside_the_rate_that_hidden_matrices_train_at():
    found = {a.now for a in laws.advice(registry.get("ladder_6")) if a.path == "optim.lr"}
    assert list(found) == [pytest.approx(0.01 / 3)]
