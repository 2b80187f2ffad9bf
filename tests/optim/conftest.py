"""Small models and random trees in their shape."""

import numpy as np
import pytest
from flax import traverse_util

from maijax import weights
from maijax.config import AttentionConfig, ModelConfig, MoEConfig

DENSE = ModelConfig(
    num_layers=3, d_model=16, d_ff=24, vocab_size=40, context=8, vocab_multiple=8, tied_head=True,
    attention=AttentionConfig(num_heads=4, kv_heads=2, head_dim=6, qk_norm=True),
)
MIXTURE = ModelConfig(
    num_layers=3, d_model=16, d_ff=24, vocab_size=40, context=8, vocab_multiple=8, norm="layer",
    attention=AttentionConfig(num_heads=2, kv_heads=2, head_dim=8),
    moe=MoEConfig(num_experts=4, top_k=2, d_ff=12, shared_experts=1, first_dense=1),
)


def random_tree(model, seed, scale=1.0):
    """Float32 normal numbers in the shape of a model's parameters."""
    rng = np.random.default_rng(seed)
    return traverse_util.unflatten_dict(
        {w.path: (scale * rng.normal(size=w.sizes)).astype(np.float32) for w in weights.declare(model)}, sep="/"
    )


@pytest.fixture(params=["dense", "mixture"])
def model(request):
    return {"dense": DENSE, "mixture": MIXTURE}[request.param]


@pytest.fixture
def make_tree():
    return random_tree
