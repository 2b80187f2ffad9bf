"""Multipliers against the published tables, and the base, where every parametrisation is the standard one."""

import dataclasses

import numpy as np
import pytest

from maijax import dims, parametrization, registry, weights
from maijax.config import AttentionConfig, ModelConfig, MoEConfig, OptimConfig, ParametrizationConfig
from maijax.parametrization import Multipliers, multipliers

DENSE = ModelConfig(
    num_layers=2, d_model=16, d_ff=48, vocab_size=30, context=8, vocab_multiple=8, tied_head=True,
    attention=AttentionConfig(num_heads=4, kv_heads=2, head_dim=4, qk_norm=True),
)
MIXTURE = dataclasses.replace(
    DENSE, tied_head=False, norm="layer", moe=MoEConfig(num_experts=4, top_k=2, d_ff=8, shared_experts=1, first_dense=1)
)
# What EleutherAI/nanoGPT-mup trains with, branch completep (alpha 1), beside its base: m 4 times as wide, l 3 times as
# deep. Its optimizer groups, (learning rate, decay, eps), None where nothing decays; and its initial variances.
WIDER, DEEPER = 4, 3
GROUPS = {
    "embedding and head": (1.0, 1.0, 1 / 4),
    "norms of layers": (1.0, None, 1 / 4 / 3),
    "matrices of layers": (1 / 4, 4.0, 1 / 4 / 3),
    "final norm": (1.0, None, 1 / 4),
}
VARIANCES = {"embedding and head": 1.0, "matrices of layers": 1 / 4}


def grown(model: ModelConfig, name: str, wider: int = WIDER, deeper: int = DEEPER) -> ModelConfig:
    attention, moe = model.attention, model.moe
    if moe is not None:
        moe = dataclasses.replace(moe, d_ff=moe.d_ff * wider)
    return dataclasses.replace(
        model, num_layers=model.num_layers * deeper, d_model=model.d_model * wider, d_ff=model.d_ff * wider, moe=moe,
        attention=dataclasses.replace(
            attention, num_heads=attention.num_heads * wider, kv_heads=attention.kv_heads * wider
        ),
        parametrization=ParametrizationConfig(name=name, base_width=model.d_model, base_depth=model.num_layers),
    )


def group(weight: weights.Weight) -> str:
    """By name alone."""
    if weight.path.startswith(("embed/", "head/")):
        return "embedding and head"
    if weight.path.startswith("final_norm/"):
        return "final norm"
    return "matrices of layers" if weight.name.startswith("w_") else "norms of layers"


@pytest.mark.parametrize("model", [DENSE, MIXTURE], ids=["tied", "mixture"])
def test_completep_is_that_of_its_authors(model):
    big, base = grown(model, "completep"), {w.path: w for w in weights.declare(model)}
    for weight in weights.declare(big):
        if not weight.trained:
            continue
        lr, decay, eps = GROUPS[group(weight)]
        found = multipliers(weight, big, "adamw")
        assert (found.lr, found.eps) == pytest.approx((lr, eps)), weight.path
        assert decay is None or found.decay == pytest.approx(decay), weight.path
        assert weight.decay == (decay is not None), weight.path
        if weight.init == "normal":
            variance = 1 / 4**2 if weight.group == "router" else VARIANCES[group(weight)]  # table 3 of muP: a readout
            assert (weight.std / base[weight.path].std) ** 2 == pytest.approx(variance), weight.path
    assert parametrization.residual(big) == pytest.approx(1 / DEEPER)
    assert parametrization.output(big) == pytest.approx(1 / WIDER)


def test_mup_leaves_depth_alone():
    big = grown(DENSE, "mup")
    assert parametrization.residual(big) == 1 and parametrization.output(big) == 1 / WIDER
    w_up, norm, out = (
        next(w for w in weights.declare(big) if w.path.endswith(end)) for end in ("w_up", "mlp_norm/scale", "w_down")
    )
    assert multipliers(w_up, big, "adamw") == Multipliers(lr=1 / 4, decay=4.0, eps=1 / 4)
    assert multipliers(norm, big, "adamw").eps == 1 / 4
    assert out.std == pytest.approx((2 * big.num_layers * big.d_ff) ** -0.5)


