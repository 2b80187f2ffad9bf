"""The order of training: which tokens a row holds, as a pure function of (seed, row).

The documents of an epoch, permuted, form one stream; epoch follows epoch without a gap. It is cut into places of
S tokens: place p holds tokens p*S .. p*S + S (S + 1 of them: inputs, and targets one further), so that over an
epoch every token is an input once, and a target once unless it begins a document. The last place of an epoch runs
on into the next. The places that begin in an epoch are its rows, in an order of their own: neighbours in a batch
come from all over the corpus, not from one long document.
"""

from __future__ import annotations

import collections
import threading

import numpy as np

from maijax.data.store import Store

ORDER = 1  # goes up when the same seed would give another order
_KEPT_EPOCHS = 3  # threads are at work on both sides of an epoch's end, and its last place needs the next
_ROUNDS = 6
Row = dict[str, np.ndarray]


class Rows:
    """An endless sequence of training rows over one store; may be read by several threads.

    rows[r]: tokens, targets, segments, positions int32 and weights float32, each [seq_len]. Segments count
    from 1 in the row; positions count from 0 in each document, and at the start of a row that continues one;
    weights are 0 at a document's last token, whose target would be another document's first, and 1 elsewhere.
    """

    def __init__(self, store: Store, *, seq_len: int, seed: int, source: int = 0) -> None:
        self.store, self.seq_len, self.seed, self.source = store, seq_len, seed, source
        self._epochs: collections.OrderedDict[int, tuple[np.ndarray, np.ndarray]] = collections.OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self):
        return _rows, (self.store, self.seq_len, self.seed, self.source)

    def epoch(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """(documents in their order [documents], where each begins in the epoch's stream [documents + 1])."""
        with self._lock:
            if number not in self._epochs:
                documents = permutation(len(self.store), self.seed, self.source, number)
                starts = np.zeros(len(documents) + 1, np.int64)
                np.cumsum(np.diff(self.store.offsets)[documents], out=starts[1:])
                self._epochs[number] = documents, starts
                while len(self._epochs) > _KEPT_EPOCHS:
                    self._epochs.popitem(last=False)
            self._epochs.move_to_end(number)
            return self._epochs[number]

    def __getitem__(self, row: int) -> Row:
        return pack(self._pieces(self.place(row)), self.seq_len)

    def place(self, row: int) -> int:
        """Where in the endless stream the row lies, in units of S tokens."""
        tokens = self.store.meta.tokens
        number = row * self.seq_len // tokens
        first, following = (-(-epoch * tokens // self.seq_len) for epoch in (number, number + 1))
        return first + shuffled(row - first, following - first, (self.seed, self.source, number))

    def _pieces(self, place: int) -> list[np.ndarray]:
        """The parts of documents that a place's S + 1 tokens come from."""
        number, at = divmod(place * self.seq_len, self.store.meta.tokens)
        wanted, pieces = self.seq_len + 1, []
        while wanted:
            documents, starts = self.epoch(number)
            index = int(np.searchsorted(starts, at, side="right")) - 1
            while wanted and index < len(documents):
                begin = int(self.store.offsets[documents[index]]) + at - int(starts[index])
                count = min(wanted, int(starts[index + 1]) - at)
                pieces.append(self.store.tokens[begin : begin + count])
                at, wanted, index = at + count, wanted - count, index + 1
            number, at = number + 1, 0
        return pieces


def _rows(store: Store, seq_len: int, seed: int, source: int) -> Rows:
    return Rows(store, seq_len=seq_len, seed=seed, source=source)


def pack(pieces: list[np.ndarray], seq_len: int, pad: int = 0) -> Row:
    """A row from S + 1 tokens, or fewer and padding, given as parts of documents one after another.

    Padding has segment 0 and weight 0.
    """
    lengths = np.array([len(piece) for piece in pieces])
    total = int(lengths.sum())
    stream = np.full(seq_len + 1, pad, np.int32)
    stream[:total] = np.concatenate(pieces)
    segments, positions = np.zeros(seq_len + 1, np.int32), np.zeros(seq_len + 1, np.int32)
    ends = np.cumsum(lengths)
    segments[:total] = np.repeat(np.arange(1, len(pieces) + 1, dtype=np.int32), lengths)
    positions[:total] = np.arange(total) - np.repeat(ends - lengths, lengths)
    same = (segments[1:] == segments[:-1]) & (segments[1:] > 0)
    return {
        "tokens": stream[:-1],
        "targets": stream[1:],
        "segments": segments[:-1],
        "positions": positions[:-1],
        "weights": same.astype(np.float32),
    }


def permutation(size: int, seed: int, source: int, epoch: int) -> np.ndarray:
    """An order of 0..size-1: sorted by a hash, and so the same in every version of numpy."""
    with np.errstate(over="ignore"):
        key = np.zeros(1, np.uint64)
        for part in (seed, source, epoch):
            key = scramble(key + np.uint64(part % 2**64))
        return np.argsort(scramble(key + np.arange(size, dtype=np.uint64)), kind="stable")


def shuffled(index: int, size: int, key: tuple[int, ...]) -> int:
    """Where a permutation of 0..size-1 takes an index, in constant time and memory.

    Source: a Feistel network with cycle walking, Black and Rogaway, CT-RSA 2002.
    """
    half = max((size - 1).bit_length() + 1, 2) // 2
    mask = (1 << half) - 1
    secret = 0
    for part in key:
        secret = _scramble(secret + part)
    keys = [_scramble(secret + number) for number in range(_ROUNDS)]
    while True:
        left, right = index >> half, index & mask
        for number in keys:
            left, right = right, left ^ (_scramble(right + number) & mask)
        index = left << half | right
        if index < size:
            return index


def _scramble(x: int) -> int:
    """As `scramble`, of one number."""
    x = (x + 0x9E3779B97F4A7C15) % 2**64
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
    return x ^ (x >> 31)


def scramble(x: np.ndarray) -> np.ndarray:
    """A bijection of uint64 that looks like chance. Source: SplitMix64, Steele et al., OOPSLA 2014."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
