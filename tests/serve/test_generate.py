"""Generation: the model's own choices, the same for a prompt in any company."""

from __future__ import annotations

import dataclasses
import importlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maijax.config import AttentionConfig, ModelConfig, RopeConfig
from maijax.errors import UserError
from maijax.models import decoder
from maijax.serve.generate import generate

CFG = ModelConfig(
    num_layers=2, d_model=32, d_ff=48, vocab_size=61, vocab_multiple=32, context=64, dtype="float32", layers="scan",
    attention=AttentionConfig(num_heads=4, kv_heads=2, head_dim=8),
)
PROMPTS = [[5, 7, 9, 11, 2], [3], [8, 8, 8]]


@pytest.fixture(scope="module")
def params() -> Any:
    return jax.jit(lambda key: decoder.init(CFG, key))(jax.random.key(0))


def greedy(params: Any, cfg: ModelConfig, prompts: list[list[int]], count: int, width: int) -> list[list[int]]:
    """Token by token with the full forward, no cache; padded at the end to `width`, which causality hides."""
    run = jax.jit(lambda p, t: jnp.argmax(decoder.logits(p, cfg, t), axis=-1))
    rows = [list(prompt) for prompt in prompts]
    for _ in range(count):
        likeliest = run(params, jnp.asarray([row + [0] * (width - len(row)) for row in rows]))
        for row, tokens in zip(rows, likeliest, strict=True):
            row.append(int(tokens[len(row) - 1]))
    return [row[len(prompt) :] for row, prompt in zip(rows, prompts, strict=True)]


def test_greedy_equals_the_full_forward_for_prompts_of_any_length(params: Any) -> None:
    found = generate(params, CFG, PROMPTS, max_tokens=7, temperature=0)
    assert found == greedy(params, CFG, PROMPTS, 7, width=12)


def test_greedy_with_longrope_knows_the_length_to_come(params: Any) -> None:
    rope = RopeConfig(original_context=8, short_factor=(1.0, 1.1, 1.2, 1.3), long_factor=(1.5, 2.0, 3.0, 4.0))
    cfg = dataclasses.replace(CFG, attention=dataclasses.replace(CFG.attention, rope=rope))
    long, short = generate(params, cfg, PROMPTS[:2], max_tokens=7, temperature=0)  # 12 and 8 tokens in the end
    assert [long] == greedy(params, cfg, PROMPTS[:1], 7, width=12)
    assert [short] == greedy(params, cfg, PROMPTS[1:2], 7, width=8)


def test_draws_depend_on_seed_and_prompt_not_on_company(params: Any) -> None:
    options = dict(max_tokens=7, temperature=1.0, top_k=40, top_p=0.95)
    first = generate(params, CFG, PROMPTS, seed=1, **options)
    assert first == generate(params, CFG, PROMPTS, seed=1, **options)
    assert first[::-1] == generate(params, CFG, PROMPTS[::-1], seed=1, **options)
    assert first[1:2] == generate(params, CFG, PROMPTS[1:2], seed=1, **options)
    assert first != generate(params, CFG, PROMPTS, seed=2, **options)
    twins = generate(params, CFG, [PROMPTS[0], PROMPTS[0], PROMPTS[2]], seed=1, **options)
    assert twins[0] == first[0] != twins[1]


def test_stops_before_the_end_of_text(params: Any) -> None:
    free = generate(params, CFG, PROMPTS, max_tokens=7, temperature=0)
    end = free[0][3]
    found = generate(params, CFG, PROMPTS, max_tokens=7, temperature=0, eos_id=end)
    assert found == [row[: row.index(end)] if end in row else row for row in free]
    assert len(found[0]) <= 3


def test_first_token_frequencies_are_the_models(params: Any) -> None:
    """Twins draw independently: their first tokens follow softmax(logits)."""
    prompt, draws = [4, 2], 600
    found = generate(params, CFG, [prompt] * draws, max_tokens=1, temperature=1.0)
    seen = np.bincount([row[0] for row in found], minlength=CFG.vocab_size)
    logits = jax.jit(lambda p: decoder.logits(p, CFG, jnp.array([prompt])))(params)[0, -1]
    wanted = draws * np.asarray(jax.nn.softmax(logits), np.float64)
    chi2 = float(((seen - wanted) ** 2 / wanted).sum())
    degrees = CFG.vocab_size - 1
    assert chi2 < degrees + 5 * (2 * degrees) ** 0.5


def test_draws_of_a_row_are_independent(params: Any) -> None:
    """A head of zeros makes every token equally likely: neighbours agree once in 61 times."""
    indifferent = params | {"head": {"w_head": jnp.zeros_like(params["head"]["w_head"])}}
    found = np.array(generate(indifferent, CFG, [[4, 2]] * 600, max_tokens=6, temperature=1.0))
    agreed, pairs = int((found[:, 1:] == found[:, :-1]).sum()), found[:, 1:].size
    assert abs(agreed - pairs / 61) < 5 * (pairs / 61) ** 0.5


def test_options_and_batches_of_a_size_share_one_program(params: Any) -> None:
    run = importlib.import_module("maijax.serve.generate")._run
    generate(params, CFG, PROMPTS, max_tokens=3, temperature=0)
    before = run._cache_size()
    generate(params, CFG, [[1], [2, 3], [4] * 9], max_tokens=9, temperature=0.5, top_k=3, top_p=0.5, eos_id=4, seed=9)
    assert run._cache_size() == before


def test_no_prompts_no_answers(params: Any) -> None:
    assert generate(params, CFG, [], max_tokens=3) == []


@pytest.mark.parametrize(
    ("prompts", "options", "told"),
    [
        ([[1], []], {}, "prompt 1 has no tokens; give at least one"),
        ([[1, 61]], {}, "prompt 0: token 61 is not in 0..60"),
        ([[1, -1]], {}, "prompt 0: token -1 is not in 0..60"),
        ([[1] * 60], {}, "60 tokens + max_tokens=5 exceed model.context=64; lower max_tokens to 4"),
        ([[1] * 64], {}, "keep the prompt below 64 tokens"),
        ([[1]], {"max_tokens": 0}, "max_tokens=0 must be above 0"),
        ([[1]], {"temperature": -1.0}, "temperature=-1.0 must be 0"),
        ([[1]], {"temperature": float("nan")}, "temperature=nan must be 0"),
        ([[1]], {"top_k": 0}, "top_k=0 must be above 0"),
        ([[1]], {"top_p": 0.0}, "top_p=0.0 must lie above 0"),
        ([[1]], {"top_p": 1.5}, "top_p=1.5 must lie above 0"),
    ],
)
def test_bad_input_is_one_clear_line(params: Any, prompts: list[list[int]], options: dict, told: str) -> None:
    with pytest.raises(UserError) as caught:
        generate(params, CFG, prompts, **{"max_tokens": 5} | options)
    assert told in str(caught.value) and "\n" not in str(caught.value)
