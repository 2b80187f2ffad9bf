"""The platforms' kernels against float64: splash in Pallas's interpreter, cuDNN's call by its XLA twin."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maijax.models import kernels
from maijax.models.attention import attend
from maijax.models.flash import Rule
from tests.models.test_attention import arrays, documents, reference

WHOLE = np.zeros((1, 1), np.int32)
SHARED = np.array([[0, 3], [1, 2]])
CASES = {
    "plain": (Rule(scale=0.2, window=None, softcap=None), False),
    "all": (Rule(scale=0.2, window=37, softcap=2.0), True),
}


def value_and_gradients(function, qkv, g):
    out, back = jax.vjp(lambda qkv: function(*qkv), qkv)
    return out, *back(g)[0]


@pytest.mark.parametrize("shares", [WHOLE, SHARED], ids=["whole rows", "a late device's share"])
@pytest.mark.parametrize("case", CASES)
def test_splash_equals_the_loops_and_its_gradients_the_definition(case, shares):
    rule, packed = CASES[case]
    S, device = 256 * len(shares), len(shares) - 1
    qkv = arrays(0, B=1, S=S, H=2, G=1, K=16)
    segments = documents(1, 1, S) if packed else None
    length = S // shares.size
    mine = np.concatenate([np.arange(length) + piece * length for piece in shares[device]])
    g = jnp.asarray(np.random.default_rng(2).standard_normal((1, len(mine), 2, 16)), jnp.float32)

    def splash(q, k, v, device):
        own = None if segments is None else segments[:, mine]
        return kernels.splash_attention(q[:, mine], k, v, own, segments, rule, shares, device, interpret=True)

    def dense(q, k, v):
        given = dataclasses.asdict(rule)
        return attend(q, k, v, q_segments_BS=segments, k_segments_BT=segments, impl="dense", **given)[:, mine]

    # The device's number is known only when the program runs.
    run = jax.jit(lambda qkv, g, device: value_and_gradients(lambda *x: splash(*x, device), qkv, g))
    got = run(qkv, g, jnp.int32(device))
    want = jax.jit(lambda qkv, g: value_and_gradients(dense, qkv, g))(qkv, g)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)  # float32, sums of up to 256 keys
    two = None if segments is None else (segments, segments)
    loops = reference(*qkv, scale=rule.scale, window=rule.window, softcap=rule.softcap, segments=two)
    np.testing.assert_allclose(got[0], loops[:, mine], atol=5e-6)


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("packed", [False, True])
def test_the_call_of_cudnn_means_the_same(window, packed):
    qkv = arrays(3, S=32, H=4, G=2)
    segments = documents(4, 2, 32) if packed else None
    rule = Rule(scale=0.3, window=window, softcap=None)
    got = kernels.cudnn_attention(*qkv, segments, rule, implementation="xla")
    two = None if segments is None else (segments, segments)
    np.testing.assert_allclose(got, reference(*qkv, scale=0.3, window=window, segments=two), atol=2e-6)


def test_kernels_are_asked_only_for_what_they_can_do():
    rule, capped = (Rule(scale=1.0, window=None, softcap=cap) for cap in (None, 2.0))
    q, k, _ = arrays(5, B=1, S=256, H=2, G=1, K=8, dtype=jnp.bfloat16)
    segments = documents(6, 1, 256)
    assert kernels.cudnn_applies(q, segments, rule)
    assert not kernels.cudnn_applies(q, segments, capped)
    assert not kernels.cudnn_applies(q.astype(jnp.float32), segments, rule)
    long = jax.ShapeDtypeStruct((1, 16384, 2, 8), jnp.bfloat16)
    assert kernels.cudnn_applies(long, None, rule) and not kernels.cudnn_applies(long, segments, rule)
    assert kernels.splash_applies(q, k) and not kernels.splash_applies(q[:, :200], k)


@pytest.mark.parametrize("platform", ["xla", "tpu", "gpu"])
def test_what_no_kernel_can_do_is_done_by_xla(platform):
    rule = Rule(scale=0.3, window=7, softcap=2.0)
    qkv, segments = arrays(7, S=30), documents(8, 2, 30)
    got = kernels.Local(rule, platform).whole(*qkv, segments)
    want = reference(*qkv, scale=0.3, window=7, softcap=2.0, segments=(segments, segments))
    np.testing.assert_allclose(got, want, atol=2e-6)


@pytest.mark.parametrize("platform", ["tpu", "gpu"])
def test_a_platform_gets_its_kernel(platform, monkeypatch):
    asked = []
    for name in ("splash_attention", "cudnn_attention"):
        monkeypatch.setattr(kernels, name, functools.partial(lambda name, q, *_: (asked.append(name), q)[1], name))
    q, k, v = arrays(9, B=1, S=128, dtype=jnp.bfloat16)
    kernels.Local(Rule(scale=0.3, window=None, softcap=None), platform).whole(q, k, v, None)
    assert asked == [{"tpu": "splash_attention", "gpu": "cudnn_attention"}[platform]]
