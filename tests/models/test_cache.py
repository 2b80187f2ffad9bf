"""Decoding from a cache gives the full forward's logits, however prompts are padded and cut into chunks."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import MOE, longrope, quick, tiny, weights

from maijax.config import ModelConfig
from maijax.models import decoder
from maijax.models.cache import Cache, init_cache, write

LENGTHS = (12, 9)
TOKENS = np.random.default_rng(0).integers(0, 61, (2, 12)).astype(np.int32)
# Positions of each row, chunk by chunk, with padding (-1) on the left, on the right and in between.
CHUNKS = [
    [[0, 1, 2], [-1, 0, 1]],
    [[3, -1, -1], [2, 3, -1]],
    [[-1, 4, 5], [-1, -1, -1]],
    [[6, 7, 8], [4, 5, 6]],
    [[9, 10, 11], [7, -1, 8]],
]
STEPS = [[[min(i, 11)], [i if i < 9 else -1]] for i in range(12)]
OPTIONS = {
    "grouped": tiny(),
    "multi_head_partial_rotary": tiny(attention_kv_heads=4, attention_rope=dataclasses.replace(
        longrope(4, original=64), fraction=0.5
    )),
    "window_softcaps_qk_norm_tied": tiny(
        attention_window=4, attention_softcap=2.0, logit_softcap=3.0, attention_qk_norm=True, tied_head=True
    ),
    "mixture_after_dense_layer_norm": tiny(moe=MOE, num_layers=3, norm="layer"),
    "unrolled": tiny(layers="unroll", attention_kv_heads=1),
}


def full(params: Any, cfg: ModelConfig) -> np.ndarray:
    segments = np.arange(12)[None] < np.array(LENGTHS)[:, None]
    run = quick(lambda p: decoder.logits(p, cfg, jnp.asarray(TOKENS), jnp.asarray(segments, jnp.int32)))
    return np.asarray(run(params))


def decoded(params: Any, cfg: ModelConfig, cache: Cache, chunks: list[Any]) -> np.ndarray:
    """Logits by position, [B, 12, V]; NaN where no token was."""
    found = np.full((2, 12, cfg.vocab_size), np.nan, np.float32)
    step = quick(lambda p, c, t, at: decoder.decode(p, cfg, c, t, at))
    for chunk in chunks:
        at = np.array(chunk, np.int32)
        tokens = np.where(at >= 0, np.take_along_axis(TOKENS, np.maximum(at, 0), axis=1), 60)
        logits, cache = step(params, cache, tokens, at)
        for row, column in zip(*np.nonzero(at >= 0), strict=True):
            found[row, at[row, column]] = logits[row, column]
    return found


@pytest.mark.parametrize("name", OPTIONS)
def test_chunks_equal_the_full_forward(name: str) -> None:
    cfg = OPTIONS[name]
    params = weights(cfg)
    found = decoded(params, cfg, init_cache(cfg, 2, 16, jnp.float32), CHUNKS)
    wanted = full(params, cfg)
    for row, length in enumerate(LENGTHS):
        np.testing.assert_allclose(found[row, :length], wanted[row, :length], atol=2e-5)
        assert np.isnan(found[row, length:]).all()


def test_single_steps_equal_the_full_forward() -> None:
    cfg = OPTIONS["grouped"]
    params = weights(cfg)
    found = decoded(params, cfg, init_cache(cfg, 2, 12, jnp.float32), STEPS)
    wanted = full(params, cfg)
    for row, length in enumerate(LENGTHS):
        np.testing.assert_allclose(found[row, :length], wanted[row, :length], atol=2e-5)


def test_longrope_is_chosen_by_each_rows_total() -> None:
    cfg = tiny(attention_rope=longrope(8, original=10))
    params = weights(cfg)
    cache = init_cache(cfg, 2, 16, jnp.float32, total_B=jnp.array([12, 9]))
    found = decoded(params, cfg, cache, CHUNKS)
    long = full(params, cfg)  # 12 tokens wide: beyond 10
    short = quick(lambda p: decoder.logits(p, cfg, jnp.asarray(TOKENS[:, :9])))(params)
    np.testing.assert_allclose(found[0], long[0], atol=2e-5)
    np.testing.assert_allclose(found[1, :9], short[1], atol=2e-5)
    assert np.abs(long[1, :9] - short[1]).max() > 1e-2


def test_pick_projects_one_token_per_row() -> None:
    cfg = OPTIONS["grouped"]
    params, cache = weights(cfg), init_cache(cfg, 2, 12, jnp.float32)
    at = np.array([[0, 1, 2], [0, 1, -1]], np.int32)
    picked, _ = quick(lambda p: decoder.decode(p, cfg, cache, TOKENS[:, :3], at, pick_B=jnp.array([2, 1])))(params)
    every, _ = quick(lambda p: decoder.decode(p, cfg, cache, TOKENS[:, :3], at))(params)
    np.testing.assert_allclose(picked[:, 0], np.stack([every[0, 2], every[1, 1]]), atol=1e-6)


def test_write_drops_padding_and_what_lies_outside() -> None:
    stored, new = jnp.zeros((1, 4, 1, 1)), jnp.array([1.0, 2.0, 3.0, 4.0]).reshape(1, 4, 1, 1)
    found = write(stored, new, jnp.array([[2, -1, 0, 4]]))
    np.testing.assert_array_equal(found[0, :, 0, 0], [3.0, 0.0, 1.0, 0.0])


def test_cache_takes_the_asked_dtype_and_shape() -> None:
    cache = jax.eval_shape(lambda: init_cache(tiny(), 3, 7, jnp.bfloat16))
    assert (cache.k_LBTGK.shape, cache.k_LBTGK.dtype) == ((2, 3, 7, 2, 8), jnp.bfloat16)
