"""From a data configuration to batches: the same tokens in the same order for any hosts and workers."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import grain
import numpy as np
from absl import flags

from maijax.config import DataConfig, SourceConfig
from maijax.data import corpus
from maijax.data.held_out import HeldOut
from maijax.data.mixture import MIXTURE, Mixture
from maijax.data.order import ORDER, Row, Rows
from maijax.data.tokenizer import Tokenizer
from maijax.errors import RunError, UserError

_ENDLESS = 2**48  # steps; Grain wants a length
_THREADS = 2
_AHEAD = 8  # batches ready before they are asked for
START_HASH = "0" * 16  # of a run that has read nothing


class Train:
    """The endless rows of a mixture of sources: train[row], a pure function of (seed, row)."""

    def __init__(self, rows: list[Rows], mixture: Mixture) -> None:
        self.rows, self.mixture = rows, mixture

    def __getitem__(self, row: int) -> Row:
        source, index = self.mixture(row)
        return self.rows[source][index]

    @property
    def tokens(self) -> int:
        """Of one epoch of every source."""
        return sum(rows.store.meta.tokens for rows in self.rows)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """What a run reads.

    identity: all that decides the stream of tokens, by name; fingerprint: a hash of it.
    """

    tokenizer: Tokenizer
    train: Train
    held_out: HeldOut
    identity: dict[str, Any]
    parts: tuple[corpus.Part, ...]

    @functools.cached_property
    def fingerprint(self) -> str:
        return hashlib.blake2b(json.dumps(self.identity, sort_keys=True).encode(), digest_size=8).hexdigest()

    @property
    def summary(self) -> list[dict[str, Any]]:
        """One line of counts for each source: documents, bytes of text, tokens with BOS and EOS."""
        return [
            {
                "uri": part.uri,
                "empty": part.empty,
                "replaced": part.replaced,
                "train": _sizes(part.train.meta),
                "held_out": _sizes(part.held_out.meta),
            }
            for part in self.parts
        ]


def _sizes(meta: Any) -> dict[str, int]:
    return {"documents": meta.documents, "bytes": meta.text_bytes, "tokens": meta.tokens}


def open_data(data: DataConfig, *, vocab_size: int, seq_len: int, seed: int, cache: Path) -> Data:
    """Prepares what was not prepared before, and opens it.

    Raises: UserError for unreadable, empty or malformed sources, and a tokenizer larger than vocab_size.
    """
    ready = corpus.prepare(data, vocab_size=vocab_size, cache=cache)
    mixture = Mixture([source.weight for source in data.sources])
    rows = [
        Rows(part.train, seq_len=seq_len, seed=seed, source=index) for index, part in enumerate(ready.parts)
    ]
    for part in ready.parts:
        if (most := max(part.train.meta.max_token, part.held_out.meta.max_token)) >= vocab_size:
            raise UserError(
                f"data source {part.uri} holds token {most}, beyond model.vocab_size={vocab_size}; "
                f"set model.vocab_size={most + 1} or more"
            )
    identity = {
        "documents": [part.digest for part in ready.parts],
        "weights": mixture.counts,
        "held_out": [part.train.meta.digest for part in ready.parts],
        "tokenizer": ready.tokenizer.sha256,
        "seq_len": seq_len,
        "seed": seed,
        "order": [ORDER, MIXTURE],
    }
    return Data(
        tokenizer=ready.tokenizer,
        train=Train(rows, mixture),
        held_out=HeldOut([part.held_out for part in ready.parts], ready.tokenizer, seq_len=seq_len),
        identity=identity,
        parts=ready.parts,
    )


def open_source(
    source: SourceConfig,
    tokenizer: Tokenizer,
    *,
    seq_len: int,
    cache: Path,
    errors: Literal["strict", "replace"] = "strict",
) -> HeldOut:
    """All text of one source, to be scored with a run's tokenizer."""
    whole = corpus.prepare_whole(source, tokenizer, errors=errors, cache=cache)
    return HeldOut([whole], tokenizer, seq_len=seq_len)


