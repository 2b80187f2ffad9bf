"""The small end of the ladder: from unit tests to 1.3B, one family of shapes."""

import dataclasses

from configs import data, meshes, models, optimizers
from experiments._ladder import rung
from maijax.config import Experiment, TrainConfig
from maijax.registry import register


@register
def phi_test() -> Experiment:
    """Does every part work together? The smallest shape that has every part, for tests.

    Command: maijax run phi_test
    Hardware: any, 1 CPU core
    Time: seconds of training; most of it is compilation
    Expected: the loss falls from ln 512 = 6.24; nothing readable.
    """
    return Experiment(
        model=models.PHI_TEST,
        optim=dataclasses.replace(optimizers.MUON, warmup=5),
        data=data.STORIES,
        train=TrainConfig(
            steps=20, batch_size=8, seq_len=64, log_every=5, eval_every=10, eval_sequences=16,
            sample_every=None, checkpoint_every=10,
        ),
        mesh=meshes.DATA,
    )


@register
def phi_tiny() -> Experiment:
    """How well can a million parameters tell a story after minutes on a laptop?

    Command: maijax run phi_tiny
    Hardware: 2 CPU cores
    Time: about 5 minutes
    Expected: 1.60 bits per byte on stories held out; xz -9e makes 2.15 of them, given the training text.
    """
    return Experiment(
        model=models.PHI_TINY,
        # Five passes over two megabytes: strong decay and a long cooldown, both from the runs in LOG.md.
        optim=dataclasses.replace(optimizers.MUON, weight_decay=0.6, decay_fraction=0.8),
        data=data.STORIES,
        train=TrainConfig(
            steps=1_250, batch_size=8, seq_len=256, eval_every=500, sample_every=500, checkpoint_every=500,
        ),
        mesh=meshes.DATA,
    )


@register
def phi_10m() -> Experiment:
    """What do ten times the parameters of phi_tiny gain on the same stories?

    Command: maijax run phi_10m
    Hardware: one GPU; the mesh takes more
    Time: not measured
    Expected: not yet run. The bundled stories are passed many times over, so watch the held-out loss and stop
    where it turns; a larger corpus is one --set data.sources=PATH away.
    """
    return dataclasses.replace(
        phi_tiny(),
        model=models.PHI_10M,
        train=TrainConfig(steps=600, batch_size=32, seq_len=512),
    )


@register
def phi_30m() -> Experiment:
    """Does width help where depth no longer does? phi_10m's budget, a wider shape.

    Command: maijax run phi_30m
    Hardware: one GPU; the mesh takes more
    Time: not measured
    Expected: not yet run. It overfits the bundled stories sooner than phi_10m.
    """
    return dataclasses.replace(phi_10m(), model=models.PHI_30M)


@register
def phi_125m() -> Experiment:
    """Where does the compute-optimal line stand at 125M?

    Command: maijax run phi_125m --set data.sources=PATH --set data.tokenizer=FILE
    Hardware: 8 H100 or 8 v6e chips
    Time: about 10 minutes at 45% of peak (a model, not a measurement)
    Expected: near 3.3 nats per token on web text by the Chinchilla fit; not yet run.
    """
    return rung(models.PHI_125M, meshes.DATA)


@register
def phi_350m() -> Experiment:
    """Where does the compute-optimal line stand at 350M?

    Command: maijax run phi_350m --set data.sources=PATH --set data.tokenizer=FILE
    Hardware: 8 H100 or 8 v6e chips
    Time: about 75 minutes at 45% of peak (a model, not a measurement)
    Expected: near 2.9 nats per token on web text by the Chinchilla fit; not yet run.
    """
    return rung(models.PHI_350M, meshes.DATA)


@register
def phi_1b() -> Experiment:
    """Where does the compute-optimal line stand at 1.3B, the first size with heads of 128?

    Command: maijax run phi_1b --set data.sources=PATH --set data.tokenizer=FILE
    Hardware: 16 H100
    Time: about 8 hours at 45% of peak (a model, not a measurement)
    Expected: near 2.5 nats per token on web text by the Chinchilla fit; not yet run.
    """
    return rung(models.PHI_1B, meshes.FSDP_8, remat="full")
