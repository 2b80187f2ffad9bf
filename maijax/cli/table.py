"""Plain tables of at most 100 columns; numbers as `maijax.words` says them."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence

from maijax.words import count as count
from maijax.words import size as size

WIDTH = 100  # columns
_GAP = 2


def rows(table: Iterable[Sequence[str]], *, widths: Sequence[int]) -> None:
    """Prints a table; a cell longer than its column's width goes on below itself."""
    for row in table:
        cells = [_wrap(text, width) for text, width in zip(row, widths, strict=True)]
        for i in range(max(map(len, cells))):
            line = (
                (cell[i] if i < len(cell) else "").ljust(width) for cell, width in zip(cells, widths, strict=True)
            )
            print((" " * _GAP).join(line).rstrip())


def fit(table: Iterable[Sequence[str]], *, most: Sequence[int]) -> list[int]:
    """Widths for the cells, each column at most so wide, the last taking what is left of the line."""
    columns = list(zip(*table, strict=True))
    widths = [min(limit, max(map(len, column))) for limit, column in zip(most, columns[:-1], strict=True)]
    return [*widths, WIDTH - sum(widths) - _GAP * len(widths)]


def paragraph(text: str, indent: str = "  ") -> None:
    """Prints text line by line, indented; what goes on below is indented more."""
    for line in text.splitlines():
        print(textwrap.fill(line, WIDTH, initial_indent=indent, subsequent_indent=indent + "  ",
                            break_on_hyphens=False))


def _wrap(text: str, width: int) -> list[str]:
    indent = " " * (len(text) - len(text.lstrip()))
    return textwrap.wrap(text, width, subsequent_indent=indent, break_on_hyphens=False) or [""]
