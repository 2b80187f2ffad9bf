"""Model configurations small enough to compile in a second, and weights that make every part matter."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from maijax.config import AttentionConfig, ModelConfig, MoEConfig, RopeConfig
from maijax.models import decoder

MOE = MoEConfig(num_experts=6, top_k=2, d_ff=12, shared_experts=1, first_dense=1, route_scale=2.5)


def longrope(rotated: int, original: int) -> RopeConfig:
    """Factors that differ from each other and from 1; `rotated` numbers of a head rotate."""
    pairs = rotated // 2
    return RopeConfig(
        original_context=original,
        short_factor=tuple(1.0 + 0.1 * i for i in range(pairs)),
        long_factor=tuple(1.5 + 0.7 * i for i in range(pairs)),
    )


def tiny(**changes: Any) -> ModelConfig:
    """Two layers of width 32, GQA 4:2, vocabulary 61 padded to 64; `attention_*` changes go to its block."""
    attention = AttentionConfig(num_heads=4, kv_heads=2, head_dim=8)
    names = [name for name in changes if name.startswith("attention_")]
    inner = {name.removeprefix("attention_"): changes.pop(name) for name in names}
    base = ModelConfig(
        num_layers=2, d_model=32, d_ff=48, vocab_size=61, vocab_multiple=32, context=64, dtype="float32",
        layers="scan", attention=dataclasses.replace(attention, **inner),
    )
    return dataclasses.replace(base, **changes)


def weights(cfg: ModelConfig, seed: int = 0) -> Any:
    """Initial weights with ones and zeros (norms, router bias) moved off their neutral values."""
    params = quick(lambda key: decoder.init(cfg, key))(jax.random.key(seed))

    def move(path: Any, leaf: jax.Array) -> jax.Array:
        name = path[-1].key
        if name in ("scale", "bias", "q_scale", "k_scale", "router_bias"):
            index = jnp.arange(leaf.size, dtype=jnp.float32).reshape(leaf.shape)
            return leaf + 0.2 * jnp.sin(1.0 + index)
        return leaf

    return jax.tree_util.tree_map_with_path(move, params)


def quick(function: Any) -> Any:
    """jax.jit that compiles in half the time; the program runs once, so its speed is no matter."""
    options = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    return jax.jit(function, compiler_options=options)
