"""Which documents are kept from training: decided by their content, so that copies fall on one side."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from maijax.errors import DataError


def content_hash(text: str) -> int:
    """64 bits of the document's content."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def held_out(hashes: Sequence[np.ndarray], share: float, names: Sequence[str]) -> list[np.ndarray]:
    """For each source's uint64 content hashes, a boolean each: is the document held out?

    A document is held out if its hash lies in the lowest `share` of all hashes; it stays where it is when a
    corpus grows. Where this would leave a source without training text, or nothing held out at all, the
    nearest document changes sides, and its copies with it.

    Raises: DataError if there are too few different documents for both sides.
    """
    threshold = np.uint64(min(int(share * 2**64), 2**64 - 1))
    everything = np.unique(np.concatenate([*hashes, np.empty(0, np.uint64)]))
    chosen = everything < threshold
    for name, of_source in zip(names, hashes, strict=True):
        if not len(of_source):
            raise DataError(f"data source {name} is empty: it holds no document with text")
        if chosen[np.searchsorted(everything, of_source)].all():
            chosen[np.searchsorted(everything, of_source.max())] = False
    if not chosen.any():
        # The lowest document that is not all that some source has to train on.
        alone = {int(h[0]) for h in hashes if (h == h[0]).all()}
        spare = [index for index, value in enumerate(everything.tolist()) if value not in alone]
        if not spare:
            raise DataError(
                f"data source {names[0]}: {len(everything)} different document(s) cannot be divided into "
                f"training and held-out text; give more files or JSON lines, or divide a text file by lines "
                f"that hold only <|endoftext|>"
            )
        chosen[spare[0]] = True
    return [chosen[np.searchsorted(everything, of_source)] for of_source in hashes]
