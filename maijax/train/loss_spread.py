"""The loss on many devices: rows over the batch's axes, tokens over context and stage, the vocabulary over tensor.

Each function is one island over the whole mesh. A device gathers the head's rows for its part of the vocabulary
once, in the compute dtype, goes through its tokens by chunks, and adds up the head's gradient in float32; one
reduction at the end brings that gradient to where the head lies. Devices with the same tokens and other parts of
the vocabulary exchange three numbers per token.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec

from maijax.parallel.sharding import Layout
from maijax.train import loss_chunks
from maijax.train.loss_chunks import Head


def losses(
    hidden_BSD: jax.Array, head: jax.Array, targets_BS: jax.Array, weights_BS: jax.Array, spec: Head, layout: Layout
) -> jax.Array:
    """Return (loss_sum, nll_sum, z_sum) over all tokens, float32 [3], on every device."""

    def local(hidden, stored, targets, weights):  # noqa: ANN001, ANN202
        flat = _flat(hidden, stored, targets, spec, layout)
        return jax.lax.psum(loss_chunks.losses(*flat, weights.reshape(-1), spec), _token_axes(layout))

    return _island(local, hidden_BSD, head, spec, layout, tokens=2, out=PartitionSpec())(
        hidden_BSD, head, targets_BS, weights_BS
    )


def losses_and_gradients(
    hidden_BSD: jax.Array, head: jax.Array, targets_BS: jax.Array, weights_BS: jax.Array, spec: Head, layout: Layout
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return what `losses` does and the gradients of loss_sum: each lies as what it belongs to, the head's float32."""

    def local(hidden, stored, targets, weights):  # noqa: ANN001, ANN202
        flat = _flat(hidden, stored, targets, spec, layout)
        sums, d_hidden_ND, d_head = loss_chunks.losses_and_gradients(*flat, weights.reshape(-1), spec)
        d_hidden = _leave(d_hidden_ND.reshape(*targets.shape, -1), layout)
        token_axes, shared = _token_axes(layout), layout.axes("embed")
        if shared:
            d_head = jax.lax.psum_scatter(d_head, shared, scatter_dimension=1 if spec.is_VD else 0, tiled=True)
        d_head = jax.lax.psum(d_head, tuple(a for a in token_axes if a not in shared))
        return jax.lax.psum(sums, token_axes), d_hidden, d_head

    out = (PartitionSpec(), _hidden(hidden_BSD, layout), _stored(head, spec, layout))
    return _island(local, hidden_BSD, head, spec, layout, tokens=2, out=out)(hidden_BSD, head, targets_BS, weights_BS)


def token_nll(hidden_BSD: jax.Array, head: jax.Array, targets_BS: jax.Array, spec: Head, layout: Layout) -> jax.Array:
    """Return -log p(target) of each token, float32 [B, S], laid out as ("batch", "loss_sequence")."""

    def local(hidden, stored, targets):  # noqa: ANN001, ANN202
        return loss_chunks.token_nll(*_flat(hidden, stored, targets, spec, layout), spec).reshape(targets.shape)

    out = _tokens(hidden_BSD, layout)
    return _island(local, hidden_BSD, head, spec, layout, tokens=1, out=out)(hidden_BSD, head, targets_BS)


def _island(
    local: Callable[..., Any], hidden_BSD: jax.Array, head: jax.Array, spec: Head, layout: Layout, *, tokens: int,
    out: Any,
) -> Callable[..., Any]:
    """``local`` on each device's parts of hidden, head and ``tokens`` arrays [B, S]."""
    specs = (_hidden(hidden_BSD, layout), _stored(head, spec, layout), *[_tokens(hidden_BSD, layout)] * tokens)
    return jax.shard_map(local, mesh=layout.mesh, in_specs=specs, out_specs=out, check_vma=False)


def _hidden(hidden_BSD: jax.Array, layout: Layout) -> PartitionSpec:
    return layout.spec(("batch", "residual_sequence", "act_embed"), hidden_BSD.shape, "the loss's hidden [B, S, D]")


def _stored(head: jax.Array, spec: Head, layout: Layout) -> PartitionSpec:
    axes = ("vocab", "embed") if spec.is_VD else ("embed", "vocab")
    return layout.spec(axes, head.shape, f"the loss's head [{', '.join(axes)}]")


def _tokens(hidden_BSD: jax.Array, layout: Layout) -> PartitionSpec:
    return layout.spec(("batch", "loss_sequence"), hidden_BSD.shape[:2], "the loss's targets [B, S]")


def _token_axes(layout: Layout) -> tuple[str, ...]:
    """The mesh axes over which the tokens are shared out."""
    return (*layout.axes("batch"), *layout.axes("loss_sequence"))


def _stages(layout: Layout) -> tuple[str, ...]:
    """Those that hold the same hidden states before the loss, and share out their tokens in it."""
    return tuple(a for a in layout.axes("loss_sequence") if a not in layout.axes("residual_sequence"))


def _flat(
    hidden: jax.Array, stored: jax.Array, targets: jax.Array, spec: Head, layout: Layout
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """This device's tokens [N, D], its part of the head with D whole, and its targets [N]."""
    hidden = _enter(hidden, layout)
    head = stored.astype(hidden.dtype)  # half the bytes travel
    if shared := layout.axes("embed"):
        head = jax.lax.all_gather(head, shared, axis=1 if spec.is_VD else 0, tiled=True)
    return hidden.reshape(-1, hidden.shape[-1]), head, targets.reshape(-1)


def _enter(x: jax.Array, layout: Layout) -> jax.Array:
    """From ("batch", "residual_sequence") to ("batch", "loss_sequence"), D whole at both ends.

    Stages hold copies: each brings its share of D to all tokens, then swaps shares of D for shares of the tokens.
    """
    stages, tensor = _stages(layout), layout.axes("vocab")
    if stages:
        width = x.shape[2] // layout.ways(*stages)
        x = jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(stages) * width, width, axis=2)
    if tensor:
        x = jax.lax.all_gather(x, tensor, axis=1, tiled=True)
    return jax.lax.all_to_all(x, stages, split_axis=1, concat_axis=2, tiled=True) if stages else x


def _leave(x: jax.Array, layout: Layout) -> jax.Array:
    """The way back, adding up over tensor."""
    stages, tensor = _stages(layout), layout.axes("vocab")
    if stages:
        x = jax.lax.all_to_all(x, stages, split_axis=2, concat_axis=1, tiled=True)
    if tensor:
        x = jax.lax.psum_scatter(x, tensor, scatter_dimension=1, tiled=True)
    return jax.lax.all_gather(x, stages, axis=2, tiled=True) if stages else x
