"""Checkpoints that are verified, not believed.

Orbax writes them asynchronously and renames a finished step into place, but it notices no flipped bit,
takes any folder with a whole number for a step, and reports a refused save by a quiet False. So each step
carries a digest per array, is checked when it is read, and a step that fails is put aside by renaming.
"""

from __future__ import annotations

import dataclasses
import shutil
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from orbax.checkpoint.options import MultiprocessingOptions

from maijax.data.pipeline import differences
from maijax.errors import RunError, UserError
from maijax.parallel import together
from maijax.train.state import State


@dataclasses.dataclass(frozen=True, kw_only=True)
class Meta:
    """What is needed beside the arrays to go on as if nothing had happened."""

    step: int
    identity: str  # of the experiment, see `plain.fingerprint`
    data: dict[str, Any]  # identity of the stream of tokens, see `data.pipeline`
    token_hash: str  # rolled over all tokens consumed so far
    seconds: float  # spent training so far


@jax.jit
def digests(tree: Any) -> list[jax.Array]:
    """A uint32 per leaf, equal on every mesh: sum of each word times an odd hash of its place, modulo 2^32.

    Any single flipped bit changes it. It guards against accidents, not against an attacker.
    """
    return [_digest(leaf) for leaf in jax.tree.leaves(tree)]


def _digest(leaf: jax.Array) -> jax.Array:
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[leaf.dtype.itemsize]
    words = leaf if leaf.dtype == unsigned else jax.lax.bitcast_convert_type(leaf, unsigned)
    words = words.astype(jnp.uint32)
    place = jnp.zeros((), jnp.uint32)
    # The flat index is built from one iota per dimension: it wraps modulo 2^32, which is all that is needed.
    for dim, size in enumerate(words.shape):
        place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, words.shape, dim)
    place = (place ^ (place >> 16)) * jnp.uint32(0x7FEB352D)
    place = (place ^ (place >> 15)) * jnp.uint32(0x846CA68B)
    return jnp.sum(words * (place | jnp.uint32(1)), dtype=jnp.uint32)


