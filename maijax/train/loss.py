"""Cross-entropy of a vocabulary head, by chunks of tokens, with its gradient made in the forward pass."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from maijax.models.linear import weight_gradient

# Float32 logits held at once, in bytes. One chunk is as fast as eight on CPU; this bounds the memory.
_LOGIT_BYTES = 64 * 2**20


class CrossEntropy(NamedTuple):
    """Weighted sums over tokens, each float32 []: divide by weight_sum for means (nats per token).

    loss_sum = nll_sum + z_sum is the one to differentiate: the gradient of the other three is 0.
    """

    loss_sum: jax.Array
    nll_sum: jax.Array
    z_sum: jax.Array
    weight_sum: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Head:
    """How hidden states become logits; hashable, so that it can be a static argument."""

    is_VD: bool
    vocab_size: int
    z_loss: float
    softcap: float | None
    chunk: int  # tokens

    def logits(self, hidden_CD: jax.Array, head: jax.Array) -> jax.Array:
        """Return the float32 logits [C, V] after the softcap, padding entries at -inf."""
        dims = (((1,), (1 if self.is_VD else 0,)), ((), ()))
        z_CV = jax.lax.dot_general(hidden_CD, head, dims, preferred_element_type=jnp.float32)
        if self.softcap is not None:
            z_CV = self.softcap * jnp.tanh(z_CV / self.softcap)
        if self.vocab_size < z_CV.shape[1]:
            z_CV = jnp.where(jnp.arange(z_CV.shape[1])[None] < self.vocab_size, z_CV, -jnp.inf)
        return z_CV


def cross_entropy(
    hidden_ND: jax.Array,
    head: jax.Array,
    targets_N: jax.Array,
    weights_N: jax.Array,
    *,
    head_is_VD: bool,
    vocab_size: int,
    z_loss: float = 0.0,
    softcap: float | None = None,
    chunk: int | None = None,
) -> CrossEntropy:
    """Return the weighted sums of -log p(target) and of z_loss * logsumexp(logits)^2.

    hidden is [N, D]; head is [V, D] (a tied embedding) if ``head_is_VD``, else [D, V]: neither is copied
    transposed. The head is cast to the dtype of hidden for the product; logits and loss are float32. Entries
    of the vocabulary from ``vocab_size`` on are padding and get probability 0. targets are int32 in
    [0, vocab_size); weights are float32, 0 for tokens that do not count.

    At most ``chunk`` tokens' logits exist at once (default: as many as fit 64 MiB of float32); each chunk's
    gradient with respect to hidden and head is made while its logits are at hand, so the backward pass only
    scales. Only loss_sum has a gradient, for hidden and head, first derivatives in reverse mode. A call that is
    not differentiated makes none.

    Raises: ValueError if the shapes and vocab_size do not fit together.

    Source: z-loss, Chowdhery et al. 2022, "PaLM", section 5.
    """
    spec = _spec(hidden_ND, head, head_is_VD, vocab_size, z_loss, softcap, chunk)
    weights_N = weights_N.astype(jnp.float32)
    sums: Any = _losses(hidden_ND, head, targets_N, weights_N, spec)
    return CrossEntropy(sums[0], sums[1], sums[2], jnp.sum(weights_N))


def token_losses(
    hidden_ND: jax.Array,
    head: jax.Array,
    targets_N: jax.Array,
    *,
    head_is_VD: bool,
    vocab_size: int,
    softcap: float | None = None,
    chunk: int | None = None,
) -> jax.Array:
    """Return -log p(target) of each token, float32 [N] in nats, for evaluation; arguments as in `cross_entropy`."""
    spec = _spec(hidden_ND, head, head_is_VD, vocab_size, 0.0, softcap, chunk)
    head = head.astype(hidden_ND.dtype)

    def one_chunk(carry: None, xs: tuple[jax.Array, jax.Array]) -> tuple[None, jax.Array]:
        hidden_CD, targets_C = xs
        log_total_C, target_C = _normalise(spec.logits(hidden_CD, head), targets_C)
        return carry, log_total_C - target_C

    _, nll = _over_chunks(one_chunk, None, (hidden_ND, targets_N), spec.chunk)
    return nll[: hidden_ND.shape[0]]


def _spec(
    hidden_ND: jax.Array,
    head: jax.Array,
    head_is_VD: bool,
    vocab_size: int,
    z_loss: float,
    softcap: float | None,
    chunk: int | None,
) -> _Head:
    N, D = hidden_ND.shape
    V, head_D = head.shape if head_is_VD else head.shape[::-1]
    if head_D != D or not 0 < vocab_size <= V:
        raise ValueError(f"head {head.shape} does not fit hidden {hidden_ND.shape} and vocab_size={vocab_size}")
    if chunk is None:
        chunk = max(1, _LOGIT_BYTES // (4 * V))
    # Equal chunks: 1,100 tokens under a limit of 1,024 are two of 550, not one and a mostly empty one.
    chunks = max(1, -(-N // chunk))
    return _Head(is_VD=head_is_VD, vocab_size=vocab_size, z_loss=z_loss, softcap=softcap, chunk=-(-N // chunks))


def _over_chunks(body, carry, arrays, chunk):  # noqa: ANN001, ANN202
    """Scan ``body`` over the arrays' first dim, ``chunk`` rows a time, the last chunk padded with zeros."""
    N = arrays[0].shape[0]
    chunks = -(-N // chunk) if chunk else 1
    if chunks == 1:
        return body(carry, arrays)
    short = chunks * chunk - N
    padded = [jnp.pad(x, ((0, short),) + ((0, 0),) * (x.ndim - 1)) if short else x for x in arrays]
    carry, rows = jax.lax.scan(body, carry, tuple(x.reshape(chunks, chunk, *x.shape[1:]) for x in padded))
    return carry, rows.reshape(chunks * chunk, *rows.shape[2:])


def _normalise(z_CV: jax.Array, targets_C: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the logsumexp of each row [C] and its target's logit [C]."""
    top_C = jnp.max(z_CV, axis=-1)
    log_total_C = top_C + jnp.log(jnp.sum(jnp.exp(z_CV - top_C[:, None]), axis=-1))
    return log_total_C, jnp.take_along_axis(z_CV, targets_C[:, None], axis=-1)[:, 0]


def _chunk_sums(log_total_C, target_C, weights_C, z_loss):  # noqa: ANN001, ANN202
    nll = jnp.sum((log_total_C - target_C) * weights_C)
    z = z_loss * jnp.sum(jnp.square(log_total_C) * weights_C)
    return jnp.stack([nll + z, nll, z])


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _losses(hidden_ND, head, targets_N, weights_N, spec):  # noqa: ANN001, ANN202
    """Return (loss_sum, nll_sum, z_sum) without making a gradient."""
    cast_head = head.astype(hidden_ND.dtype)

    def one_chunk(sums, xs):  # noqa: ANN001, ANN202
        hidden_CD, targets_C, weights_C = xs
        log_total_C, target_C = _normalise(spec.logits(hidden_CD, cast_head), targets_C)
        return sums + _chunk_sums(log_total_C, target_C, weights_C, spec.z_loss), weights_C

    arrays = (hidden_ND, targets_N, weights_N)
    sums, _ = _over_chunks(one_chunk, jnp.zeros(3, jnp.float32), arrays, spec.chunk)
    return sums[0], sums[1], sums[2]


def _losses_forward(hidden_ND, head, targets_N, weights_N, spec):  # noqa: ANN001, ANN202
    cast_head = head.astype(hidden_ND.dtype)

    def one_chunk(carry, xs):  # noqa: ANN001, ANN202
        sums, d_head = carry
        hidden_CD, targets_C, weights_C = xs
        z_CV = spec.logits(hidden_CD, cast_head)
        log_total_C, target_C = _normalise(z_CV, targets_C)
        # d loss / d z = weight * (p * (1 + 2 z_loss logsumexp) - onehot)
        p_weight_C = weights_C * (1.0 + 2.0 * spec.z_loss * log_total_C)
        is_target_CV = jnp.arange(z_CV.shape[1])[None] == targets_C[:, None]
        d_z_CV = jnp.exp(z_CV - log_total_C[:, None]) * p_weight_C[:, None]
        d_z_CV = d_z_CV - jnp.where(is_target_CV, weights_C[:, None], 0.0)
        if spec.softcap is not None:
            slope_CV = 1.0 - jnp.square(z_CV / spec.softcap)
            d_z_CV = jnp.where(jnp.isinf(z_CV), 0.0, d_z_CV * slope_CV)
        d_z_CV = d_z_CV.astype(hidden_CD.dtype)
        d_hidden_CD = jnp.dot(d_z_CV, cast_head if spec.is_VD else cast_head.T)
        left, right = (d_z_CV, hidden_CD) if spec.is_VD else (hidden_CD, d_z_CV)
        d_head += weight_gradient(left, right)
        return (sums + _chunk_sums(log_total_C, target_C, weights_C, spec.z_loss), d_head), d_hidden_CD

    start = (jnp.zeros(3, jnp.float32), jnp.zeros(head.shape, jnp.float32))
    (sums, d_head), d_hidden = _over_chunks(one_chunk, start, (hidden_ND, targets_N, weights_N), spec.chunk)
    saved = (d_hidden[: hidden_ND.shape[0]], d_head.astype(head.dtype), weights_N)
    return (sums[0], sums[1], sums[2]), saved


def _losses_backward(spec, saved, cotangents):  # noqa: ANN001, ANN202
    d_hidden_ND, d_head, weights_N = saved
    g = cotangents[0]
    d_hidden_ND = (d_hidden_ND * g).astype(d_hidden_ND.dtype)
    return d_hidden_ND, (d_head * g).astype(d_head.dtype), None, jnp.zeros_like(weights_N)


_losses.defvjp(_losses_forward, _losses_backward)
