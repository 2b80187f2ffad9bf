"""The one matrix product of the models: any leading dims in, one two-dimensional product inside."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp


def linear(x: jax.Array, w: jax.Array, *, contract: int = 1) -> jax.Array:
    """Return ``x`` times ``w``, contracting the last ``contract`` dims of ``x`` with the first of ``w``.

    x is [..., *in], w is [*in, *out], the result [..., *out] in the dtype of x; w is cast to that dtype.

    The product is two-dimensional, [tokens, in] @ [in, out]: the gradient of a three-dimensional one reaches
    XLA's CPU back end as a form that runs at a third of the speed (benchmarks/cpu_step.py), and on
    accelerators the two are the same program.

    Raises: ValueError if the contracted dims differ.
    """
    in_dims, out_dims = w.shape[:contract], w.shape[contract:]
    lead_dims = x.shape[: x.ndim - contract]
    if contract < 1 or x.shape[x.ndim - contract :] != in_dims:
        raise ValueError(f"linear: x {x.shape} cannot be contracted over {contract} dim(s) with w {w.shape}")
    x_NI = x.reshape(math.prod(lead_dims), math.prod(in_dims))
    w_IO = w.astype(x.dtype).reshape(math.prod(in_dims), math.prod(out_dims))
    return jnp.dot(x_NI, w_IO).reshape(*lead_dims, *out_dims)