def held_out_batches(data: Data | HeldOut, batch_size: int, limit: int | None = None) -> Iterator[tuple[Row, int]]:
    """(batch, bytes of text that it scores); see HeldOut.batches."""
    rows = data.held_out if isinstance(data, Data) else data
    return rows.batches(batch_size, limit)


def batches(
    data: Data,
    *,
    batch_size: int,
    start_step: int = 0,
    rows: Sequence[int] | None = None,
    counted: Sequence[int] | None = None,
    workers: int = 0,
) -> Iterator[tuple[Row, int]]:
    """(batch, digest) of step start_step and all after it, read ahead in the background.

    Step s holds rows s * batch_size .. (s + 1) * batch_size - 1 of the stream; arrays are [rows, seq_len] of those
    `rows` of it that are wanted here (None: all), in their order. The digest is that of the `counted` ones among
    them (None: all): shares that count each row once add up, modulo 2^64, to the digest of the whole step; feed it
    to `roll`. workers: processes that build batches; 0: threads.

    Raises: RunError, while reading, if a worker dies.
    """
    rows = range(batch_size) if rows is None else rows
    counts = frozenset(rows if counted is None else counted)
    steps = _Steps(data.train, batch_size=batch_size, rows=rows, counted=counts)
    dataset = grain.MapDataset.source(steps)[start_step:].to_iter_dataset(
        grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_AHEAD)
    )
    if workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain asks for its flags, which nobody parses here
        dataset = dataset.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2),
            worker_init_fn=_leave_signals_to_the_run,
        )
    iterator = iter(dataset)
    iterator.start_prefetch()
    return _reading(iterator)


def _leave_signals_to_the_run(index: int, count: int) -> None:
    """A terminal sends Ctrl-C to every process; the run saves, and ends its readers itself."""
    del index, count
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _reading(iterator: Any) -> Iterator[tuple[Row, int]]:
    try:
        while True:
            try:
                batch, digest = next(iterator)
            except Exception as error:
                raise RunError(
                    f"reading the training data failed ({type(error).__name__}: {error})"
                ) from error
            yield batch, int(digest)
    finally:
        iterator.close()


class _Steps:
    """Random access to some rows of each step's batch, for Grain."""

    def __init__(self, train: Train, *, batch_size: int, rows: Sequence[int], counted: frozenset[int]) -> None:
        self._train, self._batch_size, self._rows, self._counted = train, batch_size, rows, counted

    def __len__(self) -> int:
        return _ENDLESS

    def __getitem__(self, index: int) -> tuple[Row, np.uint64]:
        start = index * self._batch_size
        found = [self._train[start + row] for row in self._rows]
        digest = sum(
            row_digest(start + place, row)
            for place, row in zip(self._rows, found, strict=True)
            if place in self._counted
        )
        return {name: np.stack([row[name] for row in found]) for name in found[0]}, np.uint64(digest % 2**64)


def row_digest(index: int, row: Row) -> int:
    """64 bits of a global row's index and its tokens, the last target included."""
    hashed = hashlib.blake2b(index.to_bytes(8, "little"), digest_size=8)
    hashed.update(row["tokens"].tobytes())
    hashed.update(row["targets"][-1:].tobytes())
    return int.from_bytes(hashed.digest(), "little")


def roll(previous: str, digest: int) -> str:
    """The rolling hash of all tokens read so far, 16 hex digits, from START_HASH and each step's digest."""
    raw = bytes.fromhex(previous) + (digest % 2**64).to_bytes(8, "little")
    return hashlib.blake2b(raw, digest_size=8).hexdigest()


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What differs between two identities, in words; empty if they read the same tokens."""
    words = {
        "documents": "the documents",
        "weights": "the sources' weights",
        "held_out": "the held-out share",
        "tokenizer": "the tokenizer",
        "seq_len": "seq_len",
        "seed": "the seed",
        "order": "the order of reading",
    }
    found = []
    for name in sorted(before.keys() | now.keys()):
        was, is_now = before.get(name), now.get(name)
        if was != is_now:
            short = f" ({was} then, {is_now} now)" if name in {"weights", "seq_len", "seed", "order"} else ""
            found.append(words.get(name, name) + short)
    return found
