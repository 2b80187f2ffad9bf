"""One small model with everything in it, and random trees in its shape."""

import numpy as np
import pytest
from flax import traverse_util

from maijax import weights
from maijax.config import AttentionConfig, ModelConfig, MoEConfig

# Stacks of layers and of experts, heads that share keys, an untrained router bias; few arrays, for speed.
MODEL = ModelConfig(
    num_layers=2, d_model=8, d_ff=12, vocab_size=20, context=8, vocab_multiple=8,
    attention=AttentionConfig(num_heads=2, kv_heads=1, head_dim=6),
    moe=MoEConfig(num_experts=3, top_k=2, d_ff=10, shared_experts=1),
)


@pytest.fixture(scope="session")
def model():
    return MODEL


@pytest.fixture(scope="session")
def make_tree():
    """(seed, scale) -> float32 normal numbers in the shape of the model's parameters, NumPy."""

    def make(seed, scale=1.0):
        rng = np.random.default_rng(seed)
        found = {w.path: scale * rng.normal(size=w.sizes) for w in weights.declare(MODEL)}
        return traverse_util.unflatten_dict({p: x.astype(np.float32) for p, x in found.items()}, sep="/")

    return make
