"""Numbers as people say them. Standard library only."""

from __future__ import annotations


def count(number: float) -> str:
    """1115264 as 1.12M."""
    for unit, name in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if number >= unit:
            return f"{number / unit:.3g}{name}" if number / unit < 999.5 else f"{number / unit:.0f}{name}"
    return f"{number:.3g}"


def plural(count: int, what: str) -> str:
    """1 run, 2 runs."""
    return f"{count:,} {what}" + "s" * (count != 1)


def size(number: float) -> str:
    """Bytes, in powers of ten as makers of memory count them."""
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "KB")):
        if number >= unit:
            return f"{number / unit:.3g} {name}"
    return f"{number:.0f} bytes"


def duration(seconds: float) -> str:
    """0.0123 as 12.3 ms, 90 as 90 s, 7200 as 2 h, 345600 as 4 days."""
    for unit, name in ((172_800, "days"), (7_200, "h"), (300, "min")):
        if seconds >= unit:
            return f"{seconds / {'days': 86_400, 'h': 3_600, 'min': 60}[name]:,.3g} {name}"
    return f"{seconds:.3g} s" if seconds >= 0.95 else f"{seconds * 1e3:.3g} ms"
