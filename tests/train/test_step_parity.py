"""Our whole step, from tokens to updated weights, against transformers' Llama with PyTorch's AdamW."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hf_weights import from_hf

from maijax import optim
from maijax.config import (
    AttentionConfig,
    DataConfig,
    Experiment,
    MeshConfig,
    ModelConfig,
    OptimConfig,
    SourceConfig,
    TrainConfig,
)
from maijax.parallel.mesh import make_mesh
from maijax.parallel.sharding import Layout
from maijax.train import state as states
from maijax.train.step import compile_step

torch = pytest.importorskip("torch", reason='the parity tests need pip install -e ".[hf]"')
transformers = pytest.importorskip("transformers", reason='the parity tests need pip install -e ".[hf]"')

MODEL = ModelConfig(
    num_layers=2, d_model=32, d_ff=48, vocab_size=96, context=32, vocab_multiple=32, layers="scan",
    attention=AttentionConfig(num_heads=4, kv_heads=2, head_dim=8),
)
STEPS, ROWS, LENGTH, RATE, DECAY, CLIP = 6, 4, 16, 3e-3, 0.1, 0.5


@pytest.mark.parametrize("accumulation", [1, 2])
def test_losses_and_weights_follow_torch(accumulation):
    torch.manual_seed(0)
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=32, rms_norm_eps=1e-5, tie_word_embeddings=False,
        attention_dropout=0.0,
    ))
    norms = [p for name, p in theirs.named_parameters() if "norm" in name]
    others = [p for name, p in theirs.named_parameters() if "norm" not in name]
    adam = torch.optim.AdamW(
        [{"params": others, "weight_decay": DECAY}, {"params": norms, "weight_decay": 0.0}],
        lr=RATE, betas=(0.9, 0.95), eps=1e-8,
    )

    experiment = Experiment(
        model=MODEL, data=DataConfig(sources=(SourceConfig(uri="none"),)),
        optim=OptimConfig(
            name="adamw", lr=RATE, schedule="constant", warmup=0, b1=0.9, b2=0.95, weight_decay=DECAY, clip_norm=CLIP
        ),
        train=TrainConfig(steps=STEPS, batch_size=ROWS, seq_len=LENGTH, accumulation=accumulation),
    )
    mesh = MeshConfig(data=1)
    layout = Layout(make_mesh(mesh, jax.devices()[:1]), mesh)
    tx = optim.wrap(optim.build(experiment.optim, MODEL, STEPS), experiment.optim)
    now = states.create(MODEL, tx, layout, 0)
    now = now._replace(params=jax.tree.map(jnp.copy, from_hf(theirs.state_dict(), MODEL)))
    step = compile_step(experiment, tx, layout)

    rng = np.random.default_rng(0)
    for _ in range(STEPS):
        tokens = rng.integers(0, 96, (ROWS, LENGTH + 1), dtype=np.int32)
        logits = theirs(torch.from_numpy(tokens[:, :-1]).long()).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.from_numpy(tokens[:, 1:]).long().flatten())
        adam.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(theirs.parameters(), CLIP)
        adam.step()

        now, metrics = step(now, {
            "tokens": tokens[:, :-1], "targets": tokens[:, 1:], "segments": np.ones((ROWS, LENGTH), np.int32),
            "positions": np.broadcast_to(np.arange(LENGTH, dtype=np.int32), (ROWS, LENGTH)).copy(),
            "weights": np.ones((ROWS, LENGTH), np.float32),
        })
        np.testing.assert_allclose(float(metrics["loss"]), loss.item(), rtol=1e-5)
        np.testing.assert_allclose(float(metrics["grad_norm"]), norm.item(), rtol=1e-4)

    want = from_hf(theirs.state_dict(), dataclasses.replace(MODEL))
    for (path, ours), other in zip(
        jax.tree_util.tree_leaves_with_path(now.params), jax.tree.leaves(want), strict=True
    ):
        used = np.asarray(other) != 7.0  # not the vocabulary's padding
        # Adam divides by the gradient's own size, so entries with a tiny gradient amplify rounding.
        np.testing.assert_allclose(
            np.asarray(ours)[used], np.asarray(other)[used], atol=2e-4, err_msg=jax.tree_util.keystr(path)
        )
