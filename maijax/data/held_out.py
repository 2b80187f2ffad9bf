"""Scoring text: every token of a store once, and the bytes of text that the scored tokens stand for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from maijax.data.order import Row, pack
from maijax.data.store import Store
from maijax.data.tokenizer import Tokenizer
from maijax.errors import UserError


class HeldOut:
    """Rows of text to score, in the order of the stores; the last row of each store is padded.

    Over all rows, each token but BOS is a target of weight 1 exactly once. held_out[i] is (row, bytes of text
    that its scored targets stand for).
    """

    def __init__(self, stores: Sequence[Store], tokenizer: Tokenizer, *, seq_len: int) -> None:
        self.stores, self.tokenizer, self.seq_len = tuple(stores), tokenizer, seq_len
        # A stream of T tokens has T - 1 inputs with a target.
        counts = [-(-(store.meta.tokens - 1) // seq_len) if len(store) else 0 for store in self.stores]
        self._first = np.concatenate([[0], np.cumsum(counts)])

    def __len__(self) -> int:
        return int(self._first[-1])

    @property
    def documents(self) -> int:
        return sum(len(store) for store in self.stores)

    @property
    def tokens(self) -> int:
        """Targets that all rows score together: the text's tokens and each document's end."""
        return sum(store.meta.tokens - len(store) for store in self.stores)

    @property
    def text_bytes(self) -> int:
        return sum(store.meta.text_bytes for store in self.stores)

    def __getitem__(self, index: int) -> tuple[Row, int]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        which = int(np.searchsorted(self._first, index, side="right")) - 1
        store = self.stores[which]
        at = (index - int(self._first[which])) * self.seq_len
        end = min(at + self.seq_len + 1, store.meta.tokens)
        document = int(np.searchsorted(store.offsets, at, side="right")) - 1
        pieces, text_bytes = [], 0
        while at < end:
            start, stop = int(store.offsets[document]), min(int(store.offsets[document + 1]), end)
            pieces.append(store.tokens[at:stop])
            text_bytes += self._bytes(store, document, at - start + 1, stop - start)
            at, document = stop, document + 1
        return pack(pieces, self.seq_len, self.tokenizer.pad), text_bytes

    def _bytes(self, store: Store, document: int, begin: int, end: int) -> int:
        """Bytes of text of a document's tokens begin .. end - 1; over a document they sum to its length."""
        pieces = self.tokenizer.piece_bytes
        whole, of_pieces = int(store.text_bytes[document]), int(store.piece_bytes[document])
        tokens = store[document]
        if whole == of_pieces:
            return int(pieces[tokens[begin:end]].sum(dtype=np.int64))
        # A tokenizer that adds or drops characters: the text is shared out by the lengths of its tokens.
        if not of_pieces:
            return whole if end == len(tokens) else 0
        before, after = (int(pieces[tokens[:k]].sum(dtype=np.int64)) for k in (begin, end))
        return whole * after // of_pieces - whole * before // of_pieces

    def batches(self, batch_size: int, limit: int | None = None) -> Iterator[tuple[Row, int]]:
        """(batch [rows, seq_len], bytes of text that it scores); the last is filled up with padding.

        limit: rows at most, spread evenly over the text.

        Raises: UserError if there is nothing to score.
        """
        if not len(self):
            raise UserError("there is no text to score")
        total = len(self) if limit is None else min(limit, len(self))
        for first in range(0, total, batch_size):
            rows, text_bytes = [], 0
            for place in range(first, first + batch_size):
                if place < total:
                    row, scored = self[place * len(self) // total]
                    text_bytes += scored
                else:
                    row = self._padding()
                rows.append(row)
            yield {name: np.stack([row[name] for row in rows]) for name in rows[0]}, text_bytes

    def _padding(self) -> Row:
        return pack([np.empty(0, np.int32)], self.seq_len, self.tokenizer.pad)
