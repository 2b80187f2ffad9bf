"""Held-out loss and bits per byte: every token of the text is predicted exactly once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from maijax.config import ModelConfig
from maijax.models import decoder
from maijax.parallel import sharding, together
from maijax.parallel.sharding import Layout
from maijax.train.loss import logit_room, token_losses


class Evaluation(NamedTuple):
    """Of some text under a model."""

    loss: float  # nats per token
    bits_per_byte: float  # of the UTF-8 text; what the tokenizer does cancels out
    tokens: int
    bytes: int


Scorer = Callable[[Any, dict[str, Any]], jax.Array]


def make_scorer(model: ModelConfig, layout: Layout, *, rows: int, seq_len: int) -> Scorer:
    """The (params, batch) -> summed negative log-likelihood, float32 [], in nats, of the weighted tokens.

    A batch is given whole, on every process; what is jitted gets those parts of it that are on devices here.
    """
    where = layout.batch((rows, seq_len))

    def score(params: Any, batch: dict[str, Any]) -> jax.Array:
        with sharding.use(layout):
            hidden_BSD, _ = decoder.hidden(params, model, batch["tokens"], batch["segments"], batch["positions"])
            head, transposed = decoder.head(params, model)
            nll_BS = token_losses(
                hidden_BSD,
                head,
                batch["targets"],
                vocab_size=model.vocab_size,
                head_is_VD=transposed,
                softcap=model.logit_softcap,
                logit_bytes=logit_room(model),
            )
            return jnp.sum(nll_BS * batch["weights"])

    jitted = jax.jit(score, in_shardings=(layout.params(model), where), out_shardings=layout.replicated())
    shape = (rows, seq_len)
    return lambda params, batch: jitted(params, together.place(where, shape, range(rows), batch))


def evaluate(scorer: Scorer, params: Any, batches: Iterable[tuple[dict[str, np.ndarray], int]]) -> Evaluation:
    """Scores (batch, bytes of text it predicts) pairs; one batch is always in flight behind the one being read."""
    sums, tokens, size = [], 0, 0
    for batch, text_bytes in batches:
        sums.append(scorer(params, batch))
        if len(sums) > 1:
            sums[-2].block_until_ready()
        tokens += int(batch["weights"].sum())
        size += text_bytes
    nll = float(sum(float(s) for s in jax.device_get(sums)))
    return Evaluation(
        loss=nll / max(tokens, 1), bits_per_byte=nll / math.log(2) / max(size, 1), tokens=tokens, bytes=size
    )
