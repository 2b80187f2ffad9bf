"""The loop itself. It never waits for the device: step n-1 is looked at when step n is under way."""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from maijax import scaling
from maijax.config import Experiment
from maijax.data import pipeline, xz
from maijax.errors import RunError
from maijax.parallel import together
from maijax.parallel.sharding import Layout
from maijax.serve.generate import generate
from maijax.train.checkpoint import Checkpoints, Meta
from maijax.train.evaluate import Evaluation, evaluate, make_scorer
from maijax.train.interrupt import Interrupt
from maijax.train.metrics import MetricLog
from maijax.train.progress import Progress
from maijax.train.state import State

SAMPLE_TOKENS = 160
FINAL_SAMPLES = 3

Watch = Callable[[int, float], bool]  # (step, held-out bits per byte) of an evaluation -> whether to stop there


@dataclasses.dataclass(kw_only=True)
class Trainer:
    """The open parts of one run."""

    experiment: Experiment
    layout: Layout
    data: pipeline.Data
    log: MetricLog
    checkpoints: Checkpoints
    interrupt: Interrupt
    peak: float  # FLOP/s
    step: Any  # jitted: (state, batch) -> (state, metrics)
    watch: Watch | None = None

    def loop(self, state: State, meta: Meta) -> tuple[State, Meta]:
        """Trains until the last step or an interrupt; returns the state and where it stands, both saved."""
        train = self.experiment.train
        window = Window(self.experiment, self.peak, start=meta)
        rows, counted = self.rows
        stream = pipeline.batches(
            self.data, batch_size=train.batch_size, start_step=meta.step, rows=rows, counted=counted,
            workers=self.experiment.data.workers,
        )
        start = meta.step + 1
        with Progress(total=train.steps, start=meta.step, enabled=together.first()) as bar:
            for done in range(start, train.steps + 1):
                # Dispatch. The batch is read while the step before is still computing.
                before = time.perf_counter()
                batch, digest = next(stream)
                waited = time.perf_counter() - before
                placed = self.place(batch)
                if done == start and together.several():
                    # Devices that wait for another's give up sooner than a compiler: all compile, then all begin.
                    self.step = self.step.lower(state, placed).compile()
                    together.barrier("step is compiled")
                state, metrics = self.step(state, placed)
                said = together.Said(digest, asked=self.interrupt.asked is not None)
                window.add(Flying(done, metrics, waited, said))

                # Look back, at the step before this one.
                if (record := window.settle(behind=1)) is not None:
                    self.tell(bar, record)

                # Now and then, off the steady path.
                # Several processes stop when all have heard of it, a step later, so that all stop at the same step.
                asked = window.asked if together.several() else self.interrupt.asked is not None
                if asked or done == train.steps or due(done, train.checkpoint_every):
                    if (record := window.settle(behind=0)) is not None:
                        self.tell(bar, record)
                    with window.pause():
                        meta = dataclasses.replace(
                            meta, step=done, token_hash=window.token_hash, seconds=window.seconds()
                        )
                        self.checkpoints.save(state, meta)
                if asked:
                    bar.doing("stopped")
                    break
                if done < train.steps:
                    with window.pause():
                        if due(done, train.eval_every):
                            bar.doing("evaluating")
                            found = self.held_out(state.params, train.eval_sequences)
                            self.log.write(done, "eval", **found._asdict())
                            bar.note(f"step {done}: held-out {found.bits_per_byte:.3f} bits per byte")
                            if self.watch is not None and self.watch(done, found.bits_per_byte):
                                break
                        if due(done, train.sample_every):
                            bar.doing("telling a story")
                            text = self.sample(state.params, seed=done)[0]
                            self.log.write(done, "sample", prompt=train.prompt, text=text)
                            bar.note(f"step {done}: {' '.join(text.split())[:300]}")
        return state, meta

    def finish(self, params: Any, meta: Meta, cache: Path) -> Evaluation:
        """The last look: all held-out text, beside what xz makes of it, and a few stories."""
        train = self.experiment.train
        found = self.held_out(params, None)
        for text in self.sample(params, seed=train.seed, count=FINAL_SAMPLES):
            self.log.write(meta.step, "sample", prompt=train.prompt, text=text, final=True)
        # Last, since it says that all of this is done.
        beside = {"xz_bits_per_byte": xz.bits_per_byte(self.data, cache)} if together.first() else {}
        self.log.write(meta.step, "eval", **found._asdict(), final=True, **beside)
        return found

    def held_out(self, params: Any, limit: int | None) -> Evaluation:
        train = self.experiment.train
        rows = max(1, train.batch_size // train.accumulation)
        return evaluate(self.scorer, params, pipeline.held_out_batches(self.data, rows, limit=limit))

    @functools.cached_property
    def scorer(self) -> Any:
        train = self.experiment.train
        rows = max(1, train.batch_size // train.accumulation)
        return make_scorer(self.experiment.model, self.layout, rows=rows, seq_len=train.seq_len)

    def sample(self, params: Any, *, seed: int, count: int = 1) -> list[str]:
        """Stories that begin with the experiment's prompt, the prompt included."""
        model, prompt = self.experiment.model, self.experiment.train.prompt
        tokenizer = self.data.tokenizer
        ids = [tokenizer.bos, *tokenizer.encode(prompt).tolist()]
        room = model.context - len(ids)
        found = generate(
            params, model, [ids] * count, max_tokens=min(SAMPLE_TOKENS, room), temperature=0.7, top_p=0.9,
            seed=seed, eos_id=tokenizer.eos,
        )
        return [prompt + tokenizer.decode(tokens) for tokens in found]

    @functools.cached_property
    def rows(self) -> tuple[list[int], list[int]]:
        """(rows of a batch that this process reads, those of them that it counts); see together.rows_here."""
        shape = self.experiment.train.batch_size, self.experiment.train.seq_len
        return together.rows_here(self.layout.batch(shape), shape)

    def place(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """This process's rows of a batch, as global arrays on the mesh."""
        shape = self.experiment.train.batch_size, self.experiment.train.seq_len
        return together.place(self.layout.batch(shape), shape, self.rows[0], batch)

    def tell(self, bar: Progress, record: dict[str, Any]) -> None:
        self.log.write(record["step"], "train", **{k: v for k, v in record.items() if k != "step"})
        bar.update(
            step=record["step"], loss=record["loss"], tokens_per_s=record["tokens_per_s"],
            matmul_fraction=record["matmul_fraction"],
        )
        limit = self.experiment.optim.max_skipped
        if record["skipped_in_row"] > limit:
            raise RunError(
                f"step {record['step']}: the last {record['skipped_in_row']} steps were skipped (optim.max_skipped="
                f"{limit}) for a loss or gradient that is not finite or spikes; the weights are those before them: "
                "lower optim.lr, or look at the data there"
            )


class Flying(NamedTuple):
    """A step that is under way."""

    step: int
    metrics: dict[str, jax.Array]
    waited: float  # seconds, for its data
    said: together.Said


class Window:
    """The steps since the last log line: what they measured, still on the device, and the time they took.

    token_hash: of all tokens up to the last step that landed; asked: whether any process was asked to stop by then.
    """

    def __init__(self, experiment: Experiment, peak: float, start: Meta) -> None:
        self.train = experiment.train
        self.flops = scaling.train_flops_per_token(experiment.model, experiment.train.seq_len)
        self.peak = peak
        self.token_hash, self.asked = start.token_hash, False
        self.flying: collections.deque[Flying] = collections.deque()
        self.landed: list[Flying] = []
        self._base, self._opened = start.seconds, time.perf_counter()
        self._since, self._paused = self._opened, 0.0
        self._pausing: float | None = None
        self._compiling, self._untimed = True, 0

    def seconds(self) -> float:
        """Spent in the loop by this run so far, evaluation and samples included, resumed parts too."""
        return self._base + time.perf_counter() - self._opened

    def pause(self) -> Window:
        return self

    def __enter__(self) -> None:
        self._pausing = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        assert self._pausing is not None
        self._paused += time.perf_counter() - self._pausing

    def add(self, flying: Flying) -> None:
        self.flying.append(flying)

    def settle(self, *, behind: int) -> dict[str, Any] | None:
        """Lets all but the last `behind` steps land; a record if a log line is due by them."""
        record = None
        while len(self.flying) > behind:
            item = self.flying.popleft()
            item.metrics["loss"].block_until_ready()
            digest, asked = item.said.read()
            self.token_hash, self.asked = pipeline.roll(self.token_hash, digest), self.asked or asked
            self.landed.append(item)
            if self._compiling:  # the first step's time is the compiler's, not the machine's
                self._compiling, self._since, self._paused, self._untimed = False, time.perf_counter(), 0.0, 1
            step = item.step
            if step % self.train.log_every == 0 or step == self.train.steps:
                record = self._record()
        return record

    def _record(self) -> dict[str, Any]:
        now = time.perf_counter()
        step = self.landed[-1].step
        values = jax.device_get([landed.metrics for landed in self.landed])
        spent = max(now - self._since - self._paused, 1e-9)
        timed = len(values) - self._untimed
        rate = timed * self.train.batch_size * self.train.seq_len / spent if timed else None
        record: dict[str, Any] = {"step": step} | summarise(values)
        record |= {
            "tokens": step * self.train.batch_size * self.train.seq_len,
            "tokens_per_s": rate,
            "matmul_fraction": None if rate is None else rate * self.flops / self.peak,
            "data_wait_s": sum(landed.waited for landed in self.landed),
            "token_hash": self.token_hash,
            "seconds": self.seconds(),
        }
        self.landed, self._since, self._paused, self._untimed = [], now, 0.0, 0
        return record


def summarise(values: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the log says of several steps' metrics, scalars on the host."""
    record: dict[str, Any] = {}
    for key in values[-1]:
        column = np.asarray([v[key] for v in values], np.float64)
        # Counters and rates as they stand; what is measured, as its mean over the steps that count.
        last = key.startswith("skipped") or key == "lr"
        finite = column[np.isfinite(column)]
        record[key] = float(column[-1]) if last else float(finite.mean()) if finite.size else math.nan
    record["skipped_in_row"] = max(v["skipped_in_row"] for v in values)
    for key in ("skipped", "skipped_in_row"):
        record[key] = int(record[key])
    return record


def due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0
