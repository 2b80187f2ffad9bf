"""The loss of many tokens on one device, a chunk of tokens at a time, and its gradient where the logits are at hand."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from maijax.models.linear import weight_gradient


@dataclasses.dataclass(frozen=True, kw_only=True)
class Head:
    """How hidden states become logits; hashable, so that it can be a static argument."""

    is_VD: bool
    vocab_size: int
    padded: bool  # entries from vocab_size on are stored
    z_loss: float
    softcap: float | None
    chunk: int  # tokens
    peers: tuple[str, ...] = ()  # mesh axes over which the vocabulary is shared out; its V is this device's part

    def first(self, V: int) -> jax.Array | int:
        """The index of this device's first entry in the whole vocabulary."""
        return jax.lax.axis_index(self.peers) * V if self.peers else 0

    def logits(self, hidden_CD: jax.Array, head: jax.Array) -> jax.Array:
        """Return the float32 logits [C, V] after the softcap, padding entries at -inf."""
        dims = (((1,), (1 if self.is_VD else 0,)), ((), ()))
        z_CV = jax.lax.dot_general(hidden_CD, head, dims, preferred_element_type=jnp.float32)
        if self.softcap is not None:
            z_CV = self.softcap * jnp.tanh(z_CV / self.softcap)
        if self.padded:
            V = z_CV.shape[1]
            z_CV = jnp.where(jnp.arange(V)[None] < self.vocab_size - self.first(V), z_CV, -jnp.inf)
        return z_CV

    def normalise(self, z_CV: jax.Array, targets_C: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return the logsumexp of each row [C] and its target's logit [C]."""
        top_C = jnp.max(z_CV, axis=-1)
        if not self.peers:
            log_total_C = top_C + jnp.log(jnp.sum(jnp.exp(z_CV - top_C[:, None]), axis=-1))
            return log_total_C, jnp.take_along_axis(z_CV, targets_C[:, None], axis=-1)[:, 0]
        top_C = jax.lax.pmax(top_C, self.peers)
        total_C = jnp.sum(jnp.exp(z_CV - top_C[:, None]), axis=-1)
        # One device has the target; the others, whose part it is not in, add 0.
        V = z_CV.shape[1]
        targets_C = targets_C - self.first(V)
        found_C = jnp.take_along_axis(z_CV, jnp.clip(targets_C, 0, V - 1)[:, None], axis=-1)[:, 0]
        found_C = jnp.where((targets_C >= 0) & (targets_C < V), found_C, 0.0)
        total_C, found_C = jax.lax.psum(jnp.stack([total_C, found_C]), self.peers)
        return top_C + jnp.log(total_C), found_C


def losses(
    hidden_ND: jax.Array, head: jax.Array, targets_N: jax.Array, weights_N: jax.Array, spec: Head
) -> jax.Array:
    """Return (loss_sum, nll_sum, z_sum), float32 [3], without making a gradient; head is in the dtype of hidden."""

    def one_chunk(sums, xs):  # noqa: ANN001, ANN202
        hidden_CD, targets_C, weights_C = xs
        log_total_C, target_C = spec.normalise(spec.logits(hidden_CD, head), targets_C)
        return sums + _chunk_sums(log_total_C, target_C, weights_C, spec.z_loss), weights_C

    arrays = (hidden_ND, targets_N, weights_N)
    return _over_chunks(one_chunk, jnp.zeros(3, jnp.float32), arrays, spec.chunk)[0]


def losses_and_gradients(
    hidden_ND: jax.Array, head: jax.Array, targets_N: jax.Array, weights_N: jax.Array, spec: Head
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return what `losses` does and loss_sum's gradients: of hidden [N, D] in its dtype, of head in float32.

    Where the vocabulary is shared out, the gradient of hidden is this device's part of a sum over `peers`.
    """

    def one_chunk(carry, xs):  # noqa: ANN001, ANN202
        sums, d_head = carry
        hidden_CD, targets_C, weights_C = xs
        z_CV = spec.logits(hidden_CD, head)
        log_total_C, target_C = spec.normalise(z_CV, targets_C)
        # d loss / d z = weight * (p * (1 + 2 z_loss logsumexp) - onehot)
        p_weight_C = weights_C * (1.0 + 2.0 * spec.z_loss * log_total_C)
        V = z_CV.shape[1]
        is_target_CV = jnp.arange(V)[None] == (targets_C - spec.first(V))[:, None]
        d_z_CV = jnp.exp(z_CV - log_total_C[:, None]) * p_weight_C[:, None]
        d_z_CV = d_z_CV - jnp.where(is_target_CV, weights_C[:, None], 0.0)
        if spec.softcap is not None:
            slope_CV = 1.0 - jnp.square(z_CV / spec.softcap)
            d_z_CV = jnp.where(jnp.isinf(z_CV), 0.0, d_z_CV * slope_CV)
        d_z_CV = d_z_CV.astype(hidden_CD.dtype)
        d_hidden_CD = jnp.dot(d_z_CV, head if spec.is_VD else head.T)
        left, right = (d_z_CV, hidden_CD) if spec.is_VD else (hidden_CD, d_z_CV)
        d_head += weight_gradient(left, right)
        return (sums + _chunk_sums(log_total_C, target_C, weights_C, spec.z_loss), d_head), d_hidden_CD

    start = (jnp.zeros(3, jnp.float32), jnp.zeros(head.shape, jnp.float32))
    (sums, d_head), d_hidden = _over_chunks(one_chunk, start, (hidden_ND, targets_N, weights_N), spec.chunk)
    return sums, d_hidden[: hidden_ND.shape[0]], d_head


def token_nll(hidden_ND: jax.Array, head: jax.Array, targets_N: jax.Array, spec: Head) -> jax.Array:
    """Return -log p(target) of each token, float32 [N]; head is in the dtype of hidden."""

    def one_chunk(carry: None, xs: tuple[jax.Array, jax.Array]) -> tuple[None, jax.Array]:
        hidden_CD, targets_C = xs
        log_total_C, target_C = spec.normalise(spec.logits(hidden_CD, head), targets_C)
        return carry, log_total_C - target_C

    _, nll = _over_chunks(one_chunk, None, (hidden_ND, targets_N), spec.chunk)
    return nll[: hidden_ND.shape[0]]


def _chunk_sums(log_total_C, target_C, weights_C, z_loss):  # noqa: ANN001, ANN202
    nll = jnp.sum((log_total_C - target_C) * weights_C)
    z = z_loss * jnp.sum(jnp.square(log_total_C) * weights_C)
    return jnp.stack([nll + z, nll, z])


def _over_chunks(body: Any, carry: Any, arrays: tuple[jax.Array, ...], chunk: int) -> tuple[Any, jax.Array]:
    """Scan ``body`` over the arrays' first dim, ``chunk`` rows a time, the last chunk padded with zeros."""
    N = arrays[0].shape[0]
    chunks = -(-N // chunk) if chunk else 1
    if chunks == 1:
        return body(carry, arrays)
    short = chunks * chunk - N
    padded = [jnp.pad(x, ((0, short),) + ((0, 0),) * (x.ndim - 1)) if short else x for x in arrays]
    carry, rows = jax.lax.scan(body, carry, tuple(x.reshape(chunks, chunk, *x.shape[1:]) for x in padded))
    return carry, rows.reshape(chunks * chunk, *rows.shape[2:])
