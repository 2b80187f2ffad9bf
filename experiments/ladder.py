"""One dial, depth, for a family of small sizes on the stories: what is tuned on one rung serves the others."""

import dataclasses

from configs import data, meshes, optimizers
from maijax.config import AttentionConfig, Experiment, ModelConfig, ParametrizationConfig, TrainConfig
from maijax.registry import register

HEAD_DIM, BASE = 32, 2  # the smallest rung's depth is the base's


def family(depth: int) -> Experiment:
    """The rung of this depth: a head of 32 per layer, so that width and depth grow together, and d_ff 3 d_model.

    Batch and horizon are the same on every rung, since muP and CompleteP carry neither from one to another; rate,
    decay and eps follow the parametrisation, of which the smallest rung is the base.
    Source: d_model from depth alone, as in nanochat; CompleteP, arXiv 2505.01618.
    """
    law = "CompleteP (arXiv 2505.01618): tuned at the base, its multipliers do the rest"
    return Experiment(
        model=ModelConfig(
            num_layers=depth, d_model=HEAD_DIM * depth, d_ff=3 * HEAD_DIM * depth, vocab_size=512, context=128,
            tied_head=True, attention=AttentionConfig(num_heads=depth, kv_heads=depth, head_dim=HEAD_DIM),
            parametrization=ParametrizationConfig(name="completep", base_width=HEAD_DIM * BASE, base_depth=BASE),
        ),
        optim=dataclasses.replace(optimizers.ADAMW, lr=1e-2, warmup=20),
        data=data.STORIES,
        train=TrainConfig(
            steps=200, batch_size=16, seq_len=128, eval_every=None, sample_every=None, checkpoint_every=100,
        ),
        mesh=meshes.DATA,
        rules=(
            ("model.d_model", "32 x num_layers"),
            ("model.d_ff", "3 x d_model"),
            ("model.attention.num_heads", "one per layer"),
            ("model.attention.kv_heads", "one per layer"),
            ("optim.lr", law),
            ("optim.weight_decay", law),
            ("optim.eps", law),
        ),
    )


@register
def ladder_2() -> Experiment:
    """The ladder's base, 139,584 parameters: what is the best learning rate here?

    Command: maijax run ladder_2
    Hardware: 1 CPU core
    Time: under 3 minutes
    Expected: 3.25 nats per token held out, lowest near a rate of 0.01 (LOG.md, 2026-11-28).
    """
    return family(2)


@register
def ladder_3() -> Experiment:
    """Does the base's learning rate hold at 409,248 parameters?

    Command: maijax run ladder_3
    Hardware: 1 CPU core
    Time: under 3 minutes
    Expected: 3.08 nats per token held out, lowest near a rate of 0.01 (LOG.md, 2026-11-28).
    """
    return family(3)


@register
def ladder_4() -> Experiment:
    """Does the base's learning rate hold at 918,656 parameters?

    Command: maijax run ladder_4
    Hardware: 1 CPU core
    Time: under 3 minutes
    Expected: 3.03 nats per token held out, lowest near a rate of 0.01 (LOG.md, 2026-11-28).
    """
    return family(4)


@register
def ladder_5() -> Experiment:
    """Does the base's learning rate hold at 1,747,680 parameters?

    Command: maijax run ladder_5
    Hardware: 2 CPU cores
    Time: under 3 minutes
    Expected: 2.99 nats per token held out, lowest near a rate of 0.01 (LOG.md, 2026-11-28).
    """
    return family(5)


@register
def ladder_6() -> Experiment:
    """Does the base's learning rate hold at 2,976,192 parameters, 21 times the base?

    Command: maijax run ladder_6
    Hardware: 2 CPU cores
    Time: under 3 minutes
    Expected: 2.96 nats per token held out, lowest near a rate of 0.01 (LOG.md, 2026-11-28).
    """
    return family(6)
