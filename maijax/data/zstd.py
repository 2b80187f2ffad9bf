"""Lines of a .zst file. The package's own reader takes a truncated file for a whole one; this one does not."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from maijax.errors import UserError

_BLOCK = 2**18


def open_zstd(path: Path) -> io.BufferedReader:
    """The decompressed file; raises UserError without the package zstandard."""
    try:
        import zstandard  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UserError(f"{path} needs the package zstandard to be read; install it, or recompress") from None
    return io.BufferedReader(_Reader(path, zstandard.ZstdDecompressor()))


class _Reader(io.RawIOBase):
    """Reads all frames of the file; raises EOFError if the last one is not whole."""

    def __init__(self, path: Path, decompressor: Any) -> None:
        self._file, self._decompressor = open(path, "rb"), decompressor
        self._frame: Any = None
        self._compressed, self._ready = b"", b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            block = self._compressed or self._file.read(_BLOCK)
            if not block:
                if self._frame is None or not self._frame.eof:
                    raise EOFError("the compressed data ends too early")
                return 0
            if self._frame is None or self._frame.eof:
                self._frame = self._decompressor.decompressobj()
            self._ready = self._frame.decompress(block)
            self._compressed = self._frame.unused_data
        count = min(len(buffer), len(self._ready))
        buffer[:count], self._ready = self._ready[:count], self._ready[count:]
        return count

    def close(self) -> None:
        self._file.close()
        super().close()
