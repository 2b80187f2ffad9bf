"""Corpora made ready for training: read once, divided, tokenised, and found again as long as no file changes.

The cache folder holds, each under a hash of what decides it:
    tfds/        the stories as TFDS keeps them
    tokenizers/  models trained on a corpus, by its content and the settings
    stores/      tokenised documents, by their content, the division and the tokenizer
    index/       which of these belong to a data configuration, and the sizes and times of the files then read
"""

from __future__ import annotations

import array
import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece

from maijax.config import DataConfig, SourceConfig
from maijax.data import cachedir, sources, split, store, tfds_source, tokenizer
from maijax.data.progress import progress
from maijax.data.store import Store
from maijax.data.tokenizer import Tokenizer
from maijax.errors import DataError

_INDEX = 1  # goes up when the index means something else
_TOKENIZER_BYTES = 64 * 2**20  # of text that a tokenizer is trained on, at most
_BATCH = 2**20  # characters encoded at once
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scan:
    """What one reading of a source found."""

    digest: str  # of all documents in their order
    hashes: np.ndarray  # [documents] uint64, of each document's content
    text_bytes: int
    empty: int  # documents left out because they hold no text
    replaced: int  # characters in the place of invalid UTF-8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """One source, ready."""

    uri: str
    digest: str
    empty: int
    replaced: int
    train: Store
    held_out: Store


@dataclasses.dataclass(frozen=True, kw_only=True)
class Corpus:
    """All sources of a data configuration, ready."""

    tokenizer: Tokenizer
    parts: tuple[Part, ...]


def prepare(data: DataConfig, *, vocab_size: int, cache: Path) -> Corpus:
    """Reads, divides and tokenises what was not yet, or has changed; otherwise only opens it.

    Raises: UserError for bad sources and for a tokenizer that does not fit.
    """
    cache = cachedir.ready(cache)
    key = _key(
        [
            _INDEX,
            store.FORMAT,
            tokenizer.RECIPE,
            sentencepiece.__version__,
            vocab_size,
            data.held_out,
            data.errors,
            data.tokenizer and _absolute(data.tokenizer),
            data.tokenizer_kind,
            os.environ.get("TFDS_DATA_DIR"),
            [[_absolute(source.uri), source.field] for source in data.sources],
        ]
    )
    if found := _from_index(data, key, vocab_size, cache):
        return found
    with cachedir.locked(cache, f"index-{key}"):
        return _from_index(data, key, vocab_size, cache) or _read(data, key, vocab_size, cache)


def prepare_whole(source: SourceConfig, tokens: Tokenizer, *, errors: sources.Errors, cache: Path) -> Store:
    """All documents of one source, none held out, tokenised; for evaluation."""
    cache = cachedir.ready(cache)
    scan = _scan(source, errors, cache)
    if not len(scan.hashes):
        raise DataError(f"data source {source.uri} is empty: it holds no document with text")
    return _stores(source, scan, np.zeros(len(scan.hashes), bool), tokens, errors, cache)[0]


def _from_index(data: DataConfig, key: str, vocab_size: int, cache: Path) -> Corpus | None:
    """What an earlier preparation left, if no file has changed since."""
    try:
        index = json.loads((cache / "index" / f"{key}.json").read_text())
    except (OSError, ValueError):
        return None
    for source, files in zip(data.sources, index["files"], strict=True):
        # The files of a TFDS dataset are known without importing TFDS; a folder may have new ones.
        known = tfds_source.is_tfds(source.uri)
        now = [Path(name) for name, *_ in files] if known else sources.files(source.uri, cache)
        if _stamps(now) != files:
            return None
    if data.tokenizer:
        tokens = tokenizer.load(Path(data.tokenizer)).check(vocab_size, data.tokenizer)
        if tokens.sha256 != index["tokenizer"]:
            return None
    else:
        tokens = _cached_tokenizer(cache / "tokenizers" / index["tokenizer_file"])
        if tokens is None or tokens.sha256 != index["tokenizer"]:
            return None
    parts = []
    for source, part in zip(data.sources, index["parts"], strict=True):
        folder = cache / "stores" / part.pop("store")
        try:
            parts.append(
                Part(
                    uri=source.uri, **part, train=Store(folder / "train"), held_out=Store(folder / "held_out")
                )
            )
        except store.Damaged:
            return None  # told when it is made again
    return Corpus(tokenizer=tokens, parts=tuple(parts))


def _read(data: DataConfig, key: str, vocab_size: int, cache: Path) -> Corpus:
    files, scans = [], []
    for source in data.sources:
        files.append(_stamps(sources.files(source.uri, cache)))
        scans.append(_scan(source, data.errors, cache))
    chosen = split.held_out([scan.hashes for scan in scans], data.held_out, [s.uri for s in data.sources])
    tokens, name = _tokenizer(data, scans, chosen, vocab_size, cache)
    parts = []
    for source, scan, held in zip(data.sources, scans, chosen, strict=True):
        train, held_out = _stores(source, scan, held, tokens, data.errors, cache)
        parts.append(
            Part(
                uri=source.uri,
                digest=scan.digest,
                empty=scan.empty,
                replaced=scan.replaced,
                train=train,
                held_out=held_out,
            )
        )
    index = {
        "files": files,
        "tokenizer": tokens.sha256,
        "tokenizer_file": name,
        "parts": [
            {
                "digest": p.digest,
                "empty": p.empty,
                "replaced": p.replaced,
                "store": p.train.folder.parent.name,
            }
            for p in parts
        ],
    }
    cachedir.write_file(cache / "index" / f"{key}.json", json.dumps(index).encode())
    return Corpus(tokenizer=tokens, parts=tuple(parts))


