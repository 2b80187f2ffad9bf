"""Optimizers: what an `OptimConfig` becomes in Optax."""

from maijax.optim.chains import build
from maijax.optim.schedules import schedule
from maijax.optim.skip import read, wrap

__all__ = ["build", "read", "schedule", "wrap"]
