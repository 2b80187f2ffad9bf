"""Cross-entropy of a vocabulary head, by chunks of tokens, with its gradient made in the forward pass."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from maijax.config import ModelConfig
from maijax.parallel.sharding import Layout, spread
from maijax.train import loss_chunks, loss_spread
from maijax.train.loss_chunks import Head

# Float32 logits held at once by a device, in bytes. On CPU one chunk is as fast as eight; an accelerator is kept
# busier by larger products, and adds up the head's gradient in fewer passes over it.
_LOGIT_BYTES = 64 * 2**20
_ACCELERATOR_LOGIT_BYTES = 2**28


class CrossEntropy(NamedTuple):
    """Weighted sums over tokens, each float32 []: divide by weight_sum for means (nats per token).

    loss_sum = nll_sum + z_sum is the one to differentiate: the gradient of the other three is 0.
    """

    loss_sum: jax.Array
    nll_sum: jax.Array
    z_sum: jax.Array
    weight_sum: jax.Array


def logit_room(model: ModelConfig) -> int:
    """How many bytes of logits a device may hold at once, by the platform whose kernels a resolved model uses."""
    return _ACCELERATOR_LOGIT_BYTES if model.kernels in ("tpu", "gpu") else _LOGIT_BYTES


def cross_entropy(
    hidden_BSD: jax.Array,
    head: jax.Array,
    targets_BS: jax.Array,
    weights_BS: jax.Array,
    *,
    head_is_VD: bool,
    vocab_size: int,
    z_loss: float = 0.0,
    softcap: float | None = None,
    logit_bytes: int = _LOGIT_BYTES,
) -> CrossEntropy:
    """Return the weighted sums of -log p(target) and of z_loss * logsumexp(logits)^2.

    hidden is [B, S, D]; head is [V, D] (a tied embedding) if ``head_is_VD``, else [D, V]: neither is copied
    transposed. The head is cast to the dtype of hidden for the product; logits and loss are float32. Entries
    of the vocabulary from ``vocab_size`` on are padding and get probability 0. targets are int32 in
    [0, vocab_size); weights are float32, 0 for tokens that do not count.

    Logits of at most ``logit_bytes`` exist at once on a device; each chunk's gradient with respect to hidden
    and head is made while its logits are at hand, so the backward pass only scales. Only loss_sum has a
    gradient, for hidden and head, first derivatives in reverse mode. A call that is not differentiated makes
    none. On several devices `loss_spread` says who does what; the head's gradient lies as the head does.

    Raises: ValueError if the shapes and vocab_size do not fit together; UserError if they do not divide over
    the mesh.

    Source: z-loss, Chowdhery et al. 2022, "PaLM", section 5.
    """
    layout = spread()
    spec = _spec(hidden_BSD, head, head_is_VD, vocab_size, z_loss, softcap, logit_bytes, layout)
    weights_BS = weights_BS.astype(jnp.float32)
    sums: Any = _losses(hidden_BSD, head, targets_BS, weights_BS, spec, layout)
    return CrossEntropy(sums[0], sums[1], sums[2], jnp.sum(weights_BS))


def token_losses(
    hidden_BSD: jax.Array,
    head: jax.Array,
    targets_BS: jax.Array,
    *,
    head_is_VD: bool,
    vocab_size: int,
    softcap: float | None = None,
    logit_bytes: int = _LOGIT_BYTES,
) -> jax.Array:
    """Return -log p(target) of each token, float32 [B, S] in nats, for evaluation; arguments as in `cross_entropy`."""
    layout = spread()
    spec = _spec(hidden_BSD, head, head_is_VD, vocab_size, 0.0, softcap, logit_bytes, layout)
    if layout is not None:
        return loss_spread.token_nll(hidden_BSD, head, targets_BS, spec, layout)
    nll_N = loss_chunks.token_nll(_flat(hidden_BSD), head.astype(hidden_BSD.dtype), targets_BS.reshape(-1), spec)
    return nll_N.reshape(targets_BS.shape)


def _spec(
    hidden_BSD: jax.Array,
    head: jax.Array,
    head_is_VD: bool,
    vocab_size: int,
    z_loss: float,
    softcap: float | None,
    logit_bytes: int,
    layout: Layout | None,
) -> Head:
    B, S, D = hidden_BSD.shape
    V, head_D = head.shape if head_is_VD else head.shape[::-1]
    if head_D != D or not 0 < vocab_size <= V:
        raise ValueError(f"head {head.shape} does not fit hidden {hidden_BSD.shape} and vocab_size={vocab_size}")
    N, peers, held = B * S, (), V  # a device's tokens and entries
    if layout is not None:
        peers = layout.axes("vocab")
        N //= layout.ways(*layout.axes("batch"), *layout.axes("loss_sequence"))
        held //= layout.ways(*peers)
    chunk = max(1, logit_bytes // (4 * held))
    # Equal chunks: 1,100 tokens under a limit of 1,024 are two of 550, not one and a mostly empty one.
    chunks = max(1, -(-N // chunk))
    return Head(
        is_VD=head_is_VD, vocab_size=vocab_size, padded=vocab_size < V, z_loss=z_loss, softcap=softcap,
        chunk=-(-N // chunks), peers=peers,
    )


def _flat(hidden_BSD: jax.Array) -> jax.Array:
    return hidden_BSD.reshape(-1, hidden_BSD.shape[-1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _losses(hidden_BSD, head, targets_BS, weights_BS, spec, layout):  # noqa: ANN001, ANN202
    """Return (loss_sum, nll_sum, z_sum) without making a gradient."""
    if layout is not None:
        sums = loss_spread.losses(hidden_BSD, head, targets_BS, weights_BS, spec, layout)
    else:
        flat = (_flat(hidden_BSD), head.astype(hidden_BSD.dtype), targets_BS.reshape(-1), weights_BS.reshape(-1))
        sums = loss_chunks.losses(*flat, spec)
    return sums[0], sums[1], sums[2]


def _losses_forward(hidden_BSD, head, targets_BS, weights_BS, spec, layout):  # noqa: ANN001, ANN202
    if layout is not None:
        found = loss_spread.losses_and_gradients(hidden_BSD, head, targets_BS, weights_BS, spec, layout)
    else:
        flat = (_flat(hidden_BSD), head.astype(hidden_BSD.dtype), targets_BS.reshape(-1), weights_BS.reshape(-1))
        found = loss_chunks.losses_and_gradients(*flat, spec)
    sums, d_hidden, d_head = found
    return (sums[0], sums[1], sums[2]), (d_hidden.reshape(hidden_BSD.shape), d_head.astype(head.dtype), weights_BS)


def _losses_backward(spec, layout, saved, cotangents):  # noqa: ANN001, ANN202
    d_hidden_BSD, d_head, weights_BS = saved
    g = cotangents[0]
    d_hidden_BSD = (d_hidden_BSD * g).astype(d_hidden_BSD.dtype)
    return d_hidden_BSD, (d_head * g).astype(d_head.dtype), None, jnp.zeros_like(weights_BS)


_losses.defvjp(_losses_forward, _losses_backward)
