"""Sweeps of learning rates: what every other comparison stands on."""

import dataclasses

from experiments.phi import phi_test, phi_tiny
from maijax.registry import register_sweep
from maijax.space import Sweep


@register_sweep
def phi_test_rates() -> Sweep:
    """Does a whole sweep work? 16 rates of the smallest model, in one program.

    Command: maijax sweep phi_test_rates
    Hardware: any, 1 CPU core
    Time: half a minute, most of it compilation, evaluation and stories
    Expected: a bowl in the logarithm of the rate, its floor near 0.02.
    """
    return Sweep(base=phi_test(), space={"optim.lr": "log:1e-3..1e-1:16"})


@register_sweep
def phi_tiny_rates() -> Sweep:
    """Which rate is best for phi_tiny, and by how much more than the noise of three seeds?

    Command: maijax sweep phi_tiny_rates
    Hardware: 2 CPU cores
    Time: about 40 minutes
    Expected: not yet run.
    """
    base = phi_tiny()
    short = dataclasses.replace(base.train, steps=400, eval_every=200, sample_every=None)
    return Sweep(
        base=dataclasses.replace(base, train=short), space={"optim.lr": "log:2e-3..3.2e-2:5", "train.seed": "0,1,2"},
    )
