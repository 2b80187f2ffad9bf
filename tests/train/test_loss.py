"""Cross-entropy against scipy and optax; gradients by finite differences and by plain differentiation."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import logsumexp

from maijax.train.loss import cross_entropy, token_losses

B, S, D, V, USED = 2, 11, 6, 16, 13
FOUR_TOKENS = 4 * 4 * V  # bytes of logits


def problem(dtype=np.float32):
    rng = np.random.default_rng(0)
    hidden, head = rng.standard_normal((B * S, D)).astype(dtype), rng.standard_normal((D, V)).astype(dtype)
    targets = rng.integers(0, USED, B * S).astype(np.int32)
    weights = (rng.random(B * S) * (rng.random(B * S) > 0.3)).astype(np.float32)
    return hidden.reshape(B, S, D), head, targets.reshape(B, S), weights.reshape(B, S)


def reference(hidden, head, targets, weights, z_loss=0.0, softcap=None):
    logits = (hidden.astype(np.float64) @ head.astype(np.float64))[..., :USED]
    logits = softcap * np.tanh(logits / softcap) if softcap else logits
    total = logsumexp(logits, axis=-1)
    nll = total - np.take_along_axis(logits, targets[..., None], -1)[..., 0]
    return np.sum(nll * weights), np.sum(z_loss * total**2 * weights), nll


OPTIONS = [dict(), dict(z_loss=0.1), dict(softcap=2.0), dict(z_loss=0.1, softcap=2.0)]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("room", [dict(), dict(logit_bytes=FOUR_TOKENS)], ids=["whole", "chunks"])
@pytest.mark.parametrize("head_is_VD", [True, False])
def test_sums_and_gradients(options, room, head_is_VD):
    hidden, head, targets, weights = problem()

    def loss(hidden, head):
        found = cross_entropy(
            hidden, head, targets, weights, head_is_VD=head_is_VD, vocab_size=USED, **room, **options
        )
        return 0.5 * found.loss_sum, found

    stored = head.T if head_is_VD else head
    (half, found), (d_hidden, d_head) = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(hidden, stored)
    nll, z, per_token = reference(hidden, head, targets, weights, **options)
    np.testing.assert_allclose([half * 2, found.loss_sum, found.nll_sum], [nll + z, nll + z, nll], rtol=1e-5)
    np.testing.assert_allclose([found.z_sum, found.weight_sum], [z, weights.sum()], rtol=1e-5)
    undifferentiated = loss(hidden, stored)[1]
    np.testing.assert_allclose(undifferentiated, found, rtol=1e-6)

    rng = np.random.default_rng(1)
    d_head = d_head.T if head_is_VD else d_head
    for which, grad in enumerate((d_hidden, d_head)):
        direction = rng.standard_normal(grad.shape)
        ends = []
        for sign in (1e-5, -1e-5):
            moved = [hidden.astype(np.float64), head.astype(np.float64)]
            moved[which] += sign * direction
            ends.append(sum(reference(*moved, targets, weights, **options)[:2]))
        np.testing.assert_allclose(np.sum(grad * direction), 0.5 * (ends[0] - ends[1]) / 2e-5, rtol=1e-4, atol=1e-4)
    assert (np.asarray(d_head)[:, USED:] == 0).all()  # padding learns nothing
    assert (np.asarray(d_hidden)[weights == 0] == 0).all()  # nor does a token of weight 0

    softcap = options.get("softcap")
    each = token_losses(hidden, stored, targets, head_is_VD=head_is_VD, vocab_size=USED, softcap=softcap, **room)
    assert each.shape == (B, S)
    np.testing.assert_allclose(each, per_token, rtol=1e-5)


def test_equals_optax_without_padding():
    hidden, head, targets, weights = problem()
    plain = lambda h, w: jnp.sum(optax.softmax_cross_entropy_with_integer_labels(h @ w, targets) * weights)  # noqa: E731
    ours = lambda h, w: cross_entropy(h, w, targets, weights, head_is_VD=False, vocab_size=V).loss_sum  # noqa: E731
    for a, b in zip(jax.grad(ours, (0, 1))(hidden, head), jax.grad(plain, (0, 1))(hidden, head), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("large", [1e3, -1e3])
def test_far_logits_stay_finite(large):
    hidden, head, targets, weights = problem()
    loss = lambda h: cross_entropy(h * large, head, targets, weights, head_is_VD=False, vocab_size=USED).loss_sum  # noqa: E731
    value, grad = jax.value_and_grad(loss)(hidden)
    assert np.isfinite(value) and np.isfinite(np.asarray(grad)).all()


def test_bfloat16_hidden_and_float32_head():
    hidden, head, targets, weights = problem()
    hidden, room = jnp.asarray(hidden, jnp.bfloat16), dict(logit_bytes=FOUR_TOKENS)
    loss = lambda h, w: cross_entropy(h, w, targets, weights, head_is_VD=False, vocab_size=USED, **room).loss_sum  # noqa: E731
    value, (d_hidden, d_head) = jax.value_and_grad(loss, (0, 1))(hidden, head)
    assert (value.dtype, d_hidden.dtype, d_head.dtype) == (jnp.float32, jnp.bfloat16, jnp.float32)
    head16 = np.asarray(jnp.asarray(head, jnp.bfloat16), np.float64)
    want = reference(np.asarray(hidden, np.float64), head16, targets, weights)[0]
    np.testing.assert_allclose(value, want, rtol=1e-5)  # the logits of these rounded inputs are float32


def test_all_weights_zero_give_zero_and_no_nan():
    hidden, head, targets, weights = problem()
    loss = lambda h: cross_entropy(h, head, targets, 0 * weights, head_is_VD=False, vocab_size=V).loss_sum  # noqa: E731
    value, grad = jax.value_and_grad(loss)(hidden)
    assert value == 0 and (np.asarray(grad) == 0).all()


def test_large_vocabularies_are_never_whole_in_memory():
    """4,096 tokens x 65,536 entries are 1 GiB of logits; the compiled gradient must not hold a quarter of that."""
    shapes = [(4, 1024, 8), (65536, 8)]
    hidden, head = (jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes)
    targets, weights = (jax.ShapeDtypeStruct((4, 1024), t) for t in (jnp.int32, jnp.float32))
    loss = lambda h, w, t, m: cross_entropy(h, w, t, m, head_is_VD=True, vocab_size=65536).loss_sum  # noqa: E731
    compiled = jax.jit(jax.grad(loss, (0, 1))).lower(hidden, head, targets, weights).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 256 * 2**20


def test_shapes_that_do_not_fit_are_refused():
    hidden, head, targets, weights = problem()
    for bad in (dict(head_is_VD=True, vocab_size=USED), dict(head_is_VD=False, vocab_size=V + 1)):
        with pytest.raises(ValueError, match="does not fit"):
            cross_entropy(hidden, head, targets, weights, **bad)
