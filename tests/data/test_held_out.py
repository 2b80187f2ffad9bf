from collections import Counter

import numpy as np
import pytest
import sentencepiece
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from maijax.data import tokenizer
from maijax.data.held_out import HeldOut
from maijax.data.store import Store, Writer
from maijax.errors import UserError

ours = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
LENGTHS = st.lists(st.lists(st.integers(1, 30), max_size=6), min_size=1, max_size=3)


def write(folder, tokens, texts) -> Store:
    writer = Writer(folder, tokens)
    for text in texts:
        writer.add(text, tokens.encode(text))
    writer.close()
    return Store(folder)


@ours
@given(lengths=LENGTHS, seq_len=st.integers(1, 40), batch_size=st.integers(1, 5))
def test_every_token_is_scored_once(numbered, numbers, lengths, seq_len, batch_size):
    stores = [numbered(of_store) for of_store in lengths]
    rows = HeldOut(stores, numbers, seq_len=seq_len)
    if not any(lengths):
        with pytest.raises(UserError, match="no text to score"):
            next(rows.batches(batch_size))
        return
    scored, text_bytes = Counter(), 0
    for batch, of_batch in rows.batches(batch_size):
        assert all(array.shape == (batch_size, seq_len) for array in batch.values())
        on = batch["weights"] == 1
        assert ((batch["segments"] > 0) | ~on).all()
        scored.update(batch["targets"][on].tolist())
        text_bytes += of_batch
    wanted = Counter(np.concatenate([store.tokens for store in stores if len(store)]).tolist())
    del wanted[1]  # BOS
    assert scored == wanted
    assert sum(scored.values()) == rows.tokens
    assert text_bytes == rows.text_bytes == sum(map(sum, lengths))


@ours
@given(limit=st.integers(1, 60), batch_size=st.integers(1, 12))
def test_a_limit(numbered, numbers, limit, batch_size):
    rows = HeldOut([numbered([30, 4, 17, 50])], numbers, seq_len=6)
    whole = list(rows.batches(batch_size, limit))
    on = sum((batch["segments"].any(axis=1)).sum() for batch, _ in whole)
    assert on == min(limit, len(rows))
    # One byte for each token here, none for the ends: the bytes are those of the scored tokens.
    scored = np.concatenate([batch["targets"][batch["weights"] == 1] for batch, _ in whole])
    assert sum(found for _, found in whole) == (scored > 2).sum()
    assert len(set(scored.tolist()) - {2}) == (scored > 2).sum()


@pytest.mark.parametrize("seq_len", [1, 3, 7, 64, 1000])
def test_bytes_of_real_text(tmp_path, small_tokenizer, stories, seq_len):
    texts = [*stories[:5], "é漢 \u2581 \U0001f600\n\t x"]
    rows = HeldOut([write(tmp_path / "s", small_tokenizer, texts)], small_tokenizer, seq_len=seq_len)
    found = [rows[i] for i in range(len(rows))]
    assert sum(text_bytes for _, text_bytes in found) == sum(len(text.encode()) for text in texts)
    for row, text_bytes in found:  # each row's bytes are those of its tokens, wherever it cuts a document
        scored = row["targets"][row["weights"] == 1]
        assert text_bytes == small_tokenizer.piece_bytes[scored].sum()


@pytest.mark.parametrize("seq_len", [1, 5, 1000])
def test_a_tokenizer_that_changes_the_text_still_counts_the_texts_bytes(tmp_path, stories, seq_len):
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(stories), model_prefix=str(tmp_path / "f"), vocab_size=150, model_type="bpe",
        minloglevel=2,
    )
    foreign = tokenizer.load(tmp_path / "f.model")
    texts = [*stories[:4], "漢漢", "  spaces   that  are   lost "]
    store = write(tmp_path / "s", foreign, texts)
    assert (store.text_bytes != store.piece_bytes).any()
    rows = HeldOut([store], foreign, seq_len=seq_len)
    found = [rows[i][1] for i in range(len(rows))]
    assert sum(found) == sum(len(text.encode()) for text in texts) and min(found) >= 0