class Checkpoints:
    """The checkpoints of one run; a writer must hold the run's lock, readers never change anything.

    All processes of a run call the same methods at the same steps, and share a file system: each writes its part of
    the arrays, and the first alone makes, renames and removes folders.
    """

    def __init__(self, folder: Path, *, keep: int = 2, writer: bool) -> None:
        self.folder = folder
        self.writer = writer
        if writer and together.first():
            self._tidy()
        together.barrier("checkpoints are tidy")
        if writer and not folder.is_dir():
            raise UserError(f"{folder} is not seen by process {jax.process_index()}; --runs-dir must be on a disk that "
                            "all processes share")
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep if writer else None,
            read_only=not writer,
            create=False,
            # Deleting is then one rename: a step that is half deleted is never taken for whole.
            todelete_subdir="trash" if writer else None,
            enable_async_checkpointing=writer,
            save_root_metadata=False,
        )
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)
        # Reads by itself on each process: one that cannot read its part would leave the others at a barrier for ever.
        me = jax.process_index()
        alone = MultiprocessingOptions(primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"alone{me}")
        self._reader = ocp.CheckpointManager(
            folder.absolute(),
            options=ocp.CheckpointManagerOptions(read_only=True, create=False, multiprocessing_options=alone),
        )

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Waits for the last save; without this it would be lost. Raises RunError if it failed."""
        try:
            self._reader.close()
            self._manager.close()
        except Exception as error:
            raise RunError(f"checkpoints in {self.folder}: the last save failed: {_first_line(error)}") from error
        if self.writer and together.first():
            shutil.rmtree(self.folder / "trash", ignore_errors=True)

    def save(self, state: State, meta: Meta) -> None:
        """Starts an asynchronous save; raises RunError if this one is refused or the one before it failed."""
        try:
            words = [int(d) for d in jax.device_get(digests(state))]
            saved = self._manager.save(
                meta.step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state),  # pyright: ignore[reportCallIssue]
                    digest=ocp.args.JsonSave({"leaves": words}),  # pyright: ignore[reportCallIssue]
                    meta=ocp.args.JsonSave(dataclasses.asdict(meta)),  # pyright: ignore[reportCallIssue]
                ),
            )
        except Exception as error:
            raise RunError(f"checkpoint {meta.step} in {self.folder}: {_first_line(error)}") from error
        if not saved:
            raise RunError(f"checkpoint {meta.step} in {self.folder} was refused: a later step is there")

    def _tidy(self) -> None:
        """Makes the folder, and clears away what no finished save has left in it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(self.folder / "trash", ignore_errors=True)
        for stale in self.folder.glob("*.orbax-checkpoint-tmp*"):
            shutil.rmtree(stale, ignore_errors=True)
        self._put_aside_foreign()

    def steps(self) -> list[int]:
        """Steps that look finished, newest first."""
        found = [int(p.name) for p in self.folder.glob("*") if p.name.isdigit() and _finished(p)]
        return sorted(found, reverse=True)

    def restore(
        self, target: State, *, identity: str, data: dict[str, Any] | None
    ) -> tuple[State, Meta] | None:
        """The newest sound step in the target's shapes and layout; None if there is none at all.

        `data` is the identity of the stream to go on with; None: the state is only to be looked at.

        A step whose digests disagree is put aside and the one before it is tried. Raises UserError for a
        checkpoint of another experiment or another stream of tokens, RunError if every step is damaged.
        """
        tried = together.from_first(
            lambda: [f"{path.name} (put aside before)" for path in sorted(self.folder.glob("*.corrupt*"))]
        )
        steps = together.from_first(self.steps)
        for step in steps:
            found = self._sound(step, target, identity, data)
            if not isinstance(found, str):
                return found
            tried.append(f"{step} ({found})")
            self._put_aside(step, found, last=step == steps[-1])
        if tried:
            raise RunError(
                f"no sound checkpoint in {self.folder}: {'; '.join(tried)}; to start anew, remove the run's folder"
            )
        return None

    def _sound(
        self, step: int, target: State, identity: str, data: dict[str, Any] | None
    ) -> tuple[State, Meta] | str:
        """A step whose digests agree, or why it cannot be used: what is unsound for one process is so for all."""
        sys.unraisablehook = _of_no_late_reads
        try:
            found, why = self._read(step, target, identity, data), ""
        except (UserError, MemoryError):
            raise
        except Exception as error:
            found, why = None, _first_line(error)
        if not together.all_well(found is not None) or found is None:
            return why or "another process could not read its part"
        state, meta, words = found
        leaves = jax.tree_util.tree_leaves_with_path(state)
        if len(leaves) != len(words):
            return f"it has {len(words)} digests for {len(leaves)} arrays"
        for (path, _), word, now in zip(leaves, words, jax.device_get(digests(state)), strict=True):
            if int(now) != word:
                return f"{jax.tree_util.keystr(path)} is damaged"
        return state, meta

    def _read(
        self, step: int, target: State, identity: str, data: dict[str, Any] | None
    ) -> tuple[State, Meta, list[int]]:
        """(state, what belongs to it, the digests that its arrays had when they were written)."""
        small: Any = self._reader.restore(
            step,
            args=ocp.args.Composite(
                digest=ocp.args.JsonRestore(),  # pyright: ignore[reportCallIssue]
                meta=ocp.args.JsonRestore(),  # pyright: ignore[reportCallIssue]
            ),
        )
        meta = Meta(**small.meta)
        other = ["the experiment"] if meta.identity != identity else []
        if data is not None:
            other += differences(meta.data, data)
        if other:
            raise UserError(
                f"checkpoint {step} in {self.folder} was written with another value of: {', '.join(other)}; "
                "put the old back, or give --name another"
            )
        whole: Any = self._reader.restore(
            step, args=ocp.args.Composite(state=ocp.args.StandardRestore(target))  # pyright: ignore[reportCallIssue]
        )
        return whole.state, meta, small.digest["leaves"]

    def _put_aside(self, step: int, why: str, *, last: bool) -> None:
        if together.first():
            then = "there is none before it" if last else "trying the one before"
            _warn(f"checkpoint {step} in {self.folder} cannot be used ({why}); {then}")
            if self.writer:
                self._rename(self.folder / str(step), "corrupt")
        together.barrier("put aside")
        self._reader.reload()
        if self.writer:
            self._manager.reload()

    def _put_aside_foreign(self) -> None:
        # Orbax believes any folder with a number for a name, and then refuses to save the steps before it.
        for path in self.folder.iterdir():
            if path.name.isdigit() and not _finished(path):
                _warn(f"{path} is no finished checkpoint; put aside")
                self._rename(path, "foreign")

    def _rename(self, path: Path, why: str) -> None:
        aside, n = path.with_name(f"{path.name}.{why}"), 1
        while aside.exists():
            n += 1
            aside = path.with_name(f"{path.name}.{why}{n}")
        path.rename(aside)


def _warn(text: str) -> None:
    print(f"maijax: {text}", file=sys.stderr, flush=True)


def _finished(path: Path) -> bool:
    items = (path / name for name in ("state", "digest", "meta"))
    return path.is_dir() and not path.is_symlink() and all(item.is_dir() for item in items)


def _of_no_late_reads(said: Any) -> None:
    """Prints an error that could not be raised, but for tensorstore's of reads that end after a restore has failed.

    There are dozens, from threads of its own, since the event loop that waited for them is closed.
    """
    if not (said.exc_type is RuntimeError and str(said.exc_value) == "Event loop is closed"):
        sys.__unraisablehook__(said)


def _first_line(error: BaseException) -> str:
    """One readable line of an error that may carry a page of storage specification."""
    text = str(error).strip().splitlines()
    line = text[0] if text else ""
    if line.startswith("DATA_LOSS"):
        return "its files are damaged"
    if not line or isinstance(error, KeyError | IndexError):  # whose text is a bare key
        line = f"{type(error).__name__} {line}".strip()
    return line if len(line) <= 160 else line[:157] + "..."
