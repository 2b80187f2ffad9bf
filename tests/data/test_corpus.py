import json
import multiprocessing
import os

import pytest

from maijax.config import DataConfig, SourceConfig
from maijax.data import cachedir, corpus, sources, tokenizer
from maijax.errors import UserError


def write(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def config(*paths, **more):
    return DataConfig(sources=tuple(SourceConfig(uri=str(path)) for path in paths), **{"held_out": 0.2, **more})


def texts_of(store, tokens):
    return [tokens.decode(store[i]) for i in range(len(store))]


@pytest.fixture
def file(tmp_path, stories):
    return write(tmp_path / "a.jsonl", stories)


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def readings(monkeypatch):
    """Counts how often a source is read from its beginning."""
    seen, real = [], sources.documents
    monkeypatch.setattr(sources, "documents", lambda uri, **k: seen.append(uri) or real(uri, **k))
    return seen


def test_every_document_is_on_one_side_with_its_text(file, cache, stories):
    found = corpus.prepare(config(file), vocab_size=320, cache=cache)
    (part,) = found.parts
    train, held_out = (texts_of(store, found.tokenizer) for store in (part.train, part.held_out))
    assert sorted(train + held_out) == sorted(stories)
    assert not set(train) & set(held_out) and 2 <= len(held_out) <= 16
    assert found.tokenizer.vocab_size == 320


def test_the_tokenizer_never_sees_what_is_held_out(file, cache, monkeypatch):
    seen, real = [], tokenizer.train
    monkeypatch.setattr(tokenizer, "train", lambda texts, **k: real(seen.extend(texts) or list(seen), **k))
    found = corpus.prepare(config(file), vocab_size=320, cache=cache)
    assert sorted(seen) == sorted(texts_of(found.parts[0].train, found.tokenizer))


def test_a_large_corpus_is_sampled_for_the_tokenizer(file, cache, monkeypatch, stories):
    size = sum(len(text.encode()) for text in stories)
    monkeypatch.setattr(corpus, "_TOKENIZER_BYTES", size // 3)
    seen, real = [], tokenizer.train
    monkeypatch.setattr(tokenizer, "train", lambda texts, **k: real(seen.extend(texts) or list(seen), **k))
    corpus.prepare(config(file), vocab_size=300, cache=cache)
    assert 3 <= len(seen) <= 25
    monkeypatch.setattr(corpus, "_TOKENIZER_BYTES", 0)
    seen.clear()
    corpus.prepare(config(file), vocab_size=305, cache=cache)
    assert len(seen) == 1


def test_warm_opening_reads_nothing(file, cache, readings):
    cold = corpus.prepare(config(file), vocab_size=320, cache=cache)
    read = len(readings)
    warm = corpus.prepare(config(file), vocab_size=320, cache=cache)
    assert len(readings) == read == 3  # scanned, trained on, tokenised
    assert warm.parts[0].train.meta == cold.parts[0].train.meta
    assert warm.tokenizer.sha256 == cold.tokenizer.sha256
    assert warm.parts[0].digest == cold.parts[0].digest


def test_a_change_is_noticed(file, cache, readings, stories):
    before = corpus.prepare(config(file), vocab_size=320, cache=cache)
    content = file.read_bytes()
    seen = file.stat()
    file.write_bytes(content.replace(b"king", b"ring", 1))
    os.utime(file, ns=(seen.st_atime_ns, seen.st_mtime_ns))  # same size, same time
    after = corpus.prepare(config(file), vocab_size=320, cache=cache)
    assert after.parts[0].digest != before.parts[0].digest
    file.write_bytes(content)
    readings.clear()
    again = corpus.prepare(config(file), vocab_size=320, cache=cache)
    assert again.parts[0].digest == before.parts[0].digest and len(readings) == 1  # read, found again by content
    assert again.parts[0].train.folder == before.parts[0].train.folder


def test_a_new_file_in_a_folder_is_noticed(tmp_path, cache, stories):
    folder = tmp_path / "folder"
    folder.mkdir()
    write(folder / "a.jsonl", stories[:30])
    count = corpus.prepare(config(folder), vocab_size=300, cache=cache).parts[0].train.meta.documents
    write(folder / "b.jsonl", stories[30:])
    assert corpus.prepare(config(folder), vocab_size=300, cache=cache).parts[0].train.meta.documents > count


def test_the_same_text_in_another_file_is_the_same_corpus(tmp_path, file, cache, stories):
    other = tmp_path / "texts"
    other.mkdir()
    for number, text in enumerate(stories):
        (other / f"{number:02}.txt").write_text(text)
    a, b = (corpus.prepare(config(path), vocab_size=320, cache=cache) for path in (file, other))
    assert a.parts[0].digest == b.parts[0].digest and a.parts[0].train.folder == b.parts[0].train.folder


@pytest.mark.parametrize("name", ["tokens.bin", "documents.bin", "meta.json"])
@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: bytes([b[0] ^ 1]) + b[1:], None])
def test_damaged_stores_are_made_again_and_told(file, cache, name, damage, caplog):
    cold = corpus.prepare(config(file), vocab_size=320, cache=cache)
    path = cold.parts[0].train.folder / name
    content = path.read_bytes()
    if damage:
        path.write_bytes(damage(content))
    else:
        path.unlink()
    again = corpus.prepare(config(file), vocab_size=320, cache=cache)
    assert again.parts[0].train.meta == cold.parts[0].train.meta and path.read_bytes() == content
    assert "made again" in caplog.text
    assert not [left for left in path.parents[1].parent.iterdir() if left.name.startswith(".")]


