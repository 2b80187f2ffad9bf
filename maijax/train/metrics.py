"""What a run measured: JSON lines in its folder, and TensorBoard's files beside them. No jax here."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

FILE = "metrics.jsonl"
PENDING = 10_000  # lines held in memory while they cannot be written; the oldest go first


def read(path: str | Path) -> list[dict[str, Any]]:
    """The records of a metrics file or of a run folder, in order; lines that are no record are passed over.

    Every record has an int "step" and a str "kind". A missing file has no records.
    """
    return examine(path)[0]


def examine(path: str | Path) -> tuple[list[dict[str, Any]], str]:
    """(the records as by `read`, where the first line that is no record is, in words; empty if there is none).

    What follows the last newline is no damage: a run that is being written, or was killed, ends so.
    """
    path = Path(path)
    file = path / FILE if path.is_dir() else path
    try:
        *lines, end = file.read_bytes().split(b"\n")
    except OSError:
        return [], ""
    found = [_record(line) for line in lines]
    wrong = next((i for i, line in enumerate(lines) if found[i] is None and line.strip()), None)
    damage = "" if wrong is None else f"damaged metrics ({file}, line {wrong + 1})"
    return [record for record in (*found, _record(end)) if record is not None], damage


def final(records: Iterable[dict[str, Any]]) -> dict[str, Any] | None:
    """The evaluation of all that is held out, which ends a run: without it a run is not finished."""
    return next((record for record in records if record["kind"] == "eval" and record.get("final")), None)


class MetricLog:
    """Appends records to metrics.jsonl, each line on disk before `write` returns; use as a context manager.

    Opening it cuts what lies past `resume_step` and a torn last line, so that no step is there twice. It
    never raises over the disk: what cannot be written waits in memory, one warning is printed, and the next
    write tries again. `enabled=False` (all processes but the first) does nothing at all.

    Scalars and samples go to TensorBoard files in `tensorboard/` as well, by tensorboardX, without TensorFlow.
    """

    def __init__(self, folder: str | Path, *, resume_step: int = 0, enabled: bool = True) -> None:
        self.file = Path(folder) / FILE
        self._enabled = enabled
        self._waiting: list[bytes] = []
        self._warned = False
        self._descriptor: int | None = None
        self._board: _Board | None = None
        if enabled:
            self._cut(resume_step)
            self._board = _open_board(Path(folder) / "tensorboard", resume_step)

    def __enter__(self) -> MetricLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, step: int, kind: str, **values: Any) -> None:
        """Appends {"step", "kind", ...}. NumPy scalars become numbers, what is not finite becomes null."""
        if not self._enabled:
            return
        record = {"step": int(step), "kind": kind} | {name: _plain(value) for name, value in values.items()}
        self._waiting.append(json.dumps(record, ensure_ascii=True).encode() + b"\n")
        del self._waiting[:-PENDING]
        self._flush()
        if self._board is not None:
            self._board.add(record)

    def close(self) -> None:
        """Writes what still waits, if it can be; says how much was lost if not."""
        if self._waiting:
            self._flush()
        if self._waiting:
            _say(f"{self.file}: {len(self._waiting)} lines could not be written and are lost")
            self._waiting.clear()
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
        if self._board is not None:
            self._board.close()
            self._board = None

    def _cut(self, resume_step: int) -> None:
        """Leaves only whole records up to a step. The file is replaced at once, or not at all."""
        try:
            data = self.file.read_bytes()
        except OSError:
            return
        kept = b"".join(line + b"\n" for line, record in _records(data) if record["step"] <= resume_step)
        if kept == data:
            return
        try:
            part = self.file.with_name(f".{FILE}.{os.getpid()}")
            part.write_bytes(kept)
            part.replace(self.file)
        except OSError as error:
            self._warn(error)

    def _flush(self) -> None:
        """Appends the waiting lines; a line that fits only in part is taken back."""
        try:
            if self._descriptor is None:
                self._descriptor = os.open(self.file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            end = os.fstat(self._descriptor).st_size
            while self._waiting:
                line = self._waiting[0]
                try:
                    written = os.write(self._descriptor, line)
                except OSError:
                    os.ftruncate(self._descriptor, end)
                    raise
                if written < len(line):
                    os.ftruncate(self._descriptor, end)
                    raise OSError(28, "no space for a whole line")
                end += written
                self._waiting.pop(0)
        except OSError as error:
            self._warn(error)

    def _warn(self, error: OSError) -> None:
        if not self._warned:
            self._warned = True
            _say(f"{self.file}: cannot be written ({error.strerror}); training goes on, lines wait in memory")


class _Board:
    """One TensorBoard event file, written by this thread: tensorboardX's own queue blocks on a full disk."""

    def __init__(self, folder: Path, resume_step: int) -> None:
        from tensorboardX import summary
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2

        self._summary, self._proto = summary, event_pb2
        folder.mkdir(parents=True, exist_ok=True)
        # The name holds the second only; another writer within it must not empty the first one's file.
        self._events = EventsWriter(str(folder / "events"), f".{time.time_ns()}.{os.getpid()}")
        self._flushed = time.monotonic()
        if resume_step:  # TensorBoard then hides what other files hold from here on
            log: Any = event_pb2.SessionLog  # pyright: ignore[reportAttributeAccessIssue]
            start = log(status=log.START)
            self._event(resume_step + 1, session_log=start)

    def add(self, record: dict[str, Any]) -> None:
        step, kind = record["step"], record["kind"]
        try:
            for name, value in record.items():
                if name not in ("step", "kind") and type(value) in (int, float):
                    self._event(step, summary=self._summary.scalar(f"{kind}/{name}", value))
            if kind == "sample":
                # Markdown is rendered there; four spaces make it plain text.
                text = "\n".join("    " + line for line in str(record.get("text", "")).splitlines())
                text = text.encode("utf-8", "replace").decode()
                self._event(step, summary=self._summary.text("sample", text))
            if time.monotonic() - self._flushed > 20:
                self._events.flush()
                self._flushed = time.monotonic()
        except OSError:
            pass  # the JSON lines hold the same, and their writer has warned

    def close(self) -> None:
        try:
            self._events.close()
        except OSError:
            pass

    def _event(self, step: int, **fields: Any) -> None:
        self._events.write_event(self._proto.Event(wall_time=time.time(), step=step, **fields))


def _open_board(folder: Path, resume_step: int) -> _Board | None:
    try:
        return _Board(folder, resume_step)
    except OSError as error:
        _say(f"{folder}: no TensorBoard files ({error.strerror})")
    return None


def _records(data: bytes) -> Iterator[tuple[bytes, dict[str, Any]]]:
    for line in data.split(b"\n"):
        if (record := _record(line)) is not None:
            yield line, record


def _record(line: bytes) -> dict[str, Any] | None:
    """None: torn, or not ours."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    ours = isinstance(record, dict) and isinstance(record.get("kind"), str) and type(record.get("step")) is int
    return record if ours else None


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if hasattr(value, "tolist"):  # NumPy and JAX, scalars and arrays
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)


def _say(text: str) -> None:
    print(f"maijax: {text}", file=sys.stderr, flush=True)
