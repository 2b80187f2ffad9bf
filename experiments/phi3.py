"""The public Phi-3 shapes, exact to the parameter, trained from nothing at a compute-optimal budget."""

from configs import meshes, models
from experiments._ladder import rung
from maijax.config import Experiment
from maijax.registry import register


@register
def phi3_mini() -> Experiment:
    """What does Phi-3-mini's shape (3.8B) reach at 20 tokens per parameter? The real one saw 3.3T tokens.

    Command: maijax run phi3_mini --set data.sources=PATH --set data.tokenizer=FILE
    Hardware: 64 H100, v5p or v6e chips
    Time: about 1 day at 45% of peak (a model, not a measurement)
    Expected: near 2.3 nats per token on web text by the Chinchilla fit; not yet run.
    """
    return rung(models.PHI3_MINI, meshes.FSDP_64, remat="full")


@register
def phi3_medium() -> Experiment:
    """What does Phi-3-medium's shape (14B) reach at 20 tokens per parameter? The real one saw 4.8T tokens.

    Command: maijax run phi3_medium --set data.sources=PATH --set data.tokenizer=FILE
    Hardware: 256 H100, v5p or v6e chips
    Time: 3 to 6 days at 45% of peak (a model, not a measurement)
    Expected: near 2.1 nats per token on web text by the Chinchilla fit; not yet run.
    """
    return rung(models.PHI3_MEDIUM, meshes.FSDP_256, remat="full")
