"""The run: read top to bottom. Values in, a run folder out; the same for a laptop and a pod."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from maijax import optim, plain
from maijax.config import Experiment
from maijax.data import cachedir, pipeline
from maijax.errors import UserError
from maijax.models import decoder
from maijax.optim import skip
from maijax.parallel import together
from maijax.parallel.mesh import make_mesh
from maijax.parallel.sharding import Layout
from maijax.train import environment, metrics, report, rundir, state
from maijax.train.checkpoint import Checkpoints, Meta
from maijax.train.evaluate import Evaluation
from maijax.train.interrupt import Interrupt
from maijax.train.metrics import MetricLog
from maijax.train.step import compile_step
from maijax.train.trainer import Trainer, Watch

TOKENIZER = "tokenizer.model"  # in the run folder, so that it can be moved to another machine


class Outcome(NamedTuple):
    """How a run ended."""

    step: int
    finished: bool  # False: interrupted; the same command goes on
    evaluation: Evaluation | None  # of all that is held out, when finished


def run(
    experiment: Experiment, folder: Path, *, cache: Path, record: dict[str, Any], watch: Watch | None = None
) -> Outcome:
    """Trains an experiment in a run folder, or goes on where that folder's run stopped.

    `record` is what experiment.json holds beside the values; `watch` may stop it at an evaluation. Raises UserError
    before anything is written if the experiment, its data or the folder will not do, RunError if training itself
    cannot go on.
    """
    # 1. Hardware decides nothing but layout and numeric format.
    platform = jax.devices()[0].platform
    experiment = dataclasses.replace(experiment, model=decoder.resolve(experiment.model, platform))
    model, train = experiment.model, experiment.train
    layout = Layout(make_mesh(experiment.mesh), experiment.mesh)
    layout.batch((train.batch_size // train.accumulation, train.seq_len))

    # 2. Refuse early: a folder that holds another experiment, then data that cannot be read.
    rundir.check(folder, experiment)
    data = pipeline.open_data(
        experiment.data, vocab_size=model.vocab_size, seq_len=train.seq_len, seed=train.seed, cache=cache
    )

    fits(experiment, data)
    agree(experiment, folder, data)
    first = together.first()
    with (
        rundir.RunFolder(folder, writer=first) as run_folder,
        Interrupt() as interrupt,
        Checkpoints(folder / "checkpoints", keep=train.keep, writer=True) as checkpoints,
        together.failing(),
    ):
        new = run_folder.claim(experiment, record | {"experiment": plain.to_plain(experiment)})
        peak = environment.matmul_peak(cache, jnp.dtype(model.dtype)) if first else 1.0  # told by the first alone
        described = environment.describe() | {"matmul_peak_gflops": peak / 1e9, "corpus": data.summary}

        # 3. State: this run's newest sound checkpoint, else from the seed.
        tx = skip.wrap(optim.build(experiment.optim, model, train.steps), experiment.optim)
        identity = plain.fingerprint(rundir.identity(experiment))
        target = state.abstract(model, tx, layout)
        restored = checkpoints.restore(target, identity=identity, data=data.identity)
        if restored is None:
            meta = Meta(
                step=0, identity=identity, data=data.identity, token_hash=pipeline.START_HASH, seconds=0.0
            )
            now = state.create(model, tx, layout, train.seed)
        else:
            now, meta = restored
        name = "environment.json" if new else f"environment.{meta.step}.json"
        if first:
            if restored is not None and meta.step < train.steps:
                going_on(folder, meta.step, described)
            rundir.write_json(folder / name, described)
            cachedir.write_file(folder / TOKENIZER, data.tokenizer.model)

        # 4. The loop, then the last look: all held-out text, a story. A run that has had it is only told of.
        if meta.step == train.steps and (found := together.from_first(lambda: last_look(folder))) is not None:
            if first:
                report.write_report(folder)
            return Outcome(step=meta.step, finished=True, evaluation=Evaluation(*found))
        with MetricLog(folder, resume_step=meta.step, enabled=first) as log:
            trainer = Trainer(
                experiment=experiment, layout=layout, data=data, log=log, checkpoints=checkpoints,
                interrupt=interrupt, peak=peak, step=compile_step(experiment, tx, layout), watch=watch,
            )
            now, meta = trainer.loop(now, meta)
            finished = meta.step == train.steps
            found = trainer.finish(now.params, meta, cache) if finished else None
        if first:
            report.write_report(folder)
    return Outcome(step=meta.step, finished=finished, evaluation=found)


def fits(experiment: Experiment, data: pipeline.Data) -> None:
    """Raises UserError if there is no room to go on from the prompt."""
    length, context = len(data.tokenizer.encode(experiment.train.prompt)) + 1, experiment.model.context
    if length >= context:
        raise UserError(f"train.prompt is {length} tokens long, model.context={context}; shorten it")


def agree(experiment: Experiment, folder: Path, data: pipeline.Data) -> None:
    """Raises UserError if this process was started with another experiment, folder or text than process 0."""
    here = {"command": plain.to_plain(experiment) | {"run": folder.name}, "text": data.identity}
    for what, there in together.from_first(lambda: {k: plain.fingerprint(v) for k, v in here.items()}).items():
        if plain.fingerprint(here[what]) != there:
            raise UserError(
                f"process {jax.process_index()} was started with another {what} than process 0; start all with the same"
            )


def going_on(folder: Path, step: int, described: dict[str, Any]) -> None:
    """Says where a run goes on, and why the rest may differ in the last bits from a run that never stopped."""
    changed = environment.changes(folder / "environment.json", described)
    why = f"; not bit for bit, since {', '.join(changed)}" if changed else ""
    print(f"maijax: {folder} goes on after step {step}{why}", file=sys.stderr, flush=True)


def last_look(folder: Path) -> Evaluation | None:
    """The final evaluation that a run folder holds, if it has come so far."""
    found = metrics.final(metrics.read(folder))
    return None if found is None else Evaluation(**{name: found[name] for name in Evaluation._fields})
