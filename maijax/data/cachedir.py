"""The folder where prepared data is kept between runs, and the locks of its writers."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from maijax.errors import UserError


def default() -> Path:
    """$MAIJAX_CACHE, or ~/.cache/maijax."""
    named = os.environ.get("MAIJAX_CACHE")
    return Path(named).expanduser() if named else Path.home() / ".cache" / "maijax"


def ready(cache: Path) -> Path:
    """The absolute path of the cache folder, made for this user alone where it is not there yet.

    Raises: UserError if it cannot be made or written.
    """
    cache = cache.expanduser().absolute()
    try:
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cache folder {cache} cannot be made ({error.strerror}); set MAIJAX_CACHE to a folder of yours"
        ) from None
    if not os.access(cache, os.W_OK | os.X_OK):
        raise UserError(f"cache folder {cache} is not writable; set MAIJAX_CACHE to a folder of yours")
    return cache


@contextlib.contextmanager
def locked(cache: Path, name: str) -> Iterator[None]:
    """Holds the lock `name` against other processes and threads; it ends with its holder, killed or not."""
    folder = cache / "locks"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with open(folder / f"{name}.lock", "a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def fresh_folder(final: Path) -> Iterator[Path]:
    """A new folder to fill, which takes the place of `final` in one rename when the block ends well.

    The caller holds a lock for `final`: what a killed writer left beside it is removed.
    """
    final.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    for left in final.parent.glob(f".{final.name}.*"):
        shutil.rmtree(left, ignore_errors=True)
    temporary = final.with_name(f".{final.name}.{secrets.token_hex(4)}")
    temporary.mkdir(mode=0o700)
    try:
        yield temporary
        if final.exists():  # damaged: a sound one would have been opened, not written again
            doomed = final.with_name(f".{final.name}.{secrets.token_hex(4)}")
            final.rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)
        temporary.rename(final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_file(path: Path, content: bytes) -> None:
    """Writes the whole file or nothing, durably."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with open(temporary, "wb") as handle:
            handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
