"""The verb sweep: many trials of one experiment, kept in one folder. No jax here; workers are other processes."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from maijax import overrides, provenance, registry, space
from maijax.cli import choose, run
from maijax.cli.table import WIDTH, paragraph, rows
from maijax.errors import UserError
from maijax.space import Choice, Range, Sweep
from maijax.sweep import drive, groups, launch, picture, seeds, suggest
from maijax.sweep.groups import SEED
from maijax.sweep.study import Study, Trial, check, newest
from maijax.train import rundir
from maijax.words import plural

SHOWN = 40  # lines of a table
LEAST = 12  # columns for what is said of a trial


def sweep(args: argparse.Namespace) -> int:
    """Runs every trial, or goes on; 0 when all have ended, 75 when stopped, 1 if not one of them finished."""
    asked, origins = chosen(args)
    folder = rundir.locate(args.runs_dir, args.run_name or default_name(asked, args))
    if asked.sampler == "tpe":
        suggest.load()
    launch.parse(args.launcher)
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
            print(f"stopped with {ended} of {plural(study.count, 'trial')} ended, the others saved; "
                  "the same command goes on")
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
        base = choose.named(args.name, None, args.runs_dir)
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
    of = f" of {asked.base.name}" if asked.base.name else ""  # a registered sweep's base has no name of its own
    print(f"{asked.name}: {plural(asked.count, 'trial')}{of}, {asked.sampler}, in {folder}")
    for path, one in asked.dimensions.items():
        paragraph(f"{path}: {_described(one)}")
    if asked.sampler != "tpe":
        experiments = [asked.experiment(asked.point(i)) for i in range(asked.count)]
        tokens = sum(e.tokens for e in experiments)
        shapes = [groups.signature(e) for e in experiments]
        programs = len(set(shapes) - {None}) + shapes.count(None)
        paragraph(f"{tokens:,} tokens in all; {plural(programs, 'different program')}, at most "
                  f"{plural(args.together, 'trial')} in one at a time")
    study = Study(folder, asked, {})
    begun = study.trials()
    if not begun:
        print(f"would start {plural(asked.count, 'trial')}; nothing was written")
        return 0
    ended = sum(trial.result is not None for trial in begun)
    if ended == asked.count:
        print(f"would train nothing: {plural(ended, 'trial')} of {ended:,} ended; nothing was written")
        return 0
    saved = sum(trial.result is None and newest(study.where(trial.number)) > 0 for trial in begun)
    paragraph(f"would go on: {ended} of {plural(asked.count, 'trial')} ended, {saved} to go on from a checkpoint, "
              f"{asked.count - ended - saved} to start; nothing was written", indent="")
    return 0


def _described(one: Range | Choice) -> str:
    if isinstance(one, Choice):
        return ", ".join(one.values)
    low, high = (overrides.show(v) for v in (one.low, one.high))
    points = f", {one.points} points: {', '.join(one.grid())}" if one.points and one.points <= 12 else ""
    return f"{low} to {high}{', even in the logarithm' if one.log else ''}{points}"


def tell(study: Study, trials: list[Trial], page: Path) -> None:
    """Prints the trials, the best first, and where there are several seeds their means."""
    best = picture.ranked(trials)
    paths = list(study.sweep.space)
    table = []
    for trial in best[:SHOWN]:
        r = trial.result
        assert r is not None
        figures = ["" if v is None else f"{v:.4f}" for v in (r.bits_per_byte, r.loss)]
        state = "" if r.state == "done" else f"{r.state}{': ' + r.why if r.why else ''}"
        table.append([str(trial.number), *(trial.point[path] for path in paths), *figures, f"{r.step:,}", state])
    _print(["trial", *_leaves(paths), "bits/byte", "loss", "step", ""], table, len(best), range(1, 1 + len(paths)))
    found = seeds.settings(trials) if SEED in paths else []
    if seeds.repeated(found):
        rest = [path for path in paths if path != SEED]
        table = [
            [*(one.point[path] for path in rest), f"{one.mean:.4f}",
             "" if one.deviation is None else f"{one.deviation:.4f}", str(len(one.trials)),
             f"{one.lost} more did not finish" if one.lost else ""]
            for one in found[:SHOWN]
        ]
        print("\nmean over seeds, and the standard deviation of a single trial")
        _print([*_leaves(rest), "bits/byte", "deviation", "seeds", ""], table, len(found), range(len(rest)))
    if page.exists():
        print(f"\npicture: {page}")


def _leaves(paths: list[str]) -> list[str]:
    """The last word of each path, where that is enough to tell them apart."""
    leaves = [path.rpartition(".")[2] for path in paths]
    return [leaf if leaves.count(leaf) == 1 else path for leaf, path in zip(leaves, paths, strict=True)]


def _print(head: list[str], table: list[list[str]], count: int, varied: range) -> None:
    """A table under its head, of `count` lines if it were whole; the last column takes what is left of the line.

    `varied` are the columns of the values that were varied.
    """
    # Values may be cut into lines, figures may not; with very many values the table is wider than the page.
    longest = [max(map(len, column)) for column in zip(*(row[:-1] for row in (head, *table)), strict=True)]
    figures = [i for i in range(len(longest)) if i not in varied]
    room = WIDTH - LEAST - 2 * len(longest) - sum(longest[i] for i in figures)
    most = max(6, room // max(1, len(varied)))
    widths = [long if i in figures else min(long, most) for i, long in enumerate(longest)]
    rows([head, *table], widths=[*widths, max(LEAST, WIDTH - sum(widths) - 2 * len(widths))])
    if count > len(table):
        print(f"and {count - len(table)} more")


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
        "settings": [
            {"values": one.point, "mean": one.mean, "standard_deviation": one.deviation, "seeds": len(one.trials),
             "not_finished": one.lost, "trials": [t.number for t in one.trials]}
            for one in (seeds.settings(trials) if SEED in study.sweep.space else [])
        ],
    }
