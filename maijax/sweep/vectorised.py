"""Several trials in one compiled program: one compile, many rates and seeds, and each trial its own run folder.

On a CPU the program goes through the trials one after the other (`lax.map`): measured, 1.4 times as fast as `vmap`,
whose batched products XLA runs badly there; trials that differ in rates, decay and seed equal separate runs to the bit.
Other numbers are float32 arguments here, which constants of a separate run need not round like (`1 - b1` of a beta):
equal to 1e-5. Elsewhere it is `vmap`, equal to 1e-5 on a CPU, and not tried on accelerators.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from maijax import optim, plain, scaling
from maijax.config import Experiment, MeshConfig
from maijax.data import cachedir, pipeline
from maijax.errors import RunError, UserError
from maijax.models import decoder
from maijax.optim import skip
from maijax.parallel import sharding
from maijax.parallel.mesh import make_mesh
from maijax.parallel.sharding import Layout
from maijax.sweep import groups
from maijax.train import environment, loop, report, rundir, state
from maijax.train.checkpoint import Checkpoints, Meta
from maijax.train.evaluate import Evaluation
from maijax.train.interrupt import Interrupt
from maijax.train.metrics import MetricLog
from maijax.train.progress import Progress
from maijax.train.state import State
from maijax.train.step import train_step
from maijax.train.trainer import Trainer, due, summarise

Watch = Callable[[int, int, float], bool]  # (which of them, step, held-out bits per byte) -> whether to stop it there


@dataclasses.dataclass(kw_only=True)
class Lane:
    """One trial of the program: the open parts of its run, and how it ended."""

    index: int  # among those asked for
    trainer: Trainer
    folder: Path
    meta: Meta
    state: State | None = None  # while it is not in the program
    going: bool = True
    outcome: loop.Outcome | RunError | None = None  # None: stopped early by the watch


def run(
    experiments: Sequence[Experiment], folders: Sequence[Path], *, cache: Path, records: Sequence[dict[str, Any]],
    watch: Watch,
) -> list[loop.Outcome | RunError | UserError | None]:
    """As `loop.run` for each, in one program on one device; they must have one `groups.signature`.

    An outcome for each: None for what the watch stopped, the error of a run that cannot begin or go on. Trials whose
    newest checkpoints are of different steps go on in turn, those of one step together.
    """
    layout = Layout(make_mesh(MeshConfig(), jax.devices()[:1]), MeshConfig())
    platform = jax.devices()[0].platform
    experiments = [dataclasses.replace(e, model=decoder.resolve(e.model, platform)) for e in experiments]
    with contextlib.ExitStack() as stack:
        interrupt = stack.enter_context(Interrupt())
        opened = list(_open(experiments, folders, layout, interrupt, cache, records, stack))
        lanes = [lane for lane in opened if isinstance(lane, Lane)]
        for step in sorted({lane.meta.step for lane in lanes if lane.going}):
            same = [lane for lane in lanes if lane.going and lane.meta.step == step]
            for lane, watched in ((lane, _bound(watch, lane.index)) for lane in same):
                lane.trainer.watch = watched
            if step < same[0].trainer.experiment.train.steps and interrupt.asked is None:
                _Chorus(same, layout, interrupt).loop()
            for lane in same:
                _finish(lane, cache)
                lane.state = None
    return [lane.outcome if isinstance(lane, Lane) else lane for lane in opened]


def _bound(watch: Watch, index: int) -> Callable[[int, float], bool]:
    return lambda step, figure: watch(index, step, figure)


def _open(
    experiments: Sequence[Experiment], folders: Sequence[Path], layout: Layout, interrupt: Interrupt, cache: Path,
    records: Sequence[dict[str, Any]], stack: contextlib.ExitStack,
) -> Iterator[Lane | UserError]:
    """Each run's folder, data and newest sound checkpoint; what is equal among them is made once.

    The error of a run that cannot begin, in its place.
    """
    first = experiments[0]
    peak = environment.matmul_peak(cache, jnp.dtype(first.model.dtype))
    tx = skip.wrap(optim.build(first.optim, first.model, first.train.steps), first.optim)
    target = state.abstract(first.model, tx, layout)
    data: dict[int, pipeline.Data] = {}
    fresh: dict[int, State] = {}
    scorer: Any = None
    for index, (experiment, folder, record) in enumerate(zip(experiments, folders, records, strict=True)):
        seed = experiment.train.seed
        identity = plain.fingerprint(rundir.identity(experiment))
        try:
            rundir.check(folder, experiment)
            if seed not in data:
                data[seed] = pipeline.open_data(
                    experiment.data, vocab_size=experiment.model.vocab_size, seq_len=experiment.train.seq_len,
                    seed=seed, cache=cache,
                )
            loop.fits(experiment, data[seed])
            run_folder = stack.enter_context(rundir.RunFolder(folder))
            checkpoints = stack.enter_context(
                Checkpoints(folder / "checkpoints", keep=experiment.train.keep, writer=True)
            )
            new = run_folder.claim(experiment, record | {"experiment": plain.to_plain(experiment)})
            restored = checkpoints.restore(target, identity=identity, data=data[seed].identity)
        except UserError as error:
            yield error
            continue
        if restored is None and seed not in fresh:
            fresh[seed] = state.create(experiment.model, tx, layout, seed)
        start = Meta(
            step=0, identity=identity, data=data[seed].identity, token_hash=pipeline.START_HASH, seconds=0.0
        )
        now, meta = restored or (fresh[seed], start)
        described = environment.describe() | {
            "matmul_peak_gflops": peak / 1e9, "corpus": data[seed].summary, "together": len(experiments),
        }
        rundir.write_json(folder / ("environment.json" if new else f"environment.{meta.step}.json"), described)
        cachedir.write_file(folder / loop.TOKENIZER, data[seed].tokenizer.model)
        log = stack.enter_context(MetricLog(folder, resume_step=meta.step))
        trainer = Trainer(
            experiment=experiment, layout=layout, data=data[seed], log=log, checkpoints=checkpoints,
            interrupt=interrupt, peak=peak, step=None,
        )
        trainer.scorer = scorer = scorer or trainer.scorer  # one compile
        yield Lane(index=index, trainer=trainer, folder=folder, meta=meta, state=now)


def _finish(lane: Lane, cache: Path) -> None:
    """The last look, if the trial came to its end and has not had it; its outcome, and its report."""
    if lane.going:
        # Asked to stop, it is left to be looked at by whoever goes on.
        done = lane.meta.step == lane.trainer.experiment.train.steps and lane.trainer.interrupt.asked is None
        found: Evaluation | None = None
        if done and lane.state is not None:
            found = loop.last_look(lane.folder) or lane.trainer.finish(lane.state.params, lane.meta, cache)
        lane.outcome, lane.going = loop.Outcome(step=lane.meta.step, finished=done, evaluation=found), False
    report.write_report(lane.folder)


def program(experiment: Experiment, layout: Layout, *, vmap: bool) -> Any:
    """The jitted (states, values, which, batches) -> (states, metrics) of several trials, states donated.

    states, values ({path: [trials]}) and which (int32 [trials]: each one's batch) have the trials in front; batches
    have the distinct seeds in front.
    """

    def lane(args: tuple[State, dict[str, jax.Array], jax.Array], batches: Any) -> Any:
        now, values, which = args
        batch = jax.tree.map(lambda x: x[0] if x.shape[0] == 1 else x[which], batches)
        own = groups.with_values(experiment, values)
        tx = skip.wrap(optim.build(own.optim, own.model, own.train.steps), own.optim)
        with sharding.use(layout):
            return train_step(now, batch, own, tx)

    def step(states: State, values: dict[str, jax.Array], which: jax.Array, batches: Any) -> Any:
        args = (states, values, which)
        if vmap:
            return jax.vmap(lambda *one: lane(one, batches))(*args)
        return jax.lax.map(lambda one: lane(one, batches), args)

    return jax.jit(step, donate_argnums=0)


class _Chorus:
    """The loop over the steps of trials that stand at one step."""

    def __init__(self, lanes: list[Lane], layout: Layout, interrupt: Interrupt) -> None:
        self.lanes, self.interrupt = lanes, interrupt
        self.experiment = lanes[0].trainer.experiment
        self.start = lanes[0].meta.step
        self.seeds = sorted({lane.trainer.experiment.train.seed for lane in lanes})
        # A host that has cores only, and no accelerator, runs products one by one faster than batched.
        self.step = program(self.experiment, layout, vmap=jax.default_backend() != "cpu")
        self.take = jax.jit(lambda states, at: jax.tree.map(lambda x: x[at], states))
        self.states: Any = jax.tree.map(lambda *x: jnp.stack(x), *(lane.state for lane in lanes))
        for lane in lanes:
            lane.state = None
        # What is varied at first stays an argument when fewer are left, so that nothing else changes.
        self.paths = list(groups.varied([lane.trainer.experiment for lane in lanes]))
        self._arguments()
        self.hashes = {lane.trainer.experiment.train.seed: lane.meta.token_hash for lane in lanes}
        self.flying: list[tuple[int, Any, float]] = []
        self.since = self.ticked = time.perf_counter()
        self.share = 0.0  # of the time so far, of each trial that is still there
        self.paused, self.untimed = 0.0, 1  # the first step's time is the compiler's

    def _arguments(self) -> None:
        experiments = [lane.trainer.experiment for lane in self.lanes]
        flats = [plain.flatten(experiment) for experiment in experiments]
        self.values = {path: jnp.asarray([flat[path] for flat in flats], jnp.float32) for path in self.paths}
        self.which = jnp.asarray([self.seeds.index(e.train.seed) for e in experiments], jnp.int32)

    def loop(self) -> None:
        """Trains until the last step, an interrupt, or until no trial is left; states and metas are set and saved."""
        train = self.experiment.train
        data = {lane.trainer.experiment.train.seed: lane.trainer.data for lane in self.lanes}
        streams = {
            seed: pipeline.batches(
                one, batch_size=train.batch_size, start_step=self.start, workers=self.experiment.data.workers
            )
            for seed, one in data.items()
        }
        with Progress(total=train.steps, start=self.start) as bar:
            for done in range(self.start + 1, train.steps + 1):
                before = time.perf_counter()
                read = {seed: next(streams[seed]) for seed in self.seeds}
                waited = time.perf_counter() - before
                batches = jax.device_put({
                    name: np.stack([read[seed][0][name] for seed in self.seeds]) for name in read[self.seeds[0]][0]
                })
                self.states, found = self.step(self.states, self.values, self.which, batches)
                self.flying.append((done, found, waited))
                self.hashes = {seed: pipeline.roll(old, read[seed][1]) for seed, old in self.hashes.items()}
                if len(self.flying) > 1:
                    self.flying[-2][1]["loss"].block_until_ready()
                if done == self.start + 1:
                    found["loss"].block_until_ready()
                    self.since = time.perf_counter()
                asked = self.interrupt.asked is not None
                if due(done, train.log_every) or done == train.steps:
                    self._tell(bar)
                before = time.perf_counter()
                if asked or done == train.steps or due(done, train.checkpoint_every):
                    self._save(done)
                if asked or not any(lane.going for lane in self.lanes):
                    break
                if done < train.steps:
                    self._look(done)
                self.paused += time.perf_counter() - before
                if sum(lane.going for lane in self.lanes) <= len(self.lanes) // 2:
                    self._compact()
                    if not self.lanes:
                        break
        for at, lane in enumerate(self.lanes):
            lane.state = self.take(self.states, at) if lane.going else None

    def _seconds(self, lane: Lane) -> float:
        """A trial's share of the time, since they had the device together; of earlier parts too."""
        now = time.perf_counter()
        self.share, self.ticked = self.share + (now - self.ticked) / len(self.lanes), now
        return lane.meta.seconds + self.share

    def _tell(self, bar: Progress) -> None:
        """Writes each trial's log line; a trial that skips too many steps ends."""
        step, train = self.flying[-1][0], self.experiment.train
        values = jax.device_get([found for _, found, _ in self.flying])
        now = time.perf_counter()
        spent, timed = max(now - self.since - self.paused, 1e-9), len(values) - self.untimed
        rate = timed * train.batch_size * train.seq_len * len(self.lanes) / spent if timed else None
        flops = scaling.train_flops_per_token(self.experiment.model, train.seq_len)
        for at, lane in enumerate(self.lanes):
            if not lane.going:
                continue
            record = {"step": step} | summarise([{key: v[at] for key, v in value.items()} for value in values]) | {
                "tokens": step * train.batch_size * train.seq_len,
                "tokens_per_s": rate,  # of all of them
                "matmul_fraction": None if rate is None else rate * flops / lane.trainer.peak,
                "data_wait_s": sum(waited for _, _, waited in self.flying),
                "token_hash": self.hashes[lane.trainer.experiment.train.seed],
                "seconds": self._seconds(lane),
            }
            try:
                lane.trainer.tell(bar, record)
            except RunError as error:
                lane.outcome, lane.going = error, False
        self.flying, self.since, self.paused, self.untimed = [], now, 0.0, 0

    def _save(self, done: int) -> None:
        for at, lane in enumerate(self.lanes):
            if lane.going:
                seconds = self._seconds(lane)
                hashed = self.hashes[lane.trainer.experiment.train.seed]
                saved = dataclasses.replace(lane.meta, step=done, token_hash=hashed, seconds=seconds)
                lane.trainer.checkpoints.save(self.take(self.states, at), saved)
                lane.meta = dataclasses.replace(lane.meta, step=done)

    def _look(self, done: int) -> None:
        """Evaluations and samples that are due."""
        train = self.experiment.train
        if not (due(done, train.eval_every) or due(done, train.sample_every)):
            return
        for at, lane in enumerate(self.lanes):
            if not lane.going:
                continue
            params, trainer = self.take(self.states.params, at), lane.trainer
            if due(done, train.eval_every):
                found = trainer.held_out(params, train.eval_sequences)
                trainer.log.write(done, "eval", **found._asdict())
                if trainer.watch is not None and trainer.watch(done, found.bits_per_byte):
                    lane.going = False
                    continue
            if due(done, train.sample_every):
                text = trainer.sample(params, seed=done)[0]
                trainer.log.write(done, "sample", prompt=train.prompt, text=text)

    def _compact(self) -> None:
        """Leaves out those that ended: the program is compiled again for the rest, once for each halving."""
        keep = [at for at, lane in enumerate(self.lanes) if lane.going]
        self.lanes = [self.lanes[at] for at in keep]
        if self.lanes:
            self.states = self.take(self.states, np.asarray(keep))
            self.flying = [(step, self.take(found, np.asarray(keep)), waited) for step, found, waited in self.flying]
            self._arguments()
