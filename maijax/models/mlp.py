"""The gated feed-forward block (SwiGLU, GeGLU) as a function of arrays."""

from __future__ import annotations

from typing import Literal

import jax

from maijax.models.linear import linear

Activation = Literal["silu", "gelu"]


def activate(gate: jax.Array, activation: Activation) -> jax.Array:
    """Return the activation of ``gate``; "gelu" is the tanh approximation, as in GPT-2 and Gemma.

    Raises: ValueError for any other name.
    """
    if activation == "silu":
        return jax.nn.silu(gate)
    if activation == "gelu":
        return jax.nn.gelu(gate, approximate=True)
    raise ValueError(f"activation={activation!r} is not known; use 'silu' or 'gelu'")


def gated_mlp(
    x_BSD: jax.Array,
    w_gate_DF: jax.Array,
    w_up_DF: jax.Array,
    w_down_FD: jax.Array,
    activation: Activation = "silu",
) -> jax.Array:
    """Return (activation(x w_gate) * (x w_up)) w_down, in the dtype of x.

    x is [..., D]; the weights are [D, F], [D, F] and [F, D].
    Source: Shazeer 2020, "GLU Variants Improve Transformer".
    """
    gate_BSF = linear(x_BSD, w_gate_DF)
    up_BSF = linear(x_BSD, w_up_DF)
    return linear(activate(gate_BSF, activation) * up_BSF, w_down_FD)
