"""What the processes of a run do together: agree, wait for each other, and end all if one fails. Alone, it is free."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax._src import distributed as _distributed  # the client has no public name
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from maijax.errors import RunError, UserError
from maijax.parallel.distributed import Settings, start

PATIENCE = 24 * 3600  # seconds that processes wait for one that lives: it may be preparing data
GRACE = 60  # seconds for a last checkpoint to be finished, once a process has failed
_FAILED, _LEAVING = "maijax/failed", "maijax/leaving"  # what a process failed of; process 0 is done, and leaves
_WORDS, _BITS = 4, 16  # a digest's 64 bits in words whose sum over 65,536 processes fits 32 bits
_numbers = itertools.count()
_ending: list[tuple[int, str]] = []  # exit code and what to print, once this process has failed


def several() -> bool:
    """Whether this run has more processes than this one."""
    return jax.process_count() > 1


def first() -> bool:
    """Whether this is the process that writes the run's folder and talks to the person."""
    return jax.process_index() == 0


def barrier(what: str) -> None:
    """Waits until all processes are here."""
    if several():
        _client().wait_at_barrier(f"maijax/{what}/{next(_numbers)}", PATIENCE * 1000)


def from_first(value: Callable[[], Any]) -> Any:
    """What process 0 finds, JSON-able, on every process; the others do not look."""
    if not several():
        return value()
    key = f"maijax/told/{next(_numbers)}"
    if first():
        found = value()
        _client().key_value_set(key, json.dumps(found))
        return found
    return json.loads(_client().blocking_key_value_get(key, PATIENCE * 1000))


def all_well(well: bool) -> bool:
    """Whether all is well on every process; each waits for all."""
    return well if not several() else int(np.asarray(_add_up([int(not well)]))[0]) == 0


class Said:
    """What every process says after a step: its share of the tokens' digest, and whether it was asked to stop.

    Sent like a step and read like its metrics, so that the loop waits for neither.
    """

    def __init__(self, digest: int, *, asked: bool) -> None:
        self._alone = (digest, asked)
        self._sum: jax.Array | None = None
        if several():
            words = [(digest >> _BITS * k) % 2**_BITS for k in range(_WORDS)]
            self._sum = _add_up([*words, int(asked)])

    def read(self) -> tuple[int, bool]:
        """(the digests' sum modulo 2^64, whether anyone was asked), equal on every process."""
        if self._sum is None:
            return self._alone
        *words, asked = (int(word) for word in np.asarray(self._sum))
        return sum(word << _BITS * k for k, word in enumerate(words)) % 2**64, asked > 0


def rows_here(where: NamedSharding, shape: tuple[int, int]) -> tuple[list[int], list[int]]:
    """(rows, counted) of a [batch, seq] array: which rows this process's devices hold any part of.

    Each row is counted by one process alone: the first of those that hold a part of it.
    """
    here, lowest = jax.process_index(), dict[tuple[int, int], int]()
    mine = set()
    for device, index in where.devices_indices_map(shape).items():
        start, stop, _ = index[0].indices(shape[0])
        process: int = device.process_index  # pyright: ignore[reportAssignmentType]
        lowest[start, stop] = min(process, lowest.get((start, stop), process))
        if device.process_index == here:
            mine.add((start, stop))
    rows = [row for start, stop in sorted(mine) for row in range(start, stop)]
    counted = [row for start, stop in sorted(mine) if lowest[start, stop] == here for row in range(start, stop)]
    return rows, counted


def place(
    where: NamedSharding, shape: tuple[int, int], rows: Sequence[int], arrays: dict[str, np.ndarray]
) -> dict[str, jax.Array]:
    """Global [batch, seq] arrays from this process's `rows` of them, in order."""
    if where.is_fully_addressable:
        return jax.device_put(arrays, where)
    at = {row: k for k, row in enumerate(rows)}

    def part(array: np.ndarray, index: Any) -> np.ndarray:
        start, stop, _ = index[0].indices(shape[0])
        return array[at[start] : at[start] + stop - start, index[1]]

    return {
        name: jax.make_array_from_callback(shape, where, functools.partial(part, array), dtype=array.dtype)
        for name, array in arrays.items()
    }