def test_a_damaged_tokenizer_or_index_is_made_again(file, cache):
    cold = corpus.prepare(config(file), vocab_size=320, cache=cache)
    for pattern in ("tokenizers/*", "index/*.json"):
        (path,) = cache.glob(pattern)
        for content in (b"", path.read_bytes()[:-9]):
            path.write_bytes(content)
            again = corpus.prepare(config(file), vocab_size=320, cache=cache)
            assert again.tokenizer.sha256 == cold.tokenizer.sha256
            assert again.parts[0].train.meta == cold.parts[0].train.meta


def test_a_named_tokenizer(tmp_path, file, cache, small_tokenizer):
    path = tmp_path / "t.model"
    path.write_bytes(small_tokenizer.model)
    for _ in range(2):
        found = corpus.prepare(config(file, tokenizer=str(path)), vocab_size=512, cache=cache)
        assert found.tokenizer.sha256 == small_tokenizer.sha256
    with pytest.raises(UserError, match="has 340 tokens, more than model.vocab_size=300"):
        corpus.prepare(config(file, tokenizer=str(path)), vocab_size=300, cache=cache)
    path.write_bytes(tokenizer.train(["the king went"] * 9, vocab_size=272, kind="unigram").model)
    assert corpus.prepare(config(file, tokenizer=str(path)), vocab_size=512, cache=cache).tokenizer.vocab_size == 272


def test_several_sources_share_a_tokenizer_and_a_division(tmp_path, cache, stories):
    one = write(tmp_path / "one.jsonl", stories[:25])
    two = write(tmp_path / "two.jsonl", stories[15:])
    found = corpus.prepare(config(one, two), vocab_size=320, cache=cache)
    train = {text for part in found.parts for text in texts_of(part.train, found.tokenizer)}
    held_out = {text for part in found.parts for text in texts_of(part.held_out, found.tokenizer)}
    assert train | held_out == set(stories) and not train & held_out


def test_counts_are_told(tmp_path, cache, stories):
    path = tmp_path / "a.txt"
    path.write_bytes("\n<|endoftext|>\n".join([*stories[:9], "", " "]).encode() + b"\n\xff\n<|endoftext|>\nmore\n")
    with pytest.raises(UserError, match="invalid UTF-8"):
        corpus.prepare(config(path), vocab_size=305, cache=cache)
    for _ in range(2):  # also from the index
        (part,) = corpus.prepare(config(path, errors="replace"), vocab_size=305, cache=cache).parts
        assert (part.empty, part.replaced) == (1, 1)


def test_what_cannot_be_divided_or_trained_on(tmp_path, cache, stories):
    for texts, told in (
        ([], "is empty: it holds no document"), (["", "\n"], "is empty"), (["one", "one"], "1 different document"),
        (stories[:2], "too small for model.vocab_size=4000; set model.vocab_size="),
    ):
        with pytest.raises(UserError, match=told):
            corpus.prepare(config(write(tmp_path / "b.jsonl", texts)), vocab_size=4000, cache=cache)


def test_a_file_that_changes_while_it_is_read(file, cache, monkeypatch, stories):
    real = corpus._stores

    def meanwhile(*args):
        write(file, [*stories[:-1], "another end"])
        return real(*args)

    monkeypatch.setattr(corpus, "_stores", meanwhile)
    with pytest.raises(UserError, match=r"a\.jsonl changed while it was read; run again"):
        corpus.prepare(config(file), vocab_size=320, cache=cache)


def _prepare(file, cache, results):
    results.put(corpus.prepare(config(file), vocab_size=320, cache=cache).parts[0].train.meta.digest)


def test_two_writers_at_once(file, cache):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    writers = [context.Process(target=_prepare, args=(file, cache, results)) for _ in range(3)]
    for writer in writers:
        writer.start()
    digests = {results.get(timeout=60) for _ in writers}
    for writer in writers:
        writer.join(60)
    assert len(digests) == 1 and all(writer.exitcode == 0 for writer in writers)
    assert len(list((cache / "stores").iterdir())) == 1


def test_whole_source_for_evaluation(file, cache, small_tokenizer, stories, readings):
    source = SourceConfig(uri=str(file))
    for _ in range(2):
        store = corpus.prepare_whole(source, small_tokenizer, errors="strict", cache=cache)
        assert texts_of(store, small_tokenizer) == stories
    assert len(readings) == 3  # scanned, tokenised; scanned


def test_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MAIJAX_CACHE", str(tmp_path / "c"))
    assert cachedir.default() == tmp_path / "c"
    assert cachedir.ready(cachedir.default()).stat().st_mode & 0o777 == 0o700
    monkeypatch.delenv("MAIJAX_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cachedir.default() == tmp_path / ".cache" / "maijax"
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cache folder .*file/below cannot be made .*MAIJAX_CACHE"):
        cachedir.ready(tmp_path / "file" / "below")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(UserError, match="not writable; set MAIJAX_CACHE"):
        cachedir.ready(tmp_path / "c")


def test_an_interrupted_writer_leaves_nothing(tmp_path):
    final = tmp_path / "stores" / "abc"
    with pytest.raises(KeyboardInterrupt):
        with cachedir.fresh_folder(final) as folder:
            (folder / "half").write_text("x")
            raise KeyboardInterrupt
    assert list(final.parent.iterdir()) == []
    (final.parent / ".abc.dead").mkdir()  # killed outright, it could not clean up: the next one does
    with cachedir.fresh_folder(final) as folder:
        (folder / "whole").write_text("x")
    assert [path.name for path in final.parent.iterdir()] == ["abc"]
    with cachedir.fresh_folder(final) as folder:
        (folder / "new").write_text("y")
    assert [path.name for path in final.iterdir()] == ["new"]
