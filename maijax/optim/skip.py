"""A guard around an optimizer: a bad step changes nothing and is counted."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from maijax.config import OptimConfig
from maijax.optim.chains import global_norm

MEMORY = 0.98  # per good step, of the running statistics: about the last 50
WARM_UP = 50  # good steps before a spike can be told
FLOOR = 0.05  # least standard deviation, as a share of the mean: a nearly constant norm must not make spikes


class GuardState(NamedTuple):
    """The optimizer's own state, and what has been seen. Scalars: int32 counts, float32 the rest."""

    inner: Any
    good: jax.Array  # steps made
    skipped: jax.Array  # steps skipped, in all
    skipped_in_row: jax.Array  # steps skipped since the last good one
    grad_norm: jax.Array  # of the last step, skipped or not
    mean: jax.Array  # running mean of the good steps' norms, not corrected for its start from 0
    square: jax.Array  # the same of their squares


def wrap(tx: optax.GradientTransformation, optim: OptimConfig) -> optax.GradientTransformationExtraArgs:
    """An optimizer that skips a step whose loss or gradient norm is not finite, or whose norm is a spike.

    A spike exceeds mean + `optim.spike_sigmas` * standard deviation of the good steps' norms, once 50 have
    been seen; None: no spikes. On a skipped step the inner state keeps its bits and so do the parameters (the
    update is -0.0, since -0.0 + 0.0 would turn a negative zero), whence the learning rate stays where it was.
    Nothing is ever applied after so many failures: who runs the loop reads `skipped_in_row` and halts.

    `update(grads, state, params, loss=loss)`; without `loss` only the gradient is looked at.

    Source: own choice of constants; skipping at 6 sigma of the last 128 steps: OLMo 2, arXiv 2501.00656.
    """

    base = optax.with_extra_args_support(tx)

    def init(params: Any) -> GuardState:
        zero, none = jnp.zeros((), jnp.float32), jnp.zeros((), jnp.int32)
        return GuardState(tx.init(params), none, none, none, zero, zero, zero)

    def update(
        updates: Any, state: Any, params: Any = None, *, loss: jax.Array | None = None, **extra: Any
    ) -> tuple[Any, GuardState]:
        grads = updates
        norm = global_norm(grads)
        fine = jnp.isfinite(norm)
        if loss is not None:
            fine &= jnp.isfinite(loss)
        if optim.spike_sigmas is not None:
            fine &= norm <= _limit(state, optim.spike_sigmas)
        like = grads if params is None else params

        # A branch, not a select over all arrays: measured on CPU with 7.3M parameters and AdamW, the branch
        # takes 10 ms, the select 26 ms, no guard 7 ms.
        def step(_: None) -> tuple[Any, Any]:
            moves, inner = base.update(grads, state.inner, params, grad_norm=norm, **extra)
            return jax.tree.map(lambda u, x: u.astype(x.dtype), moves, like), inner

        def stay(_: None) -> tuple[Any, Any]:
            return jax.tree.map(lambda x: jnp.full_like(x, -0.0), like), state.inner

        moves, inner = jax.lax.cond(fine, step, stay, None)
        bad = 1 - fine.astype(jnp.int32)
        return moves, GuardState(
            inner=inner,
            good=state.good + 1 - bad,
            skipped=state.skipped + bad,
            skipped_in_row=(state.skipped_in_row + 1) * bad,
            grad_norm=norm,
            mean=jnp.where(fine, MEMORY * state.mean + (1.0 - MEMORY) * norm, state.mean),
            square=jnp.where(fine, MEMORY * state.square + (1.0 - MEMORY) * norm * norm, state.square),
        )

    return optax.GradientTransformationExtraArgs(init, update)


def read(state: GuardState) -> dict[str, jax.Array]:
    """For the log: grad_norm (before clipping), and how many steps were skipped, in all and in a row."""
    return {
        "grad_norm": state.grad_norm,
        "skipped": state.skipped,
        "skipped_in_row": state.skipped_in_row,
    }


def _limit(state: GuardState, sigmas: float) -> jax.Array:
    """The largest norm that is no spike; infinite while too few steps have been seen."""
    share = jnp.maximum(1.0 - MEMORY ** state.good.astype(jnp.float32), 1e-30)
    mean = state.mean / share
    deviation = jnp.sqrt(jnp.maximum(state.square / share - mean * mean, 0.0))
    limit = mean + sigmas * jnp.maximum(deviation, FLOOR * mean)
    return jnp.where(state.good >= WARM_UP, limit, jnp.inf)
