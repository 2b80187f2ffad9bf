import pickle

import numpy as np
import pytest
import sentencepiece
from hypothesis import example, given
from hypothesis import strategies as st

from maijax.data import tokenizer
from maijax.errors import UserError

# Text as it may come: any character that UTF-8 can hold, and much of what a tokenizer treats specially.
ODD = [
    "\u2581", "<s>", "</s>", "<0x0A>", "<pad>", "  ", "\n\n\n", "\t", "\r\n", "\x00", " a", "the king", "\u2047",
    "\ufffd", "e\u0301",
]
TEXT = st.lists(st.one_of(st.text(max_size=8), st.sampled_from(ODD)), max_size=12).map("".join)


@pytest.fixture(scope="session", params=["bpe", "unigram"])
def trained(request, stories):
    return tokenizer.train(stories, vocab_size=340, kind=request.param)


@given(TEXT)
@example("\u2581\u2581 \u2581\n\u2581")
@example(" \u2581")
def test_nothing_is_lost(trained, text):
    tokens = trained.encode(text)
    assert trained.decode(tokens) == text
    assert trained.piece_bytes[tokens].sum() == len(text.encode())
    assert trained.decode([trained.bos, *tokens, trained.eos]) == text


@given(st.lists(TEXT, max_size=5))
def test_many_texts_are_encoded_like_each_alone(trained, texts):
    for text, tokens in zip(texts, trained.encode_many(texts), strict=True):
        assert tokens.tolist() == trained.encode(text).tolist()


@given(st.lists(st.sampled_from(["a", "the ", " ", "\n", "\n\n", "king", ".", "12", "  swan"]), max_size=3000))
def test_long_texts_are_cut_where_it_makes_no_difference(trained, parts):
    text = "".join(parts)
    assert trained._divisible
    assert trained.encode(text).tolist() == trained._processor.encode(text)


def test_long_line_is_cut(trained, stories):
    line = " ".join(stories).replace("\n", " ")
    assert len(trained._divided(line)) > 3
    assert trained.encode(line).tolist() == trained._processor.encode(line)


def test_ids_and_size(trained):
    assert trained.vocab_size == 340
    assert (trained.pad, trained.bos, trained.eos) == (0, 1, 2)
    assert trained.encode("\n").tolist() == [trained._processor.piece_to_id("\n")]
    assert len(trained.encode("1234")) >= 4  # digits stand alone


def test_same_texts_same_bytes(stories):
    models = {tokenizer.train(iter(stories), vocab_size=340, kind=kind).sha256 for kind in ("bpe", "bpe")}
    assert len(models) == 1
    assert tokenizer.train(stories[1:], vocab_size=340, kind="bpe").sha256 not in models


def test_survives_pickling(trained):
    assert pickle.loads(pickle.dumps(trained)).encode("the king").tolist() == trained.encode("the king").tolist()


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@pytest.mark.parametrize(
    ("size", "told"), [(100_000, r"too small for model.vocab_size=100000; set model.vocab_size=(\d+) or less"),
                       (270, r"model.vocab_size=270 is too small .* set model.vocab_size=(\d+) or more")]
)
def test_impossible_size_tells_a_possible_one(stories, kind, size, told):
    with pytest.raises(UserError, match=told) as error:
        tokenizer.train(stories, vocab_size=size, kind=kind)
    import re

    possible = int(re.search(told, str(error.value))[1])
    assert tokenizer.train(stories, vocab_size=possible, kind=kind).vocab_size == possible


def test_no_text():
    with pytest.raises(UserError, match="empty"):
        tokenizer.train(["", " "[:0]], vocab_size=300, kind="bpe")


def test_a_larger_vocabulary_than_the_models_is_refused(small_tokenizer):
    assert small_tokenizer.check(340, "t.model") is small_tokenizer
    assert small_tokenizer.check(400, "t.model") is small_tokenizer
    with pytest.raises(UserError, match=r"t\.model has 340 tokens, more than model.vocab_size=339; set .*=340"):
        small_tokenizer.check(339, "t.model")


def test_load(tmp_path, small_tokenizer):
    path = tmp_path / "t.model"
    path.write_bytes(small_tokenizer.model)
    assert tokenizer.load(path).sha256 == small_tokenizer.sha256
    path.write_bytes(b"no model at all")
    with pytest.raises(UserError, match=r"t\.model is not a sentencepiece model"):
        tokenizer.load(path)
    path.write_bytes(b"")
    with pytest.raises(UserError, match="empty"):
        tokenizer.load(path)
    with pytest.raises(UserError, match="No such file"):
        tokenizer.load(tmp_path / "none.model")


def test_foreign_models_work_too(tmp_path, stories):
    """As sentencepiece trains by default: normalised, a space before the text, unknown characters."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(stories), model_prefix=str(tmp_path / "f"), vocab_size=150, model_type="bpe",
        minloglevel=2,
    )
    foreign = tokenizer.load(tmp_path / "f.model")
    assert not foreign._divisible
    assert foreign.decode(foreign.encode("the king went")) == "the king went"
    assert foreign.pad == 0 and foreign.eos == 2 and foreign.piece_bytes.dtype == np.int32


def test_a_model_without_an_end_is_refused(tmp_path, stories):
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(stories), model_prefix=str(tmp_path / "f"), vocab_size=60, eos_id=-1, minloglevel=2
    )
    with pytest.raises(UserError, match="no eos token"):
        tokenizer.load(tmp_path / "f.model")
