"""What all pages share: one file that needs no network, looks like a run's report, and runs no script but its own."""

from __future__ import annotations

import base64
import hashlib
import os
from html import escape
from pathlib import Path
from typing import Any

from maijax.errors import UserError

ASSETS = Path(__file__).parent / "assets"


def sheet(title: str, body: str, *, style: str = "", script: str = "", footer: str = "") -> str:
    """A whole page around a body, which is HTML; title and footer are escaped."""
    look = (ASSETS / "report.css").read_text(encoding="utf-8") + style
    policy = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'"
    end = f"<footer>{text(footer)}</footer>\n" if footer else ""
    runs = ""
    if script:
        policy += f"; script-src 'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
        runs = f"<script>{script}</script>\n"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>\n{look}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n{end}</main>\n{runs}</body>\n</html>\n"
    )


def text(value: Any) -> str:
    """Escaped for HTML; control characters, which would vanish or harm, become visible replacements."""
    return escape("".join(c if c >= " " or c in "\n\t" else "\ufffd" for c in str(value)))


def write(file: Path, page: str) -> None:
    """Replaces a file whole; raises OSError, and leaves nothing behind then."""
    part = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        part.write_bytes(page.encode("utf-8", "replace"))
        part.replace(file)
    except OSError:
        part.unlink(missing_ok=True)
        raise


def publish(file: str | Path, page: str) -> Path:
    """As `write`, where --html asked for it; raises UserError if it cannot be written, and returns the path."""
    path = Path(file)
    if not path.parent.is_dir():
        raise UserError(f"--html {file}: there is no folder {path.parent}; make it, or choose another file")
    try:
        write(path, page)
    except (OSError, ValueError) as error:  # a folder of that name; no name at all
        why = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"--html {file}: cannot be written ({why}); choose another file") from None
    return path
