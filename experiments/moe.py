"""Mixtures of experts: proxies small enough to try a change on, and the 500B they stand for."""

import dataclasses

from configs import meshes, models, optimizers
from experiments._ladder import rung
from experiments.phi import phi_tiny
from maijax.config import Experiment
from maijax.registry import register


@register
def mai_moe_3m() -> Experiment:
    """Does a mixture of the same active size tell a better story than phi_tiny?

    Command: maijax run mai_moe_3m
    Hardware: 2 CPU cores
    Time: not measured; longer than phi_tiny
    Expected: not yet run; fewer bits per byte than phi_tiny after as many tokens.
    """
    return dataclasses.replace(phi_tiny(), model=models.MAI_MOE_3M)


@register
def mai_moe_1b() -> Experiment:
    """What do 64 experts gain over phi_125m, whose dense layers they copy, at 187M active parameters?

    Command: maijax run mai_moe_1b --set data.sources=PATH --set data.tokenizer=FILE
    Hardware: 8 H100
    Time: not measured
    Expected: not yet run; no law here speaks for mixtures.
    """
    return rung(models.MAI_MOE_1B, meshes.FSDP_8)


@register
def mai_moe_16b() -> Experiment:
    """Does what the small proxies showed hold at 2.8B active of 16B? The last rung before mai_500b_moe.

    Command: maijax run mai_moe_16b --set data.sources=PATH --set data.tokenizer=FILE
    Hardware: 64 H100, v5p or v6e chips
    Time: not measured
    Expected: not yet run; no law here speaks for mixtures.
    """
    return rung(models.MAI_MOE_16B, meshes.FSDP_64, remat="full")


@register
def mai_500b_moe() -> Experiment:
    """What do 500B parameters give when 27.55B of them see each token, over 15T tokens?

    Command: maijax run mai_500b_moe --set data.sources=PATH --set data.tokenizer=FILE
    Hardware: 2,048 H100, 1,024 v5p or 512 TPU7x chips
    Time: about 35 days on H100 at 45% of peak, 50 to 60 at what mixtures reach (a model, not a measurement)
    Expected: not yet run; no law here speaks for mixtures.
    """
    return rung(
        models.MAI_500B_MOE, meshes.FSDP_512, optim=optimizers.ADAMW_LARGE, remat="full",
        tokens=15_000_000_000_000, max_lr=3e-4,
    )
