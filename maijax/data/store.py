"""Tokenised documents on disk: written once, memory-mapped, checked on opening."""

from __future__ import annotations

import array
import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from maijax.data import cachedir
from maijax.data.tokenizer import Tokenizer

FORMAT = 1
# Up to this size the tokens are read through and compared with their digest at every opening (about 0.1 s);
# above, only when the file's size or times are not those of the last check.
_ALWAYS_CHECK = 64 * 2**20
_BLOCK = 2**22


class Damaged(Exception):
    """A store that must be written again."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Meta:
    """What a store holds; tokens count BOS and EOS, text_bytes is UTF-8."""

    format: int
    documents: int
    tokens: int
    text_bytes: int
    max_token: int
    dtype: str
    digest: str


class Store:
    """Documents as token ids, each with BOS before and EOS after. Read-only; may be sent to other processes.

    tokens [tokens] uint16 or uint32; offsets [documents + 1] int64; text_bytes [documents] int64, bytes of
    each text; piece_bytes [documents] int64, the sum of its tokens' byte lengths: the same if none is lost.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self.meta = Meta(**json.loads((folder / "meta.json").read_text()))
            if self.meta.format != FORMAT:
                raise Damaged(f"{folder}: format {self.meta.format}, expected {FORMAT}")
            count = self.meta.documents
            lengths = np.fromfile(folder / "documents.bin", np.int64)
            if len(lengths) != 3 * count + 1:
                raise Damaged(
                    f"{folder}/documents.bin: {lengths.nbytes} bytes, expected {8 * (3 * count + 1)}"
                )
            self.offsets, self.text_bytes, self.piece_bytes = np.split(lengths, [count + 1, 2 * count + 1])
            path = folder / "tokens.bin"
            expected = self.meta.tokens * np.dtype(self.meta.dtype).itemsize
            if (size := path.stat().st_size) != expected:
                raise Damaged(f"{path}: {size} bytes, expected {expected}")
            self.tokens = np.memmap(path, self.meta.dtype, "r") if expected else np.empty(0, self.meta.dtype)
        except (OSError, ValueError, TypeError) as error:
            raise Damaged(f"{folder}: {error}") from None
        _check(self)

    def __reduce__(self):
        return Store, (self.folder,)

    def __len__(self) -> int:
        return self.meta.documents

    def __getitem__(self, document: int) -> np.ndarray:
        return self.tokens[self.offsets[document] : self.offsets[document + 1]]


class Writer:
    """Writes one store into a folder, document by document, in memory that does not grow with the text."""

    def __init__(self, folder: Path, tokenizer: Tokenizer) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder, self._tokenizer = folder, tokenizer
        self._dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32)
        self._file = open(folder / "tokens.bin", "wb")
        self._hash = hashlib.blake2b(digest_size=16)
        self._offsets = array.array("q", [0])
        self._text_bytes, self._piece_bytes = array.array("q"), array.array("q")
        self._max_token = 0

    def add(self, text: str, tokens: np.ndarray) -> None:
        """A document: its text, and its tokens without BOS and EOS."""
        whole = np.empty(len(tokens) + 2, self._dtype)
        whole[0], whole[1:-1], whole[-1] = self._tokenizer.bos, tokens, self._tokenizer.eos
        raw = whole.tobytes()
        self._file.write(raw)
        self._hash.update(raw)
        self._offsets.append(self._offsets[-1] + len(whole))
        self._text_bytes.append(len(text.encode()))
        self._piece_bytes.append(int(self._tokenizer.piece_bytes[tokens].sum(dtype=np.int64)))
        self._max_token = max(self._max_token, int(whole.max()))

    def close(self) -> Meta:
        """Puts the rest on disk, durably."""
        _sync_and_close(self._file)
        lengths = b"".join(part.tobytes() for part in (self._offsets, self._text_bytes, self._piece_bytes))
        with open(self._folder / "documents.bin", "wb") as handle:
            handle.write(lengths)
            _sync(handle)
        self._hash.update(lengths)
        meta = Meta(
            format=FORMAT,
            documents=len(self._text_bytes),
            tokens=self._offsets[-1],
            text_bytes=sum(self._text_bytes),
            max_token=self._max_token,
            dtype=self._dtype.name,
            digest=self._hash.hexdigest(),
        )
        cachedir.write_file(self._folder / "meta.json", json.dumps(dataclasses.asdict(meta)).encode())
        return meta

    def abandon(self) -> None:
        self._file.close()


def _check(store: Store) -> None:
    """Raises Damaged unless the content is what was written."""
    path = store.folder / "tokens.bin"
    note = store.folder / "checked.json"
    seen = _stamp(path)
    if store.tokens.nbytes > _ALWAYS_CHECK and note.is_file() and note.read_text() == seen:
        return
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as handle:
        while block := handle.read(_BLOCK):
            digest.update(block)
    for part in (store.offsets, store.text_bytes, store.piece_bytes):
        digest.update(part.tobytes())
    if digest.hexdigest() != store.meta.digest:
        raise Damaged(f"{store.folder}: its content is not what was written")
    if store.tokens.nbytes > _ALWAYS_CHECK:
        cachedir.write_file(note, seen.encode())


def _stamp(path: Path) -> str:
    found = path.stat()
    return json.dumps([found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino])


def _sync(handle: Any) -> None:
    handle.flush()
    os.fsync(handle.fileno())


def _sync_and_close(handle: Any) -> None:
    _sync(handle)
    handle.close()
