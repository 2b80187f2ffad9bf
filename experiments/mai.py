"""The large dense rungs and their public yardstick. None has been run: they are compiled and compared."""

import dataclasses

from configs import data, meshes, models, optimizers
from experiments._ladder import rung
from maijax.config import Experiment, TrainConfig
from maijax.registry import register


@register
def mai_7b() -> Experiment:
    """Where does the compute-optimal line stand at 7B?

    Command: maijax run mai_7b --set data.sources=PATH --set data.tokenizer=FILE
    Hardware: 128 H100
    Time: about 1.4 days at 45% of peak (a model, not a measurement)
    Expected: near 2.2 nats per token on web text by the Chinchilla fit; not yet run.
    """
    return rung(models.MAI_7B, meshes.FSDP_64, remat="full")


@register
def mai_70b() -> Experiment:
    """Where does the compute-optimal line stand at 70B?

    Command: maijax run mai_70b --set data.sources=PATH --set data.tokenizer=FILE
    Hardware: 1,024 H100
    Time: about 16 days at 45% of peak (a model, not a measurement)
    Expected: near 2.0 nats per token on web text by the Chinchilla fit; not yet run.
    """
    return rung(models.MAI_70B, meshes.FSDP_256, optim=optimizers.ADAMW_LARGE, remat="full")


@register
def mai_500b() -> Experiment:
    """Where does the compute-optimal line stand at 500B, dense?

    Command: maijax run mai_500b --set data.sources=PATH --set data.tokenizer=FILE
    Hardware: 1,024 chips with this mesh, 8,192 v5p chips with --mesh V5P_8192; docs/plans has other layouts
    Time: about 100 days at 45% of peak on H100 (a model, not a measurement)
    Expected: near 1.9 nats per token on web text by the Chinchilla fit; not yet run.
    """
    return rung(models.MAI_500B, meshes.FSDP_1024, optim=optimizers.ADAMW_LARGE, remat="full")


@register
def llama3_405b() -> Experiment:
    """The public yardstick: how does our ladder's top compare with Llama 3 405B as its authors trained it?

    Command: maijax run llama3_405b --set data.sources=PATH --set data.tokenizer=FILE
    Hardware: 16,384 H100
    Time: 54 days, as reported for the original
    Expected: not to be run here; its rate, batch and steps are the published ones (arXiv 2407.21783).
    """
    source = "as published for Llama 3 405B (arXiv 2407.21783, section 3.4.1)"
    return Experiment(
        model=dataclasses.replace(models.LLAMA3_405B, remat="full"),
        optim=dataclasses.replace(
            optimizers.ADAMW_LARGE, lr=8e-5, schedule="cosine", warmup=8_000, final_fraction=0.01
        ),
        data=data.CORPUS,
        train=TrainConfig(
            steps=1_200_000, batch_size=2_048, seq_len=8_192,
            eval_every=1_000, sample_every=1_000, checkpoint_every=1_000,
        ),
        mesh=meshes.FSDP_1024,
        rules=(
            ("optim.lr", source),
            ("optim.schedule", source),
            ("optim.warmup", source),
            ("optim.final_fraction", source + ": from 8e-5 to 8e-7"),
            ("train.batch_size", source + ": the last of its steps, 4M to 8M to 16M tokens"),
            ("train.steps", source + "; at 16M tokens throughout that is more than its 15.6T tokens"),
        ),
    )
