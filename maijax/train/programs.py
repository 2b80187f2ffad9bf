"""Compiled programs, kept between processes."""

from __future__ import annotations

import os
from pathlib import Path

from maijax.errors import UserError


def keep(cache: Path) -> None:
    """Compiled programs are kept between runs; they are native code, so the folder must be this user's alone."""
    import jax
    from absl import logging

    logging.set_verbosity(logging.ERROR)  # Orbax tells much that a person cannot use
    folder = cache / "xla"
    folder.mkdir(mode=0o700, exist_ok=True)
    about = folder.stat()
    if about.st_uid != os.getuid() or about.st_mode & 0o022:
        raise UserError(f"{folder} is writable by others, and programs are loaded from it; chmod 700 it, or remove it")
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
