"""Documents of a corpus: text files, JSON lines and folders of them, compressed or not, and TFDS datasets."""

from __future__ import annotations

import bz2
import dataclasses
import gzip
import json
import lzma
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from maijax.data import tfds_source
from maijax.data.zstd import open_zstd
from maijax.errors import DataError

Errors = Literal["strict", "replace"]
JSON_KINDS = (".jsonl", ".json", ".ndjson")
TEXT_KINDS = (".txt", ".text", ".md")
DOCUMENT_END = "<|endoftext|>"  # alone on a line of a text file, it ends a document


@dataclasses.dataclass(kw_only=True)
class Counts:
    """What a reading met, for the summary."""

    empty: int = 0  # documents without a visible character, left out
    replaced: int = 0  # characters put in the place of invalid UTF-8


def documents(uri: str, *, field: str, errors: Errors, cache: Path, counts: Counts) -> Iterator[str]:
    """The corpus's documents in a fixed order, each valid UTF-8 and not blank; what is left out is counted.

    A JSON line is a document, its text in `field`. A text file is one document, or several if lines that hold
    only <|endoftext|> divide it; its CRLF become LF, and empty lines around a document are dropped. A folder
    is read recursively in the order of its sorted paths, hidden files left out.

    Raises: DataError, naming file and line, for what cannot be read, parsed or decoded.
    """
    for where, text in _located(uri, field, errors, cache, counts):
        text = _encodable(text, where, errors, counts)
        if text.strip():
            yield text
        else:
            counts.empty += 1


def files(uri: str, cache: Path) -> list[Path]:
    """The files that the documents come from, in reading order.

    Raises: DataError if there are none.
    """
    if tfds_source.is_tfds(uri):
        return tfds_source.files(uri, cache)
    root = Path(uri).expanduser().absolute()
    if root.is_dir():
        found = [
            path
            for path in root.rglob("*")
            if not any(part.startswith(".") for part in path.relative_to(root).parts)
            and _kind(path)
            and path.is_file()
        ]
        if not found:
            raise DataError(f"data source {uri}: no {_readable()} file in this folder")
        return sorted(found, key=lambda path: path.relative_to(root).as_posix())
    if not root.exists():
        raise DataError(f"data source {uri}: no such file or folder, looked for {root}; or name a tfds:NAME")
    if not _kind(root):
        raise DataError(f"data source {uri}: unknown kind of file; give a {_readable()} file")
    return [root]


def _located(uri: str, field: str, errors: Errors, cache: Path, counts: Counts) -> Iterator[tuple[str, str]]:
    if tfds_source.is_tfds(uri):
        yield from tfds_source.texts(uri, field=field, cache=cache, decode=_decoder(counts, errors))
        return
    for path in files(uri, cache):
        reader = _json_lines if _kind(path) in JSON_KINDS else _text_documents
        yield from reader(path, field, errors, counts)


def _json_lines(path: Path, field: str, errors: Errors, counts: Counts) -> Iterator[tuple[str, str]]:
    for where, line in _lines(path, errors, counts):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise DataError(f"{where}: not JSON ({error}); one object per line is expected") from None
        if not isinstance(record, dict):
            raise DataError(f"{where}: a JSON {type(record).__name__}; one object per line is expected")
        if field not in record:
            there = ", ".join(map(repr, record)) or "none"
            raise DataError(
                f"{where}: no field '{field}'; its fields: {there}; "
                "name one with --set data.sources[0].field=NAME (maijax eval: --field NAME)"
            )
        if not isinstance(record[field], str):
            kind = type(record[field]).__name__
            raise DataError(f"{where}: field '{field}' holds {kind}, not text; name another")
        yield where, record[field]


def _text_documents(path: Path, field: str, errors: Errors, counts: Counts) -> Iterator[tuple[str, str]]:
    del field
    parts: list[str] = []
    for _, line in _lines(path, errors, counts):
        if line.strip() == DOCUMENT_END:
            yield str(path), "".join(parts).strip("\n")
            parts = []
        else:
            parts.append(line[:-2] + "\n" if line.endswith("\r\n") else line)
    last = "".join(parts).strip("\n")
    if last:  # nothing follows the last divider of a file that ends with one
        yield str(path), last


def _lines(path: Path, errors: Errors, counts: Counts) -> Iterator[tuple[str, str]]:
    """("file:line", line with its end) of a decompressed file, without a byte order mark."""
    decode = _decoder(counts, errors)
    try:
        with _open(path) as handle:
            for number, raw in enumerate(handle, start=1):
                where = f"{path}:{number}"
                yield where, decode(raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw, where)
    except DataError:
        raise
    except Exception as error:  # each decompressor has its own kinds
        said = getattr(error, "strerror", None) or error
        raise DataError(f"{path} cannot be read ({said}); mend the file or take it out of the data") from None


def _decoder(counts: Counts, errors: Errors) -> Callable[[bytes, str], str]:
    def decode(raw: bytes, where: str) -> str:
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            if errors == "strict":
                raise DataError(
                    f"{where}: invalid UTF-8 (0x{raw[error.start]:02x}, byte {error.start + 1} of the line); "
                    f"convert the file to UTF-8, or train with --set data.errors=replace"
                ) from None
        text = raw.decode(errors="replace")
        counts.replaced += text.count("\ufffd") - raw.count(b"\xef\xbf\xbd")
        return text

    return decode


def _encodable(text: str, where: str, errors: Errors, counts: Counts) -> str:
    """JSON can spell half of a surrogate pair, which no UTF-8 can hold."""
    try:
        text.encode()
        return text
    except UnicodeEncodeError as error:
        if errors == "strict":
            raise DataError(
                f"{where}: lone surrogate \\u{ord(text[error.start]):04x} is not valid text; "
                f"mend the line, or train with --set data.errors=replace"
            ) from None
    fixed = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    counts.replaced += fixed.count("\ufffd") - text.count("\ufffd")
    return fixed


def _kind(path: Path) -> str | None:
    """The suffix that says how to parse, with that of the compression taken off; None: not ours."""
    suffixes = [s.lower() for s in path.suffixes]
    if suffixes and suffixes[-1] in _OPENERS:
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in JSON_KINDS + TEXT_KINDS else None


def _open(path: Path) -> Any:
    return _OPENERS.get(path.suffix.lower(), lambda p: open(p, "rb"))(path)


_OPENERS: dict[str, Callable[[Path], Any]] = {
    ".gz": lambda path: gzip.open(path, "rb"),
    ".bz2": lambda path: bz2.open(path, "rb"),
    ".xz": lambda path: lzma.open(path, "rb"),
    ".zst": open_zstd,
}


def _readable() -> str:
    return ", ".join((*JSON_KINDS, *TEXT_KINDS)) + " (also .gz .bz2 .xz .zst)"