def test_muon_keeps_the_size_of_what_an_update_does():
    """The spectral condition: an update of scale c sqrt(writes / reads), at any width, relative to the base's."""
    big, base = grown(DENSE, "mup"), {w.path: w for w in weights.declare(DENSE)}
    for weight in weights.declare(big):
        found = multipliers(weight, big, "muon")
        if weight.role != "hidden":
            assert found == multipliers(weight, big, "adamw")
            continue

        def scale(w):  # of an orthogonal update here, over what the condition asks for
            reads, writes = (np.prod(part) for part in (w.sizes[1 : 1 + len(w.reads)], w.sizes[1 + len(w.reads) :]))
            return 0.2 * max(reads, writes) ** 0.5 / (writes / reads) ** 0.5

        assert found.lr * scale(weight) == pytest.approx(scale(base[weight.path])), weight.path
        assert found.lr * found.decay == 1 and found.eps == 1


@pytest.mark.parametrize("name", registry.names())
def test_roles_follow_from_letters_alone(name):
    roles = {"embed": "input", "hidden": "hidden", "head": "output", "router": "output", "norm": "vector"}
    model = registry.get(name).model
    for weight in weights.declare(model):
        assert weight.role == ("vector" if weight.name == "router_bias" else roles[weight.group]), weight.path
    assert dims.WIDE <= set(dims.LOGICAL_AXES)


def test_bases_must_be_said():
    problems = list(ParametrizationConfig(name="completep", base_width=64).problems())
    assert problems == ["base_depth=none must be set beside name=completep: that of the size whose rates are known"]
    assert not list(ParametrizationConfig().problems())
    assert not list(ParametrizationConfig(name="mup", base_width=64).problems())


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_at_the_base_every_parametrisation_is_the_standard_one(optimizer):
    """To the bit: the same program, so the same weights, logits and updates."""
    import jax
    import jax.numpy as jnp

    from maijax import optim
    from maijax.models import decoder

    def program(model: ModelConfig) -> str:
        tx = optim.build(OptimConfig(name=optimizer), model, 10)
        tokens = jnp.zeros((2, 8), jnp.int32)

        def step():
            params = decoder.init(model, jax.random.key(0))
            grads = jax.grad(lambda p: jnp.sum(decoder.logits(p, model, tokens)))(params)
            return tx.update(grads, tx.init(params), params)

        return jax.jit(step).lower().as_text()

    assert {program(grown(MIXTURE, name, wider=1, deeper=1)) for name in ("mup", "completep")} == {program(MIXTURE)}


def test_logits_and_branches_are_multiplied():
    """Against the same weights in the standard parametrisation, with the multipliers put into them by hand."""
    import jax

    from maijax.models import decoder

    big = grown(DENSE, "completep", wider=2, deeper=2)
    params = decoder.init(big, jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (2, 8), 0, 30)
    found = decoder.logits(params, big, tokens)
    layers = params["layers"]
    by_hand = params | {
        "layers": layers
        | {"attention": layers["attention"] | {"w_o": layers["attention"]["w_o"] / 2}}
        | {"mlp": layers["mlp"] | {"w_down": layers["mlp"]["w_down"] / 2}}
    }
    plain = dataclasses.replace(big, parametrization=ParametrizationConfig())
    np.testing.assert_allclose(found, decoder.logits(by_hand, plain, tokens) / 2, rtol=2e-5, atol=1e-6)


def test_each_weight_moves_at_its_own_rate():
    """Against optax.adamw given each weight's multipliers by hand; gradients so small that eps matters."""
    import jax
    import optax

    from maijax import optim
    from maijax.parallel.sharding import tree

    model, rng = grown(DENSE, "completep"), np.random.default_rng(0)
    config = OptimConfig(lr=0.02, schedule="constant", warmup=0, weight_decay=0.3, eps=1e-3, clip_norm=None)
    declared = weights.declare(model)
    params = tree({w.path: rng.normal(size=w.sizes).astype(np.float32) for w in declared})
    grads = tree({w.path: 1e-3 * rng.normal(size=w.sizes).astype(np.float32) for w in declared})
    tx = optim.build(config, model, 10)
    found, _ = jax.jit(lambda g, p: tx.update(g, tx.init(p), p))(grads, params)
    for weight in declared:
        lr, decay, eps = GROUPS[group(weight)]
        reference = optax.adamw(0.02 * lr, b1=0.9, b2=0.95, eps=1e-3 * eps, weight_decay=0.3 * (decay or 0.0))
        p, g, f = params, grads, found
        for key in weight.path.split("/"):
            p, g, f = p[key], g[key], f[key]
        expected, _ = reference.update(g, reference.init(p), p)
        np.testing.assert_allclose(f, expected, rtol=2e-5, atol=1e-8, err_msg=weight.path)
