"""What a layer's backward pass finds stored, by `model.remat`; the rest it computes again."""

from __future__ import annotations

from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name

ATTENTION = "attention"  # the name of what attention made
_INPUT = "layer_input"
# cuDNN's attention is a primitive that gives its output and row sums at once; inside it nothing can be named.
_CUDNN = "dot_product_attention_fwd_wrapper"
_policies = jax.checkpoint_policies
_named = _policies.save_only_these_names(ATTENTION)


def layer_input(x: jax.Array) -> jax.Array:
    """The same array, marked as a layer's input."""
    return checkpoint_name(x, _INPUT)


def attended(x: Any) -> Any:
    """The same arrays, marked as attention's output, or as what its kernel keeps beside it for the way back."""
    return jax.tree.map(lambda one: checkpoint_name(one, ATTENTION), x)


def _attention(primitive: Any, *inputs: Any, **params: Any) -> bool:
    return primitive.name == _CUDNN or _named(primitive, *inputs, **params)


POLICIES = {
    "full": None,  # only the layer's input
    "attention": _attention,  # and what attention made, so that its kernel does not run again
    "dots": _policies.save_from_both_policies(_attention, _policies.dots_with_no_batch_dims_saveable),
    "offload": _policies.save_and_offload_only_these_names(  # as full, in the host's memory
        names_which_can_be_saved=[], names_which_can_be_offloaded=[_INPUT], offload_src="device",
        offload_dst="pinned_host",
    ),
}
