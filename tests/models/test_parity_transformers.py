"""The same random weights here and in transformers give the same logits."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from hf_weights import from_hf
from tiny_models import quick, tiny

from maijax.config import ModelConfig, RopeConfig
from maijax.models import decoder

torch = pytest.importorskip("torch", reason='parity needs pip install -e ".[hf]"')
transformers = pytest.importorskip("transformers", reason="parity needs transformers")

LIMIT = 2e-4  # of float32 logits with a spread of about 1
LENGTH = 24
SHAPE = dict(d_model=64, d_ff=96, vocab_size=321, vocab_multiple=128, attention_head_dim=16)


def rope(rotated: int = 16, *, fraction: float = 1.0, original: int) -> RopeConfig:
    pairs = rotated // 2
    return RopeConfig(
        fraction=fraction,
        original_context=original,
        short_factor=tuple(1.0 + 0.05 * i for i in range(pairs)),
        long_factor=tuple(1.2 + 0.6 * i for i in range(pairs)),
    )


PHI3 = {
    "gqa": tiny(**SHAPE),
    "mha": tiny(**SHAPE, attention_kv_heads=4),
    "mqa_theta": tiny(**SHAPE, attention_kv_heads=1, attention_rope=RopeConfig(theta=250_000.0)),
    "partial_rotary": tiny(**SHAPE, attention_rope=RopeConfig(fraction=0.75)),
    "longrope_short": tiny(**SHAPE, attention_rope=rope(original=32)),
    "longrope_at_the_edge": tiny(**SHAPE, attention_rope=rope(original=LENGTH)),
    "longrope_long": tiny(**SHAPE, attention_rope=rope(original=16)),
    "longrope_long_partial": tiny(**SHAPE, attention_rope=rope(12, fraction=0.75, original=16)),
    "sliding_window": tiny(**SHAPE, attention_window=5),
    "tied_head": tiny(**SHAPE, tied_head=True),
}
LLAMA = {
    "gqa_theta": tiny(**SHAPE, attention_rope=RopeConfig(theta=500_000.0), norm_eps=1e-6),
    "wide_heads": tiny(**SHAPE | {"attention_head_dim": 24}),
    "tied_head_even_vocabulary": tiny(**SHAPE | {"vocab_size": 384}, tied_head=True),
    "gelu": tiny(**SHAPE, activation="gelu"),
}


def common(cfg: ModelConfig) -> dict[str, Any]:
    return dict(
        vocab_size=cfg.vocab_size,
        hidden_size=cfg.d_model,
        intermediate_size=cfg.d_ff,
        num_hidden_layers=cfg.num_layers,
        num_attention_heads=cfg.attention.num_heads,
        num_key_value_heads=cfg.attention.kv_heads,
        hidden_act={"silu": "silu", "gelu": "gelu_pytorch_tanh"}[cfg.activation],
        max_position_embeddings=cfg.context,
        rms_norm_eps=cfg.norm_eps,
        tie_word_embeddings=cfg.tied_head,
        attn_implementation="eager",
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )


def rope_parameters(cfg: ModelConfig) -> dict[str, Any]:
    found = cfg.attention.rope
    values: dict[str, Any] = {
        "rope_type": "longrope" if found.long_factor else "default",
        "rope_theta": found.theta,
        "partial_rotary_factor": found.fraction,
    }
    if found.long_factor:
        values |= {
            "short_factor": list(found.short_factor),
            "long_factor": list(found.long_factor),
            "original_max_position_embeddings": found.original_context,
        }
    return values


def randomise(model: Any) -> Any:
    """Weights that keep activations near 1, so that an error anywhere shows in the logits."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if weight.ndim == 1:
                weight.add_(0.2 * noise)
            else:
                weight.copy_(noise * (0.5 if "embed" in name else weight.shape[1] ** -0.5))
    return model.eval()


