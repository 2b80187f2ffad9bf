"""A worker: takes trials that nobody runs, runs them, says what came of them, until none is left.

    python -m maijax.sweep.worker FOLDER WORKERS TOGETHER      started by `maijax.sweep.launch`, or by hand
"""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from maijax import provenance, scaling
from maijax.config import Experiment
from maijax.errors import DataError, RunError, UserError
from maijax.sweep import prune
from maijax.sweep.study import Claim, Result, Study, newest
from maijax.train import metrics
from maijax.train.interrupt import Interrupt
from maijax.words import plural

STOPPED = 75
TIED = "MAIJAX_SWEEP_TIED"  # set: standard input is a pipe whose other end is the driver's


def work(folder: str, workers: int, together: int) -> int:
    """Runs trials of the sweep in a folder until none is free; returns 0, or 75 if it was asked to stop.

    Asked by SIGTERM, Ctrl-C, or SIGUSR2, which Slurm sends before a job's time is up. Raises UserError if no trial
    that is free can begin, and none ever did: it is not their values then; or if this machine lacks what all need, as
    data that can be read.
    """
    with Interrupt() as asked:
        signal.signal(signal.SIGUSR2, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        if os.environ.get(TIED):
            threading.Thread(target=_leave_with_the_driver, daemon=True).start()
        study = Study.load(Path(folder).absolute())
        refused: dict[int, UserError] = {}
        while asked.asked is None:
            claims = study.claim(together, workers, but=refused)
            if claims:
                try:
                    together, more = run_claimed(study, claims, together)
                except UserError:  # of the cache folder or the data, in which the trials have no part
                    for claim in claims:
                        claim.release(None)
                    raise
                refused |= more
            elif not refused:
                return 0
            elif not study.trained():
                raise list(refused.values())[-1]
            else:
                refused = {}  # others can be trained, so each of these has itself to blame: it fails now
        return STOPPED


def _leave_with_the_driver() -> None:
    """A driver that was killed can say nothing; its end of the pipe closes."""
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def run_claimed(study: Study, claims: list[Claim], together: int) -> tuple[int, dict[int, UserError]]:
    """Runs claimed trials; (how many to take from now on, why some cannot begin while no trial ever did)."""
    from maijax.data import cachedir
    from maijax.train import memory, programs

    memory.reuse_freed_memory()  # before XLA starts its threads
    cache = cachedir.ready(cachedir.default())
    programs.keep(cache)
    import jax

    from maijax.sweep import vectorised

    experiments = [study.sweep.experiment(claim.trial.point) for claim in claims]
    records = [_record(study, claim, e) for claim, e in zip(claims, experiments, strict=True)]
    numbers = ", ".join(str(claim.trial.number) for claim in claims)
    print(f"maijax: {plural(len(claims), 'trial')}: {numbers}", file=sys.stderr, flush=True)

    def watch(which: int, step: int, figure: float) -> bool:
        if study.sweep.prune == "none":
            return False
        number = claims[which].trial.number
        others = [study.curve(trial.number) for trial in study.trials() if trial.number != number]
        return prune.loses(study.sweep.prune, study.curve(number) | {step: figure}, others)

    outcomes: list[Any]
    try:
        if len(claims) == 1:
            outcomes = [_alone(experiments[0], claims[0], cache, records[0], watch)]
        else:
            folders = [claim.folder for claim in claims]
            outcomes = vectorised.run(experiments, folders, cache=cache, records=records, watch=watch)
    except jax.errors.JaxRuntimeError as error:
        if not re.search("out of memory|RESOURCE_EXHAUSTED", str(error), re.IGNORECASE):
            raise
        if len(claims) > 1:
            for claim in claims:
                claim.release(None)
            print(f"maijax: {len(claims)} trials do not fit into memory together", file=sys.stderr, flush=True)
            return max(1, len(claims) // 2), {}
        outcomes = [RunError(str(error).splitlines()[0])]
    except UserError as error:
        outcomes = [error] * len(claims)
    jax.clear_caches()  # programs of other shapes are not needed again, and they add up
    for outcome in outcomes:
        if isinstance(outcome, DataError):
            raise outcome
    trained, refused = study.trained(), {}
    for claim, outcome in zip(claims, outcomes, strict=True):
        if isinstance(outcome, UserError) and not trained:
            refused[claim.trial.number] = outcome
            claim.release(None)
        else:
            claim.release(_result(study, claim, outcome))
    return together, refused


def _alone(experiment: Experiment, claim: Claim, cache: Path, record: dict[str, Any], watch: Any) -> Any:
    """The outcome of a trial with a program of its own: as `maijax run`; None: stopped by the watch."""
    from maijax.train import loop

    lost: list[int] = []

    def look(step: int, figure: float) -> bool:
        if watch(0, step, figure):
            lost.append(step)
        return bool(lost)

    try:
        outcome = loop.run(experiment, claim.folder, cache=cache, record=record, watch=look)
    except RunError as error:
        return error
    return None if lost else outcome


def _result(study: Study, claim: Claim, outcome: Any) -> Result | None:
    """What a trial's result.json says; None: it is to be taken up again."""
    lines = [line for line in metrics.read(claim.folder) if line["kind"] in ("train", "eval")]
    seconds = next((line["seconds"] for line in reversed(lines) if line["kind"] == "train"), None)
    if isinstance(outcome, Exception):
        step = lines[-1]["step"] if lines else newest(claim.folder)
        return Result(state="failed", step=step, seconds=seconds, why=" ".join(str(outcome).split()))
    if outcome is None:
        last = next(line for line in reversed(lines) if line["kind"] == "eval")
        return Result(
            state="pruned", step=last["step"], bits_per_byte=last["bits_per_byte"], loss=last["loss"], seconds=seconds
        )
    if not outcome.finished:
        return None
    found = outcome.evaluation
    return Result(
        state="done", step=outcome.step, bits_per_byte=found.bits_per_byte, loss=found.loss, seconds=seconds
    )


def _record(study: Study, claim: Claim, experiment: Experiment) -> dict[str, Any]:
    """What the trial's experiment.json holds beside the values."""
    swept = dict.fromkeys(claim.trial.point, f"sweep {study.folder.name}")
    origins = study.provenance or provenance.explain(experiment)
    return {
        "name": experiment.name, "provenance": origins | swept, "totals": scaling.totals(experiment),
        "sweep": {"name": study.folder.name, "trial": claim.trial.number, "values": claim.trial.point},
    }


def told(folder: str, workers: int, together: int) -> tuple[int, str]:
    """As `work`, with the line of what went wrong: (exit code, line), where 2 is for what a person can mend."""
    try:
        return work(folder, workers, together), ""
    except (UserError, RunError) as error:
        return 2 if isinstance(error, UserError) else 1, " ".join(str(error).split())


def main(words: list[str]) -> int:
    folder, workers, together = words
    code, line = told(folder, int(workers), int(together))
    if line:
        print("maijax:", line, file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
