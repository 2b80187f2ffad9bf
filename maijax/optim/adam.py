"""Adam's direction, with an eps for each weight."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from maijax.optim.matrices import Tree


def scale_by_adam(eps: Tree, *, b1: float, b2: float) -> optax.GradientTransformation:
    """As optax.scale_by_adam with float32 moments, its state included; `eps` is a tree of numbers as the parameters.

    Source: Kingma and Ba, arXiv 1412.6980, algorithm 1.
    """
    plain = optax.scale_by_adam(b1=b1, b2=b2, eps=0.0, mu_dtype=jnp.float32)

    def update(updates: Tree, state: Any, params: Tree | None = None) -> tuple[Tree, Any]:
        del params
        mu = optax.tree.update_moment(updates, state.mu, b1, 1)
        nu = optax.tree.update_moment_per_elem_norm(updates, state.nu, b2, 2)
        count = optax.safe_increment(state.count)
        mu_hat, nu_hat = optax.tree.bias_correction(mu, b1, count), optax.tree.bias_correction(nu, b2, count)
        moves = jax.tree.map(lambda m, v, e: m / (jnp.sqrt(v) + e), mu_hat, nu_hat, eps)
        return moves, optax.ScaleByAdamState(count=count, mu=mu, nu=nu)

    return optax.GradientTransformation(plain.init, update)
