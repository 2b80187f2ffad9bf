import json
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maijax.data import store as store_module
from maijax.data.store import Damaged, Store, Writer


def test_documents_come_back(tmp_path, small_tokenizer, stories):
    writer = Writer(tmp_path / "s", small_tokenizer)
    for text in stories:
        writer.add(text, small_tokenizer.encode(text))
    meta = writer.close()
    for opened in (Store(tmp_path / "s"), pickle.loads(pickle.dumps(Store(tmp_path / "s")))):
        assert len(opened) == len(stories) == meta.documents
        assert opened.tokens.dtype == np.uint16 and opened.offsets[-1] == meta.tokens == len(opened.tokens)
        for index, text in enumerate(stories):
            assert opened[index][0] == small_tokenizer.bos and opened[index][-1] == small_tokenizer.eos
            assert small_tokenizer.decode(opened[index]) == text
            assert opened.text_bytes[index] == opened.piece_bytes[index] == len(text.encode())
        assert meta.max_token == opened.tokens.max() < small_tokenizer.vocab_size


def test_an_empty_store(numbered):
    assert len(numbered([])) == 0


@given(st.data())
def test_no_damage_goes_unnoticed(tmp_path_factory, small_tokenizer, data):
    folder = tmp_path_factory.mktemp("damage") / "s"
    writer = Writer(folder, small_tokenizer)
    for text in ("the king", "the queen went"):
        writer.add(text, small_tokenizer.encode(text))
    writer.close()
    name = data.draw(st.sampled_from(["tokens.bin", "documents.bin"]))
    content = bytearray((folder / name).read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content = content[:place]
    else:
        content[place] ^= data.draw(st.integers(1, 255))
    (folder / name).write_bytes(content)
    with pytest.raises(Damaged):
        Store(folder)


@pytest.mark.parametrize("change", ["", "{}", "[1]", None])
def test_damaged_description(numbered, change):
    folder = numbered([3]).folder
    if change is None:
        (folder / "meta.json").unlink()
    else:
        (folder / "meta.json").write_text(change)
    with pytest.raises(Damaged):
        Store(folder)


def test_another_format_is_written_again(numbered):
    path = numbered([3]).folder / "meta.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 0}))
    with pytest.raises(Damaged, match="format 0"):
        Store(path.parent)


def test_a_large_store_is_read_through_only_after_a_change(numbered, monkeypatch):
    monkeypatch.setattr(store_module, "_ALWAYS_CHECK", 0)
    folder = numbered([30, 40]).folder
    Store(folder)
    assert (folder / "checked.json").is_file()
    opened = []
    monkeypatch.setattr(store_module, "_BLOCK", 1)
    real = open
    monkeypatch.setattr("builtins.open", lambda path, *a, **k: opened.append(str(path)) or real(path, *a, **k))
    Store(folder)
    assert not any(path.endswith("tokens.bin") and "rb" in path for path in opened)
    monkeypatch.undo()
    monkeypatch.setattr(store_module, "_ALWAYS_CHECK", 0)
    content = bytearray((folder / "tokens.bin").read_bytes())
    content[7] ^= 1
    (folder / "tokens.bin").write_bytes(content)
    with pytest.raises(Damaged, match="not what was written"):
        Store(folder)


def test_a_large_vocabulary_takes_four_bytes(tmp_path, small_tokenizer):
    class Large:
        vocab_size, bos, eos = 100_000, 1, 2
        piece_bytes = np.ones(100_000, np.int32)

    writer = Writer(tmp_path / "s", Large())
    writer.add("x", np.array([99_999], np.int32))
    writer.close()
    opened = Store(tmp_path / "s")
    assert opened.tokens.dtype == np.uint32 and opened[0].tolist() == [1, 99_999, 2]
