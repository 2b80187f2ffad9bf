"""Adafactor: Adam's second moment kept as one row and one column per matrix."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from maijax.optim import matrices
from maijax.optim.matrices import Tree
from maijax.weights import Weight

TINY = 1e-30  # added to squared gradients, as in the paper


class AdafactorState(NamedTuple):
    """Updates made (int32); running means of squared gradients (float32), in trees like the parameters'."""

    count: jax.Array
    rows: Tree  # [matrices, reads]: mean over what is written
    columns: Tree  # [matrices, writes]: mean over what is read


def scale_by_adafactor(weights: Tree) -> optax.GradientTransformation:
    """Gradients over the root of their factored second moment, cut to a root mean square of 1 per matrix.

    `weights` is a tree of `Weight`, as the parameters. Optax's own factors over the two longest dimensions of
    an array, which mixes the layers or experts of a stack; here each matrix of the stack is factored over
    what it reads and what it writes, whence a vector, a matrix of one row, keeps its second moment whole.
    The update is not multiplied by the size of the parameter, so that AdamW's learning rates carry over.
    No momentum.

    Source: Shazeer and Stern, arXiv 1804.04235, algorithm 4 with beta2 = 1 - t^-0.8 and threshold 1.
    """

    def init(params: Tree) -> AdafactorState:
        del params  # the declared sizes say it all
        rows = jax.tree.map(lambda w: jnp.zeros(matrices.shape(w)[:2], jnp.float32), weights)
        columns = jax.tree.map(lambda w: jnp.zeros(matrices.shape(w)[::2], jnp.float32), weights)
        return AdafactorState(jnp.zeros((), jnp.int32), rows, columns)

    def update(updates: Tree, state: Any, params: Tree | None = None) -> tuple[Tree, AdafactorState]:
        del params
        grads = updates
        count = state.count + 1
        beta = 1.0 - count.astype(jnp.float32) ** -0.8

        def squares(old: jax.Array, grad: jax.Array, weight: Weight, axis: int) -> jax.Array:
            g = matrices.split(grad, weight)
            return beta * old + (1.0 - beta) * jnp.mean(g * g + TINY, axis=axis)

        rows = jax.tree.map(lambda r, g, w: squares(r, g, w, 2), state.rows, grads, weights)
        columns = jax.tree.map(lambda c, g, w: squares(c, g, w, 1), state.columns, grads, weights)

        def direction(grad: jax.Array, r: jax.Array, c: jax.Array, weight: Weight) -> jax.Array:
            share = r / jnp.mean(r, axis=1, keepdims=True)
            u = matrices.split(grad, weight) * share[:, :, None] ** -0.5 * c[:, None, :] ** -0.5
            rms = jnp.sqrt(jnp.mean(u * u, axis=(1, 2), keepdims=True))
            return matrices.join(u / jnp.maximum(1.0, rms), weight)

        found = jax.tree.map(direction, grads, rows, columns, weights)
        return found, AdafactorState(count, rows, columns)

    return optax.GradientTransformation(init, update)