@contextlib.contextmanager
def joined(found: Settings | None) -> Iterator[None]:
    """Within it this process is one of several; nothing happens if it is the only one.

    An error, told in one line, ends the process at once, and the others' by `failing`: the end of a program would
    otherwise wait for processes that wait for this one.
    """
    if found is None:
        yield
        return
    watch = _Watch()
    try:
        start(found)
        watch.begin()
        with failing():
            yield
            barrier("done")
    except BaseException as error:
        code, text = _ending[0] if _ending else _last_words(error)
        _tell(text)
        if watch.begun and first():
            with contextlib.suppress(Exception):
                _client().key_value_set(_LEAVING, "")
            time.sleep(2 * watch.every)  # the others hear of it from this one
        _leave(code)
    watch.end()


@contextlib.contextmanager
def failing() -> Iterator[None]:
    """Tells the others of an error that leaves it, before anything waits for them in vain."""
    try:
        yield
    except BaseException as error:
        if several() and not _ending:
            code, text = _last_words(error)
            line = text.splitlines()[-1].removeprefix("maijax: ")
            with contextlib.suppress(Exception):  # another was faster, or the coordinator is gone
                _client().key_value_set(_FAILED, json.dumps([jax.process_index(), line]))
            # What another met with first is the cause: here it may only be a connection that broke.
            _ending.append((code, _another() or text))
            _tell(_ending[0][1])
        raise


class _Watch:
    """Ends this process when another has failed, whatever it is waiting for."""

    def __init__(self) -> None:
        self.every = 1.0  # seconds
        self.begun = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def begin(self) -> None:
        self.begun = True
        self.every = max(1.0, jax.process_count() / 1000)
        self._thread.start()

    def end(self) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(self.every):
            cause = _another()
            if cause is None and not _ending:
                continue
            if cause is not None:
                _tell(cause)
            # It may fail here in the same way, and then ends by itself with all that was begun to be saved.
            until = time.monotonic() + GRACE
            while time.monotonic() < until and not self._ended.wait(self.every):
                if not first() and _heard(_LEAVING) is not None:
                    break
            if not self._ended.is_set():
                _leave(_ending[0][0] if _ending else 1)
            return


def _heard(key: str) -> str | None:
    """What a process has said under a key; None: nothing yet, or the coordinator is gone."""
    try:
        return _client().key_value_try_get(key)
    except Exception:
        return None


def _another() -> str | None:
    """What to print if another process has failed before this one."""
    if (said := _heard(_FAILED)) is None:
        return None
    index, line = json.loads(said)
    return None if index == jax.process_index() else f"maijax: stopping, since process {index} failed: {line}"


def _last_words(error: BaseException) -> tuple[int, str]:
    """(exit code, what to print), as the command line has them."""
    if isinstance(error, UserError | RunError):
        return 2 if isinstance(error, UserError) else 1, f"maijax: {' '.join(str(error).split())}"
    if isinstance(error, OSError):
        return 1, f"maijax: {error.filename or 'a file'}: {error.strerror or error}"
    if isinstance(error, KeyboardInterrupt):
        return 130, "maijax: interrupted"
    return 1, "".join(traceback.format_exception(error)).rstrip()


@functools.cache
def _tell(text: str) -> None:
    """Prints it, once: the watch and what it watches may both have it to say."""
    print(text, file=sys.stderr, flush=True)


def _leave(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _client() -> Any:
    client = _distributed.global_state.client
    if client is None:  # TPU hosts see each other's chips, with or without it
        raise UserError("jax sees several processes that are not connected; set MAIJAX_COORDINATOR=auto for each")
    return client


@functools.cache
def _adding() -> tuple[list[Any], NamedSharding, Any]:
    mesh = Mesh(np.asarray(jax.devices()), ("all",), axis_types=(AxisType.Auto,))
    rows, whole = NamedSharding(mesh, PartitionSpec("all")), NamedSharding(mesh, PartitionSpec())
    total = jax.jit(lambda x: jnp.sum(x, 0, dtype=jnp.uint32), in_shardings=rows, out_shardings=whole)
    return jax.local_devices(), rows, total


def _add_up(numbers: Sequence[int]) -> jax.Array:
    """uint32 [n]: the sum of every process's numbers, not waited for."""
    devices, where, total = _adding()
    mine = np.zeros((len(devices), 1, len(numbers)), np.uint32)
    mine[0] = numbers
    parts = [jax.device_put(row, device) for row, device in zip(mine, devices, strict=True)]
    shape = (jax.device_count(), len(numbers))
    return total(jax.make_array_from_single_device_arrays(shape, where, parts))