def difference(model: Any, cfg: ModelConfig, params: Any, *, batch: int = 2) -> float:
    tokens = np.random.default_rng(0).integers(0, cfg.vocab_size, (batch, LENGTH))
    with torch.no_grad():
        theirs = model(torch.tensor(tokens)).logits.numpy()
    ours = np.asarray(quick(lambda p, t: decoder.logits(p, cfg, t))(params, jnp.asarray(tokens)))
    assert ours.shape == (batch, LENGTH, cfg.vocab_size)
    assert 0.3 < theirs.std() < 30, "logits too flat or too wild for a comparison"
    return float(np.abs(ours - theirs).max())


@pytest.mark.parametrize("name", PHI3)
def test_logits_equal_phi3(name: str) -> None:
    cfg = PHI3[name]
    options = common(cfg) | dict(
        rope_parameters=rope_parameters(cfg),
        sliding_window=cfg.attention.window,
        original_max_position_embeddings=cfg.attention.rope.original_context or cfg.context,
    )
    model = randomise(transformers.Phi3ForCausalLM(transformers.Phi3Config(**options)))
    assert difference(model, cfg, from_hf(model.state_dict(), cfg)) <= LIMIT


@pytest.mark.parametrize("name", LLAMA)
def test_logits_equal_llama(name: str) -> None:
    cfg = LLAMA[name]
    options = common(cfg) | dict(head_dim=cfg.attention.head_dim, rope_parameters=rope_parameters(cfg))
    model = randomise(transformers.LlamaForCausalLM(transformers.LlamaConfig(**options)))
    assert difference(model, cfg, from_hf(model.state_dict(), cfg)) <= LIMIT


def test_logits_equal_qwen3_with_qk_norm() -> None:
    cfg = tiny(**SHAPE, attention_qk_norm=True)
    options = common(cfg) | dict(head_dim=cfg.attention.head_dim, rope_parameters=rope_parameters(cfg))
    model = randomise(transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**options)))
    assert difference(model, cfg, from_hf(model.state_dict(), cfg)) <= LIMIT


def test_logits_equal_gemma2_with_softcaps() -> None:
    """Gemma 2 without its second pair of norms and its scaled embedding, which this decoder does not have."""
    cfg = tiny(**SHAPE, attention_softcap=2.0, logit_softcap=3.0, activation="gelu")
    options = common(cfg) | dict(
        head_dim=cfg.attention.head_dim,
        query_pre_attn_scalar=cfg.attention.head_dim,
        attn_logit_softcapping=cfg.attention.softcap,
        final_logit_softcapping=cfg.logit_softcap,
        layer_types=["full_attention"] * cfg.num_layers,
        hidden_activation="gelu_pytorch_tanh",
        rope_parameters={"rope_type": "default", "rope_theta": cfg.attention.rope.theta},
    )
    model = randomise(transformers.Gemma2ForCausalLM(transformers.Gemma2Config(**options)))
    for block in model.model.layers:
        block.post_attention_layernorm = torch.nn.Identity()
        block.post_feedforward_layernorm = torch.nn.Identity()
    params = from_hf(model.state_dict(), cfg, one_plus_norm=True)
    params["embed"]["w_embed"] = params["embed"]["w_embed"] * math.sqrt(cfg.d_model)
    assert difference(model, cfg, params) <= LIMIT


def test_the_comparison_can_fail() -> None:
    """A model that differs in one option is far beyond the limit."""
    cfg = LLAMA["gqa_theta"]
    options = common(cfg) | dict(head_dim=cfg.attention.head_dim, rope_parameters=rope_parameters(cfg))
    model = randomise(transformers.LlamaForCausalLM(transformers.LlamaConfig(**options)))
    other = dataclasses.replace(
        cfg, attention=dataclasses.replace(cfg.attention, rope=RopeConfig(theta=400_000.0))
    )
    assert difference(model, other, from_hf(model.state_dict(), cfg)) > 10 * LIMIT
