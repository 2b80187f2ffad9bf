"""The verb sweep: many trials of one experiment, kept in one folder. No jax here; workers are other processes."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from maijax import overrides, provenance, registry, space
from maijax.cli import run
from maijax.cli.table import WIDTH, rows
from maijax.errors import UserError
from maijax.space import Choice, Range, Sweep
from maijax.sweep import drive, groups, launch, picture, suggest
from maijax.sweep.study import Study, Trial, check
from maijax.train import rundir

SHOWN = 40  # trials in the table


def sweep(args: argparse.Namespace) -> int:
    """Runs every trial, or goes on; 0 when all have ended, 75 when stopped, 1 if not one of them finished."""
    asked, origins = chosen(args)
    folder = rundir.locate(args.runs_dir, args.run_name or default_name(asked, args))
    if asked.sampler == "tpe":
        suggest.load()
    if args.dry_run:
        return foretell(asked, folder, args)
    launcher = launch.make(args.launcher, folder.absolute(), workers=args.workers, together=args.together)
    study = Study.create(folder, asked, origins)
    finished = drive.drive(study, launcher)
    trials = study.trials()
    page = picture.write(study)
    if args.json:
        print(json.dumps(_plainly(study, trials, finished), indent=1))
    else:
        tell(study, trials, page)
        if not finished:
            ended = sum(trial.result is not None for trial in trials)
            print(f"stopped with {ended} of {study.count} trials ended, the others saved; the same command goes on")
    if not finished:
        return run.STOPPED
    return 0 if drive.best(trials) is not None else 1


def chosen(args: argparse.Namespace) -> tuple[Sweep, dict[str, str]]:
    """(the sweep that a command line means, where each value of its base comes from); raises UserError.

    NAME is a registered sweep, or an experiment; what --set gives more than one value is added to the space.
    """
    if args.module:
        registry.load_module(args.module)
    if registry.sweep_entry(args.name) is not None:
        asked = registry.sweep(args.name)
    else:
        base = registry.get(args.name)
        asked = Sweep(name=base.name, base=base, space={})
    fixed, varied = space.split(args.set)
    base, problems = asked.base, []
    if args.mesh:
        base = dataclasses.replace(base, mesh=registry.mesh(args.mesh))
    try:
        base = overrides.apply(base, fixed)
    except UserError as error:
        problems.append(str(error))
    whole = {**asked.space, **varied}
    for path, _, _ in (setting.partition("=") for setting in fixed):
        whole.pop(path.strip(), None)  # held at one value after all
    changes: dict[str, Any] = {"base": base, "space": whole, "sampler": args.sampler or asked.sampler}
    if args.sampler is None and varied and asked.sampler == "grid" and _endless(varied):
        changes["sampler"] = "random"
    if args.trials is not None:
        changes["trials"] = args.trials
    elif changes["sampler"] == "grid":
        changes["trials"] = None
    if args.prune is not None:
        changes["prune"] = args.prune
    made = dataclasses.replace(asked, **changes)
    try:
        made.validate()
    except UserError as error:
        problems.append(str(error))
    if problems:
        raise UserError("; ".join(problems))
    return made, provenance.explain(base, asked.base)


def _endless(varied: dict[str, str]) -> bool:
    """Whether some range has no number of points, so that there is no grid."""
    found = []
    for path, text in varied.items():
        try:
            found.append(space.parse(path, text))
        except UserError:
            return False  # told elsewhere
    return any(isinstance(one, Range) and one.points is None for one in found)


def default_name(asked: Sweep, args: argparse.Namespace) -> str:
    """As a run's: the name, and every value set, so that the same command finds its sweep again."""
    name = run.default_name(dataclasses.replace(asked.base, name=asked.name), args)
    return name if name not in registry.names() else f"{name}-sweep"


def foretell(asked: Sweep, folder: Path, args: argparse.Namespace) -> int:
    """Says what a sweep would do, and writes nothing."""
    check(folder, asked)
    ended = [t for t in Study.load(folder).trials() if t.result is not None] if (folder / "sweep.json").exists() else []
    of = f" of {asked.base.name}" if asked.base.name else ""  # a registered sweep's base has no name of its own
    print(f"{asked.name}: {asked.count} trials{of}, {asked.sampler}, in {folder}")
    for path, one in asked.dimensions.items():
        print(f"  {path}: {_described(one)}")
    if asked.sampler != "tpe":
        experiments = [asked.experiment(asked.point(i)) for i in range(asked.count)]
        tokens = sum(e.tokens for e in experiments)
        shapes = [groups.signature(e) for e in experiments]
        alone = shapes.count(None)
        print(f"  {tokens:,} tokens in all; {len(set(shapes) - {None}) + alone} different programs, at most "
              f"{args.together} trials in one at a time")
    print(f"would {'go on' if ended else 'start'}: {len(ended)} of {asked.count} have ended; nothing was written")
    return 0


def _described(one: Range | Choice) -> str:
    if isinstance(one, Choice):
        return ", ".join(one.values)
    low, high = (overrides.show(v) for v in (one.low, one.high))
    points = f", {one.points} points: {', '.join(one.grid())}" if one.points and one.points <= 12 else ""
    return f"{low} to {high}{', even in the logarithm' if one.log else ''}{points}"


def tell(study: Study, trials: list[Trial], page: Path) -> None:
    """Prints the trials, the best first."""
    best = picture.ranked(trials)
    paths = list(study.sweep.space)
    leaves = [path.rpartition(".")[2] for path in paths]
    names = [leaf if leaves.count(leaf) == 1 else path for leaf, path in zip(leaves, paths, strict=True)]
    table = [["trial", *names, "bits/byte", "loss", "step", ""]]
    for trial in best[:SHOWN]:
        r = trial.result
        assert r is not None
        figures = ["" if v is None else f"{v:.4f}" for v in (r.bits_per_byte, r.loss)]
        state = "" if r.state == "done" else f"{r.state}{': ' + r.why if r.why else ''}"
        table.append([str(trial.number), *(trial.point[path] for path in paths), *figures, f"{r.step:,}", state])
    widths = [min(max(map(len, column)), 24) for column in zip(*(row[:-1] for row in table), strict=True)]
    rows(table, widths=[*widths, max(8, WIDTH - sum(widths) - 2 * len(widths))])
    if len(best) > SHOWN:
        print(f"and {len(best) - SHOWN} more")
    if page.exists():
        print(f"\npicture: {page}")


def _plainly(study: Study, trials: list[Trial], finished: bool) -> dict[str, Any]:
    top = drive.best(trials)
    return {
        "sweep": study.folder.name, "folder": str(study.folder), "finished": finished, "count": study.count,
        "best": None if top is None else top.number,
        "trials": [
            {"trial": t.number, "run": str(study.where(t.number)), "values": t.point}
            | (dataclasses.asdict(t.result) if t.result is not None else {"state": "stopped"})
            for t in trials
        ],
    }
