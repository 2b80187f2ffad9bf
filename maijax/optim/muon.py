"""Muon: momentum whose singular values are all pushed to 1."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from maijax.optim import matrices
from maijax.optim.matrices import Tree
from maijax.weights import Weight

# Odd polynomials a x + b x^3 + c x^5, one per iteration, each the best for what the one before leaves of the
# interval [1e-3, 1]; the margin against rounding in bfloat16 is in them.
# Source: Amsel et al., The Polar Express, arXiv 2505.16932, algorithm 1 with 5 iterations, safety 2e-2.
POLAR_EXPRESS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
# Root mean square of AdamW's updates, in units of its learning rate.
# Source: Liu et al., arXiv 2502.16982, section 2.2.
ADAM_RMS = 0.2


def orthogonalize(x_NRW: jax.Array, dtype: jnp.dtype | type = jnp.float32) -> jax.Array:
    """Each of N matrices with its singular values replaced by about 1 and its singular vectors kept.

    `dtype` is that of the matrix products; the result has the dtype of the input. A zero matrix stays zero.
    """
    wide = x_NRW.shape[1] <= x_NRW.shape[2]
    spec = ("NRW,NSW->NRS", "NRS,NSW->NRW") if wide else ("NRW,NRV->NWV", "NRW,NWV->NRV")
    x = x_NRW.astype(jnp.float32)
    # The Frobenius norm bounds the largest singular value; 1.02 keeps rounding from lifting it above 1.
    x = (x / (1.02 * jnp.sqrt(jnp.sum(x * x, axis=(1, 2), keepdims=True)) + 1e-20)).astype(dtype)

    def iterate(x: jax.Array, abc: jax.Array) -> tuple[jax.Array, None]:
        a, b, c = abc
        gram = jnp.einsum(spec[0], x, x)
        poly = b * gram + c * (gram @ gram)
        return a * x + jnp.einsum(spec[1], *((poly, x) if wide else (x, poly))), None

    # A loop, not five copies: as fast to run, measured, and a third of the time to compile.
    x, _ = jax.lax.scan(iterate, x, jnp.asarray(POLAR_EXPRESS, dtype))
    return x.astype(x_NRW.dtype)


class MuonState(NamedTuple):
    """Momentum, float32, in the tree of the parameters."""

    momentum: Tree


def scale_by_muon(weights: Tree, *, beta: float, dtype: jnp.dtype | type) -> optax.GradientTransformation:
    """Nesterov momentum, orthogonalised matrix by matrix, scaled to the size of an AdamW update.

    `weights` is a tree of `Weight`, as the parameters. The scale is 0.2 sqrt(max(reads, writes)): an
    orthogonal [R, W] matrix has root mean square 1 / sqrt(max(R, W)), so every matrix moves 0.2 lr per entry
    and step, as under AdamW, and AdamW's learning rate and weight decay carry over.

    Source: Jordan, https://kellerjordan.github.io/posts/muon/ (Nesterov, momentum 0.95); Liu et al., Muon is
    Scalable for LLM Training, arXiv 2502.16982, equation 4 (scale, weight decay).
    """

    def init(params: Tree) -> MuonState:
        return MuonState(jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params))

    def update(updates: Tree, state: Any, params: Tree | None = None) -> tuple[Tree, MuonState]:
        del params
        grads = updates
        momentum = jax.tree.map(lambda m, g: beta * m + (1.0 - beta) * g, state.momentum, grads)

        def direction(m: jax.Array, g: jax.Array, weight: Weight) -> jax.Array:
            _, reads, writes = matrices.shape(weight)
            found = orthogonalize(matrices.split(beta * m + (1.0 - beta) * g, weight), dtype)
            return matrices.join(found, weight) * (ADAM_RMS * max(reads, writes) ** 0.5)

        return jax.tree.map(direction, momentum, grads, weights), MuonState(momentum)

    return optax.GradientTransformation(init, update)