def _scan(source: SourceConfig, errors: sources.Errors, cache: Path) -> Scan:
    counts, hashes, text_bytes = sources.Counts(), array.array("Q"), 0
    digest = hashlib.blake2b(digest_size=16)
    with progress(f"reading {source.uri}") as done:
        for text in _documents(source, errors, cache, counts):
            hashes.append(split.content_hash(text))
            raw = text.encode()
            digest.update(len(raw).to_bytes(8, "little"))
            digest.update(raw)
            text_bytes += len(raw)
            done(1)
    return Scan(
        digest=digest.hexdigest(),
        hashes=np.array(hashes, np.uint64),
        text_bytes=text_bytes,
        empty=counts.empty,
        replaced=counts.replaced,
    )


def _documents(
    source: SourceConfig, errors: sources.Errors, cache: Path, counts: sources.Counts | None = None
) -> Iterator[str]:
    return sources.documents(
        source.uri, field=source.field, errors=errors, cache=cache, counts=counts or sources.Counts()
    )


def _tokenizer(
    data: DataConfig, scans: Sequence[Scan], chosen: Sequence[np.ndarray], vocab_size: int, cache: Path
) -> tuple[Tokenizer, str]:
    """The named tokenizer, or one trained on what is not held out; and its file in the cache."""
    if data.tokenizer:
        return tokenizer.load(Path(data.tokenizer)).check(vocab_size, data.tokenizer), ""
    decided = [tokenizer.RECIPE, sentencepiece.__version__, data.tokenizer_kind, vocab_size, _TOKENIZER_BYTES]
    key = _key([*decided, [[scan.digest, _sides(held)] for scan, held in zip(scans, chosen, strict=True)]])
    path = cache / "tokenizers" / f"{key}.checked"
    with cachedir.locked(cache, f"tokenizer-{key}"):
        if cached := _cached_tokenizer(path):
            return cached, path.name
        with progress(f"training a tokenizer of {vocab_size} tokens"):
            texts = _tokenizer_texts(data, scans, chosen, cache)
            trained = tokenizer.train(texts, vocab_size=vocab_size, kind=data.tokenizer_kind)
        cachedir.write_file(path, trained.sha256.encode() + trained.model)
    return trained, path.name


def _cached_tokenizer(path: Path) -> Tokenizer | None:
    """The tokenizer in a file that begins with its SHA-256 in hex; None if it is not there, or damaged."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    sha256, model = content[:64], content[64:]
    return Tokenizer(model) if hashlib.sha256(model).hexdigest().encode() == sha256 else None


def _tokenizer_texts(
    data: DataConfig, scans: Sequence[Scan], chosen: Sequence[np.ndarray], cache: Path
) -> Iterator[str]:
    share = _TOKENIZER_BYTES / max(sum(scan.text_bytes for scan in scans), 1)
    for source, scan, held in zip(data.sources, scans, chosen, strict=True):
        # The low bits decide here; the high ones have decided what is held out.
        rank = np.where(held, 2**32, (scan.hashes & np.uint64(2**32 - 1)).astype(np.int64))
        drawn = (rank < share * 2**32) | (rank == rank.min())  # one at the least
        drawn &= ~held
        for text, take in zip(_documents(source, data.errors, cache), drawn, strict=False):
            if take:
                yield text


def _stores(
    source: SourceConfig, scan: Scan, held: np.ndarray, tokens: Tokenizer, errors: sources.Errors, cache: Path
) -> tuple[Store, Store]:
    """(train, held-out): opened if they are there and sound, else written."""
    key = _key([store.FORMAT, scan.digest, _sides(held), tokens.sha256])
    folder = cache / "stores" / key
    with cachedir.locked(cache, f"store-{key}"):
        if folder.is_dir():
            try:
                return Store(folder / "train"), Store(folder / "held_out")
            except store.Damaged as damage:
                _log.warning("cached tokens are damaged and will be made again: %s", damage)
        with cachedir.fresh_folder(folder) as made:
            _tokenise(source, scan, held, tokens, errors, cache, made)
        return Store(folder / "train"), Store(folder / "held_out")


def _tokenise(
    source: SourceConfig,
    scan: Scan,
    held: np.ndarray,
    tokens: Tokenizer,
    errors: sources.Errors,
    cache: Path,
    folder: Path,
) -> None:
    writers = [store.Writer(folder / "train", tokens), store.Writer(folder / "held_out", tokens)]
    try:
        with progress(f"tokenising {source.uri}", total=len(held)) as done:
            index = 0
            for texts in _batched(_documents(source, errors, cache)):
                for text, ids in zip(texts, tokens.encode_many(texts), strict=True):
                    if index >= len(held) or split.content_hash(text) != scan.hashes[index]:
                        raise DataError(f"data source {source.uri} changed while it was read; run again")
                    writers[int(held[index])].add(text, ids)
                    index += 1
                done(len(texts))
            if index != len(held):
                raise DataError(f"data source {source.uri} changed while it was read; run again")
        for writer in writers:
            writer.close()
    finally:
        for writer in writers:
            writer.abandon()


def _batched(texts: Iterator[str]) -> Iterator[list[str]]:
    batch, size = [], 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= _BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _absolute(uri: str) -> str:
    return uri if tfds_source.is_tfds(uri) else str(Path(uri).expanduser().absolute())


def _stamps(files: Sequence[Path]) -> list[list[Any]]:
    """What betrays a change; the change time too, because modification times can be set."""
    found = []
    for path in files:
        try:
            seen = path.stat()
        except OSError:
            return []
        found.append([str(path), seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns])
    return found


def _sides(held: np.ndarray) -> str:
    return hashlib.blake2b(held.tobytes(), digest_size=16).hexdigest()


def _key(parts: list[Any]) -> str:
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=12).hexdigest()
