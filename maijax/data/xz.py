"""How well a good general compressor predicts the held-out text: the line that a language model must beat."""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterable, Iterator
from pathlib import Path

from maijax.data import cachedir
from maijax.data.pipeline import Data
from maijax.data.store import Store
from maijax.data.tokenizer import Tokenizer

MOST = 48 * 2**20  # bytes of training text; xz looks back 64 MiB


def bits_per_byte(data: Data, cache: Path) -> float | None:
    """Bits per held-out byte that `xz -9e` adds when the text follows all training text; None if that is too long.

    Takes a few seconds per megabyte, once per corpus.
    """
    if sum(part.train.meta.text_bytes for part in data.parts) > MOST:
        return None
    file = cachedir.ready(cache) / "xz" / f"{data.fingerprint}.json"
    try:
        return float(json.loads(file.read_text()))
    except (OSError, ValueError):
        pass
    train = list(_texts((part.train for part in data.parts), data.tokenizer))
    held_out = list(_texts((part.held_out for part in data.parts), data.tokenizer))
    added = _size([*train, *held_out]) - _size(train)
    found = 8 * added / max(sum(map(len, held_out)), 1)
    cachedir.write_file(file, json.dumps(found).encode())
    return found


def _texts(stores: Iterable[Store], tokenizer: Tokenizer) -> Iterator[bytes]:
    for store in stores:
        for document in range(len(store)):
            yield tokenizer.decode(store[document]).encode()


def _size(texts: Iterable[bytes]) -> int:
    squeeze = lzma.LZMACompressor(preset=9 | lzma.PRESET_EXTREME)
    return sum(len(squeeze.compress(text)) for text in texts) + len(squeeze.flush())
