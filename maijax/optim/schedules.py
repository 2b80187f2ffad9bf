"""Learning rates as functions of the number of updates made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from maijax.config import OptimConfig

Schedule = Callable[[Any], Any]


def schedule(optim: OptimConfig, steps: int, *, peak: float | None = None) -> Schedule:
    """The learning rate of step n, n from 0 to steps - 1, as a function of n.

    A linear warm-up multiplies one of three shapes:

    - wsd: constant, then over the last `decay_fraction` of the steps down to `final_fraction` of the peak as
      1 - sqrt(x), x from 0 to 1.
    - cosine: half a cosine from the end of the warm-up down to `final_fraction`.
    - constant.

    Step n of the warm-up runs at (n + 1) / warmup of the peak, so the first step is never lost to a rate of
    0; likewise the end value belongs to n = steps, one past the last step. A warm-up longer than the run
    never reaches the peak.

    The function takes a Python or NumPy integer (and answers with NumPy, touching no device) or a JAX array,
    traced or not. `peak` stands in for `optim.lr`.

    Source: 1 - sqrt beats a linear and a cosine cooldown at equal length, 20% of the steps suffices: Hägele
    et al., arXiv 2405.18392, section 4 and figure 5. Cosine: arXiv 1608.03983.
    """
    top = optim.lr if peak is None else peak
    final = optim.final_fraction
    cooldown = max(1, round(optim.decay_fraction * steps)) if optim.decay_fraction > 0 else 0

    def shape(step: Any, xp: Any) -> Any:
        if optim.schedule == "wsd" and cooldown:
            done = xp.clip((step - (steps - cooldown)) / cooldown, 0.0, 1.0)
            return final + (1.0 - final) * (1.0 - xp.sqrt(done))
        if optim.schedule == "cosine":
            done = xp.clip((step - optim.warmup) / xp.maximum(1, steps - optim.warmup), 0.0, 1.0)
            return final + (1.0 - final) * 0.5 * (1.0 + xp.cos(xp.pi * done))
        return 1.0

    def rate(step: Any) -> Any:
        xp = jnp if isinstance(step, jax.Array) else np
        step = xp.asarray(step, xp.float32)
        warm = xp.minimum(1.0, (step + 1.0) / xp.maximum(1, optim.warmup))  # no branch: a sweep may trace it
        return xp.asarray(top * warm * shape(step, xp) * xp.ones_like(step), xp.float32)

    return rate
