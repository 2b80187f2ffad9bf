"""Copy this file to experiments/MY_QUESTION.py, rename the function, then: maijax show NAME."""

import dataclasses

from experiments.phi import phi_tiny
from maijax.config import Experiment
from maijax.registry import register


@register
def template() -> Experiment:
    """The question in one sentence.

    Command: maijax run template
    Hardware: 2 CPU cores
    Time: 5 minutes
    Expected: the figure you expect, and its spread over seeds; "not yet run" is an honest answer.
    """
    base = phi_tiny()
    return dataclasses.replace(base, optim=dataclasses.replace(base.optim, lr=0.01))
