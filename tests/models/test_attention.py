"""Attention against float64 loops; causality and isolation of documents by gradients that are exactly 0."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maijax.models import attention, flash

STATIC = ("impl", "scale", "window", "softcap")
attend = jax.jit(attention.attend, static_argnames=STATIC)  # one compilation per case, not one per operation


def reference(q, k, v, *, scale, window=None, softcap=None, segments=None, positions=None):
    """Return the same by plain loops in float64; segments and positions are (of queries, of keys)."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    (B, S, H, _), (T, G) = q.shape, k.shape[1:3]
    positions = positions or (np.tile(np.arange(S), (B, 1)), np.tile(np.arange(T), (B, 1)))
    out = np.zeros_like(q)
    for b in range(B):
        for h in range(H):
            for i in range(S):
                age = int(positions[0][b, i]) - np.asarray(positions[1][b], np.int64)
                seen = (age >= 0) & (age < (window or T + S + 10**6))
                if segments is not None:
                    seen &= np.asarray(segments[1][b]) == int(segments[0][b, i])
                s = k[b, seen, h // (H // G)] @ q[b, i, h] * scale
                s = softcap * np.tanh(s / softcap) if softcap else s
                if seen.any():
                    p = np.exp(s - s.max())
                    out[b, i, h] = p / p.sum() @ v[b, seen, h // (H // G)]
    return out


def arrays(seed, B=2, S=37, T=None, H=4, G=2, K=8, dtype=np.float32):
    rng = np.random.default_rng(seed)
    shapes = [(B, S, H, K), (B, T or S, G, K), (B, T or S, G, K)]
    return [jnp.asarray(rng.standard_normal(s), dtype) for s in shapes]


def documents(seed, B, S, count=4):
    return jnp.asarray(np.sort(np.random.default_rng(seed).integers(0, count, (B, S)), axis=1), jnp.int32)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks of 16 queries, so that few tokens already make several blocks and an odd last one; tiles of 8."""
    monkeypatch.setattr(attention, "_BLOCK", 16)
    monkeypatch.setattr(flash, "TILE", 8)


CASES = {
    "plain": {},
    "window": dict(window=5),
    "window wider than a block": dict(window=21),
    "window wider than the row": dict(window=1000),
    "softcap": dict(softcap=1.5),
    "documents": dict(documents=True),
    "all": dict(window=7, softcap=2.0, documents=True),
}


@pytest.mark.parametrize("impl", ["dense", "blocked", "tiled"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("heads", [(4, 2), (3, 1)])
def test_every_implementation_equals_the_loops(impl, case, heads):
    kw = dict(CASES[case])
    q, k, v = arrays(0, H=heads[0], G=heads[1])
    seg = documents(1, *q.shape[:2]) if kw.pop("documents", False) else None
    got = attend(q, k, v, scale=0.7, impl=impl, q_segments_BS=seg, k_segments_BT=seg, **kw)
    want = reference(q, k, v, scale=0.7, segments=None if seg is None else (seg, seg), **kw)
    np.testing.assert_allclose(got, want, atol=2e-6)  # float32


@pytest.mark.parametrize("length", [1, 16, 17, 300])
def test_any_length(length):
    q, k, v = arrays(2, B=1, S=length, H=2, G=1, K=4)
    np.testing.assert_allclose(attend(q, k, v, scale=0.5), reference(q, k, v, scale=0.5), atol=2e-6)


def test_more_blocks_than_the_limit_grow_in_size():
    sizes = [b.stop - b.start for b in attention._blocks(16 * 40 + 3, None)]
    assert len(sizes) <= attention._MOST_BLOCKS and sum(sizes) == 16 * 40 + 3


def test_blocks_reach_no_further_back_than_the_window():
    # the first query of the block at 32 sees 32 - 5 + 1 = 28 at the earliest
    assert [b.first_key for b in attention._blocks(40, 5)] == [0, 12, 28]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("heads", [(4, 2)])
def test_gradients_of_all_agree_with_each_other_and_with_finite_differences(case, heads):
    kw = dict(CASES[case])
    with jax.enable_x64(True):
        q, k, v = arrays(3, B=1, S=35, H=heads[0], G=heads[1], K=3, dtype=np.float64)
        seg = documents(4, 1, 35) if kw.pop("documents", False) else None
        weight = jnp.asarray(np.random.default_rng(5).standard_normal(q.shape))

        def loss(qkv, impl):
            o = attend(*qkv, scale=0.7, impl=impl, q_segments_BS=seg, k_segments_BT=seg, **kw)
            return jnp.sum(o * weight)

        gradient = jax.jit(jax.grad(loss), static_argnums=1)
        dense, blocked, tiled = (gradient((q, k, v), impl) for impl in ("dense", "blocked", "tiled"))
        for a, b in (*zip(dense, blocked, strict=True), *zip(dense, tiled, strict=True)):
            np.testing.assert_allclose(a, b, atol=3e-6)  # scores and sums are float32 even here

    # finite differences of the float64 loops
    direction = [np.random.default_rng(6 + n).standard_normal(x.shape) for n, x in enumerate((q, k, v))]
    step, ends = 1e-5, []
    for sign in (1, -1):
        moved = [np.asarray(x) + sign * step * d for x, d in zip((q, k, v), direction, strict=True)]
        o = reference(*moved, scale=0.7, segments=None if seg is None else (seg, seg), **kw)
        ends.append(np.sum(o * np.asarray(weight)))
    slope = sum(np.sum(np.asarray(g) * d) for g, d in zip(blocked, direction, strict=True))
    np.testing.assert_allclose(slope, (ends[0] - ends[1]) / (2 * step), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("impl", ["dense", "blocked", "tiled"])
def test_no_gradient_flows_from_a_query_to_later_keys_older_than_the_window_or_of_another_document(impl):
    q, k, v = arrays(7, B=1, S=40, H=2, G=1, K=4)
    seg = jnp.asarray([[0] * 10 + [1] * 30], jnp.int32)
    query = 27

    def one_output(kv):
        o = attend(q, *kv, scale=0.7, impl=impl, window=12, q_segments_BS=seg, k_segments_BT=seg)
        return jnp.sum(jnp.sin(o[:, query]))

    for g in jax.grad(one_output)((k, v)):
        touched = np.flatnonzero(np.abs(np.asarray(g)).sum((0, 2, 3)))
        assert touched.tolist() == list(range(query - 12 + 1, query + 1))
    in_document = jax.grad(lambda kv: jnp.sum(attend(q, *kv, scale=0.7, impl=impl, q_segments_BS=seg,
                                                     k_segments_BT=seg)[:, 15] ** 2))((k, v))  # fmt: skip
    for g in in_document:
        assert np.flatnonzero(np.abs(np.asarray(g)).sum((0, 2, 3))).tolist() == list(range(10, 16))


@pytest.mark.parametrize("window", [None, 6])
@pytest.mark.parametrize("new_tokens", [1, 3])
def test_decoding_from_a_cache_equals_the_whole_row(window, new_tokens):
    q, k, v = arrays(8, B=2, S=20, H=4, G=2)
    whole = attend(q, k, v, scale=0.7, window=window)
    slots, used = 32, 20  # unused slots hold rubbish and lie in the future
    rubbish = [jnp.full((2, slots - used, *x.shape[2:]), 1e3) for x in (k, v)]
    cached = [jnp.concatenate([x, r], axis=1) for x, r in zip((k, v), rubbish, strict=True)]
    positions = jnp.where(jnp.arange(slots) < used, jnp.arange(slots), 2**30)
    got = attend(
        q[:, used - new_tokens :],
        *cached,
        scale=0.7,
        window=window,
        q_positions_BS=jnp.tile(jnp.arange(used - new_tokens, used), (2, 1)),
        k_positions_BT=jnp.tile(positions, (2, 1)),
    )
    np.testing.assert_allclose(got, whole[:, used - new_tokens :], atol=2e-6)


@pytest.mark.parametrize("impl", ["dense", "blocked", "tiled"])
def test_a_query_that_sees_nothing_gets_zero_and_sends_back_zero(impl):
    q, k, v = arrays(9, B=1, S=18)
    q_seg = jnp.zeros((1, 18), jnp.int32).at[:, 5].set(9)  # query 5 belongs to no document
    k_seg = jnp.zeros((1, 18), jnp.int32)
    f = lambda q, k, v: attend(q, k, v, scale=0.7, impl=impl, q_segments_BS=q_seg, k_segments_BT=k_seg)  # noqa: E731
    assert (np.asarray(f(q, k, v))[:, 5] == 0).all()
    grads = jax.grad(lambda *x: jnp.sum(f(*x) ** 2), argnums=(0, 1, 2))(q, k, v)
    assert all(np.isfinite(np.asarray(g)).all() for g in grads)
    assert (np.asarray(grads[0])[:, 5] == 0).all()


@pytest.mark.parametrize("impl", ["dense", "blocked", "tiled"])
def test_huge_scores_stay_finite(impl):
    q, k, v = arrays(10, B=1, S=20)
    o, pull = jax.vjp(lambda q, k, v: attend(q, k, v, scale=1e4, impl=impl), q, k, v)
    assert np.isfinite(np.asarray(o)).all() and all(np.isfinite(np.asarray(g)).all() for g in pull(o))


@pytest.mark.parametrize("impl", ["dense", "blocked", "tiled"])
def test_bfloat16_inputs_keep_a_float32_softmax(impl):
    q, k, v = (x.astype(jnp.bfloat16) for x in arrays(11, B=1, S=64, H=2, G=2))
    o = attend(q, k, v, scale=0.7, impl=impl)
    assert o.dtype == jnp.bfloat16
    want = reference(*(x.astype(jnp.float32) for x in (q, k, v)), scale=0.7)
    np.testing.assert_allclose(np.asarray(o, np.float32), want, atol=0.02)  # 2 roundings of 2^-8, values up to 3
    grads = jax.grad(lambda *x: jnp.sum(attend(*x, scale=0.7, impl=impl).astype(jnp.float32)), (0, 1, 2))(q, k, v)
    assert all(g.dtype == jnp.bfloat16 for g in grads)


def test_works_under_jit_vmap_scan_and_remat():
    q, k, v = arrays(12, B=3, S=20)
    seg = documents(13, 3, 20)
    f = lambda q, k, v, s: attend(q, k, v, scale=0.7, q_segments_BS=s, k_segments_BT=s)  # noqa: E731
    want = jax.grad(lambda q: jnp.sum(f(q, k, v, seg) ** 2))(q)

    def row(q, k, v, s):
        return jnp.sum(f(q[None], k[None], v[None], s[None]) ** 2)

    by_vmap = jax.jit(jax.grad(lambda q: jnp.sum(jax.vmap(row)(q, k, v, seg))))(q)
    scanned = lambda q: jax.lax.scan(lambda c, x: (c + jax.checkpoint(row)(*x), None), 0.0, (q, k, v, seg))[0]  # noqa: E731
    for got in (by_vmap, jax.jit(jax.grad(scanned))(q)):
        np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(H=3), "do not fit"),
        (dict(q_segments_BS=jnp.zeros((2, 37), jnp.int32)), "alike"),
        (dict(q_positions_BS=jnp.zeros((2, 37), jnp.int32)), "alike"),
        (dict(impl="flash"), "flash"),
        (dict(window=0), "at least 1"),
        (dict(impl="blocked", T=40), "does not apply"),
        (dict(impl="tiled", T=40), "does not apply"),
    ],
)
def test_what_cannot_be_is_refused(change, message):
    shape = {key: change.pop(key) for key in ("H", "T") if key in change}
    with pytest.raises(ValueError, match=message):
        attend(*arrays(14, **shape), scale=1.0, **change)
