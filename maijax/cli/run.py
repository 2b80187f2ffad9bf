"""The verbs that compute: run, eval, generate."""

from __future__ import annotations

import argparse
import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maijax import provenance, scaling
from maijax.cli import choose
from maijax.config import Experiment, SourceConfig
from maijax.errors import RunError, UserError

if TYPE_CHECKING:
    from maijax.train import loop

STOPPED = 75  # exit code of a run that was interrupted and saved


def run(args: argparse.Namespace) -> int:
    """Trains, or goes on; 0 when finished, 75 when interrupted and saved."""
    experiment, base = choose.experiment(args)
    from maijax.data import cachedir
    from maijax.train import rundir

    folder = rundir.locate(args.runs_dir, args.run_name or default_name(experiment, args))
    record = {
        "name": experiment.name,
        "provenance": provenance.explain(experiment, base),
        "totals": scaling.totals(experiment),
    }
    if args.dry_run:
        return foretell(experiment, folder, record["totals"]["parameters"])
    from maijax.train import programs
    from maijax.train.memory import reuse_freed_memory

    reuse_freed_memory()  # before XLA starts its threads, each of which would take a heap of its own
    cache = cachedir.ready(cachedir.default())
    programs.keep(cache)
    import jax

    from maijax.parallel import distributed, together
    from maijax.train import loop

    with together.joined(distributed.settings(os.environ)):
        try:
            outcome = loop.run(experiment, folder, cache=cache, record=record)
        except jax.errors.JaxRuntimeError as error:
            if not re.search("out of memory|RESOURCE_EXHAUSTED", str(error), re.IGNORECASE):
                raise
            raise RunError(
                f"{str(error).splitlines()[0]}; `maijax doctor {experiment.name}` says what fits: lower "
                "train.batch_size, raise train.accumulation, set model.remat=full, or shard with --mesh FSDP"
            ) from None
        return tell(experiment, outcome, folder) if together.first() else 0 if outcome.finished else STOPPED


def tell(experiment: Experiment, outcome: loop.Outcome, folder: Path) -> int:
    """Prints how a run ended, and returns its exit code."""
    if not outcome.finished:
        print(f"saved at step {outcome.step} of {experiment.train.steps} in {folder}; the same command goes on")
        return STOPPED
    assert outcome.evaluation is not None
    from maijax.train import metrics

    last = [line for line in metrics.read(folder) if line.get("final")]
    xz = next((line.get("xz_bits_per_byte") for line in last if line["kind"] == "eval"), None)
    beside = f" (xz -9e, given the training text: {xz:.3f})" if xz else ""
    for line in last:
        if line["kind"] == "sample":
            print("\n" + line["text"])
            break
    print(f"\nheld out: {outcome.evaluation.bits_per_byte:.3f} bits per byte{beside}, "
          f"loss {outcome.evaluation.loss:.4f} over {outcome.evaluation.tokens:,} tokens")
    print(f"report: {folder / 'report.html'}")
    return 0


def foretell(experiment: Experiment, folder: Path, parameters: int) -> int:
    """Says what a run would do; raises UserError for what looks as if it would stop it before its first step."""
    from maijax.cli import doctor
    from maijax.train import loop, rundir
    from maijax.train.checkpoint import Checkpoints

    rundir.check(folder, experiment, resolved=False)
    if bad := doctor.obstacles(experiment):
        raise UserError(f"{experiment.name} does not fit this machine: {'; '.join(bad)}")
    if loop.last_look(folder) is not None:
        print(f"{folder} is finished, {experiment.train.steps:,} steps; the same command only tells its result")
        return 0
    steps = []
    if (saved := folder / "checkpoints").is_dir():
        with Checkpoints(saved, writer=False) as checkpoints:
            steps = checkpoints.steps()
    begin = f"go on with {folder} after step {steps[0]:,}" if steps else f"start {folder}"
    print(f"would {begin}: {experiment.train.steps:,} steps, {experiment.tokens:,} tokens, {parameters:,} parameters; "
          "nothing was written")
    return 0


def evaluate(args: argparse.Namespace) -> int:
    """Prints loss and bits per byte of a run on its held-out text, or on any source."""
    from maijax.data import cachedir
    from maijax.train import programs

    cache = cachedir.ready(cachedir.default())
    programs.keep(cache)
    from maijax.parallel import distributed, together

    with together.joined(distributed.settings(os.environ)):
        said = score(args, cache)
        if together.first() and args.json:
            print(json.dumps(said))
        elif together.first():
            print(f"{args.run} at step {said['step']} on {said['source']}: {said['bits_per_byte']:.4f} bits per byte, "
                  f"loss {said['loss']:.4f} over {said['tokens']:,} tokens ({said['bytes']:,} bytes)")
    return 0


def score(args: argparse.Namespace, cache: Path) -> dict[str, Any]:
    """What `evaluate` prints, on every process."""
    from maijax.data import pipeline
    from maijax.train import evaluate, restore, rundir

    trained = restore.open_run(rundir.find(args.runs_dir, args.run))
    experiment = trained.experiment
    seq_len = experiment.train.seq_len
    if args.source is not None:
        text = pipeline.open_source(
            SourceConfig(uri=args.source, field=args.field), trained.tokenizer, seq_len=seq_len, cache=cache,
            errors=experiment.data.errors,
        )
    else:
        text = pipeline.open_data(
            experiment.data, vocab_size=experiment.model.vocab_size, seq_len=seq_len, seed=experiment.train.seed,
            cache=cache,
        )
        if other := pipeline.differences(trained.data, text.identity):
            raise UserError(
                f"{args.run} was trained on another value of: {', '.join(other)}; put the old back, or name a --source"
            )
    rows = max(1, experiment.train.batch_size // experiment.train.accumulation)
    scorer = evaluate.make_scorer(experiment.model, trained.layout, rows=rows, seq_len=seq_len)
    found = evaluate.evaluate(scorer, trained.params, pipeline.held_out_batches(text, rows))
    return {"run": args.run, "step": trained.step, "source": args.source or "held out", **found._asdict()}


def generate(args: argparse.Namespace) -> int:
    """Prints continuations of a prompt, the prompt included."""
    from maijax.data import cachedir
    from maijax.train import programs

    programs.keep(cachedir.ready(cachedir.default()))
    from maijax.serve.generate import generate
    from maijax.train import restore, rundir

    trained = restore.open_run(rundir.find(args.runs_dir, args.run))
    model, tokenizer = trained.experiment.model, trained.tokenizer
    ids = [tokenizer.bos, *tokenizer.encode(args.prompt).tolist()]
    room = model.context - len(ids)
    if room < 1:
        raise UserError(f"--prompt is {len(ids)} tokens long, model.context={model.context}; shorten it")
    found = generate(
        trained.params, model, [ids] * args.num, max_tokens=min(args.max_tokens, room),
        temperature=args.temperature, top_k=args.top_k, top_p=args.top_p, seed=args.seed, eos_id=tokenizer.eos,
    )
    print("\n\n---\n\n".join(args.prompt + tokenizer.decode(tokens) for tokens in found))
    return 0


def default_name(experiment: Experiment, args: argparse.Namespace) -> str:
    """The experiment's name, and every value set in any order: the same command finds its run again."""
    parts = [experiment.name, *([f"mesh-{args.mesh}"] if args.mesh else []), *sorted(args.set)]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(parts))[:100].rstrip("-")
