"""Prompts to continuations: prefill and decoding loop in one compiled program."""

from __future__ import annotations

import functools
import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from maijax.config import ModelConfig
from maijax.errors import UserError
from maijax.models import decoder
from maijax.models.cache import Cache, init_cache
from maijax.serve import sampling

_ROUND = 32  # tokens; prompts and answers are padded to multiples, so that few lengths are compiled
_NOTHING = -1  # in place of a token: none was generated


class Sampling(NamedTuple):
    """How a token is chosen; traced, so that changing one compiles nothing."""

    temperature: jax.Array
    top_k: jax.Array
    top_p: jax.Array


class _Loop(NamedTuple):
    count: jax.Array  # tokens generated so far
    token_B: jax.Array  # the newest
    position_B: jax.Array  # its position in the row
    done_B: jax.Array
    cache: Cache
    answer_BN: jax.Array


def generate(
    params: Any,
    cfg: ModelConfig,
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    eos_id: int | None = None,
) -> list[list[int]]:
    """The tokens that follow each prompt: at most `max_tokens`, ended before `eos_id`, prompts not repeated.

    Temperature 0 is greedy. Draws depend on (seed, prompt, how many equal prompts stand before it) alone, not
    on what else is in the batch. LongRoPE's factors follow from prompt length + max_tokens.

    Raises: UserError for prompts or options that cannot be served.
    """
    _check(cfg, prompts, max_tokens=max_tokens, temperature=temperature, top_k=top_k, top_p=top_p)
    if not prompts:
        return []
    lengths = np.array([len(prompt) for prompt in prompts], np.int32)
    tokens = np.zeros((len(prompts), _padded(int(lengths.max()))), np.int32)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[: len(prompt)] = prompt
    choice = Sampling(
        temperature=jnp.float32(temperature),
        top_k=jnp.int32(cfg.vocab_size if top_k is None else top_k),
        top_p=jnp.float32(1.0 if top_p is None else top_p),
    )
    answers = _run(
        params, tokens, lengths, _row_seeds(prompts, seed), choice, np.int32(max_tokens),
        np.int32(_NOTHING if eos_id is None else eos_id), cfg=cfg, room=_padded(max_tokens),
    )
    return [[int(token) for token in row if token != _NOTHING] for row in np.asarray(answers)]


@functools.partial(jax.jit, static_argnames=("cfg", "room"))
def _run(
    params: Any,
    prompts_BS: jax.Array,
    lengths_B: jax.Array,
    row_seeds_B: jax.Array,
    choice: Sampling,
    limit: jax.Array,
    eos_id: jax.Array,
    *,
    cfg: ModelConfig,
    room: int,
) -> jax.Array:
    """Generated tokens [B, room] int32, `_NOTHING` after a row's end."""
    batch, width = prompts_BS.shape
    keys_B = jax.vmap(jax.random.key)(row_seeds_B)

    def choose(logits_BV: jax.Array, position_B: jax.Array) -> jax.Array:
        at_B = jax.vmap(jax.random.fold_in)(keys_B, position_B)
        return sampling.draw(logits_BV, at_B, *choice)

    def more(loop: _Loop) -> jax.Array:
        return (loop.count < limit) & ~jnp.all(loop.done_B)

    def step(loop: _Loop) -> _Loop:
        # The newest token is kept, then read by the model to find the next one.
        kept_B = jnp.where(loop.done_B, _NOTHING, loop.token_B)
        answer_BN = jax.lax.dynamic_update_slice(loop.answer_BN, kept_B[:, None], (0, loop.count))
        position_B = jnp.where(loop.done_B, -1, loop.position_B)
        logits_B1V, cache = decoder.decode(
            params, cfg, loop.cache, loop.token_B[:, None], position_B[:, None]
        )
        token_B = choose(logits_B1V[:, 0], loop.position_B + 1)
        return _Loop(
            count=loop.count + 1,
            token_B=token_B,
            position_B=loop.position_B + 1,
            done_B=loop.done_B | (token_B == eos_id),
            cache=cache,
            answer_BN=answer_BN,
        )

    cache = init_cache(cfg, batch, width + room, decoder.compute_dtype(cfg), total_B=lengths_B + limit)
    index_BS = jnp.broadcast_to(jnp.arange(width, dtype=jnp.int32)[None], (batch, width))
    positions_BS = jnp.where(index_BS < lengths_B[:, None], index_BS, -1)
    logits_B1V, cache = decoder.decode(params, cfg, cache, prompts_BS, positions_BS, pick_B=lengths_B - 1)
    token_B = choose(logits_B1V[:, 0], lengths_B)
    first = _Loop(
        count=jnp.zeros((), jnp.int32),
        token_B=token_B,
        position_B=lengths_B,
        done_B=token_B == eos_id,
        cache=cache,
        answer_BN=jnp.full((batch, room), _NOTHING, jnp.int32),
    )
    return jax.lax.while_loop(more, step, first).answer_BN


def _padded(length: int) -> int:
    return -(-length // _ROUND) * _ROUND


def _row_seeds(prompts: Sequence[Sequence[int]], seed: int) -> np.ndarray:
    """A 32-bit seed per row, [B] uint32, from the seed, the prompt's tokens and its number among equals."""
    before: Counter[tuple[int, ...]] = Counter()
    found = []
    for prompt in prompts:
        key = tuple(int(token) for token in prompt)
        digest = hashlib.sha256(repr((seed, key, before[key])).encode()).digest()
        found.append(int.from_bytes(digest[:4], "big"))
        before[key] += 1
    return np.array(found, np.uint32)


def _check(
    cfg: ModelConfig,
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
) -> None:
    if max_tokens < 1:
        raise UserError(f"max_tokens={max_tokens} must be above 0")
    if not 0 <= temperature < float("inf"):
        raise UserError(f"temperature={temperature} must be 0 (greedy) or above, and finite; try 1.0")
    if top_k is not None and top_k < 1:
        raise UserError(f"top_k={top_k} must be above 0; leave it out to keep every token")
    if top_p is not None and not 0 < top_p <= 1:
        raise UserError(f"top_p={top_p} must lie above 0 and up to 1; try 0.95")
    for i, prompt in enumerate(prompts):
        if not prompt:
            raise UserError(f"prompt {i} has no tokens; give at least one")
        bad = next((token for token in prompt if not 0 <= token < cfg.vocab_size), None)
        if bad is not None:
            raise UserError(
                f"prompt {i}: token {bad} is not in 0..{cfg.vocab_size - 1}; "
                f"encode it with the tokenizer of this model"
            )
        left = cfg.context - len(prompt)
        if max_tokens > left:
            fix = f"lower max_tokens to {left}" if left > 0 else f"keep the prompt below {cfg.context} tokens"
            raise UserError(
                f"prompt {i}: {len(prompt)} tokens + max_tokens={max_tokens} exceed "
                f"model.context={cfg.context}; {fix}"
            )
