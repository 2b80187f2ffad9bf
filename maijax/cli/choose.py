"""The experiment that a command line means: name, module, mesh and settings."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from maijax import overrides, registry
from maijax.config import Experiment
from maijax.errors import UserError
from maijax.words import plural

RUNS = "runs"  # where runs are kept unless --runs-dir says otherwise


def experiment(args: argparse.Namespace) -> tuple[Experiment, Experiment]:
    """(as chosen, as registered), the former with --mesh and every --set applied; raises UserError."""
    base = named(args.name, args.module, getattr(args, "runs_dir", RUNS))
    chosen = base
    if getattr(args, "mesh", None):
        chosen = dataclasses.replace(chosen, mesh=registry.mesh(args.mesh))
    return overrides.apply(chosen, args.set), base


def named(name: str, module: str | None, runs_dir: str = RUNS) -> Experiment:
    """The registered experiment, from a module of the user's own if one is given; raises UserError."""
    if module:
        registry.load_module(module)
    if name not in (*registry.names(), *registry.sweep_names()):
        _no_run(name, runs_dir)
    return registry.get(name)


def _no_run(name: str, runs_dir: str) -> None:
    """Raises UserError if a name is a run's, or of a folder of runs, with the verb that reads these."""
    from maijax.compare import select

    if folders := select.folders(runs_dir, name):
        run = folders[0] in (Path(name), Path(runs_dir) / name)
        what = "is a run" if run else f"holds {plural(len(folders), 'run')}"
        values = f"; {folders[0] / 'experiment.json'} holds its values" if run else ""
        where = "" if runs_dir == RUNS else f" --runs-dir {runs_dir}"
        raise UserError(f"{name} {what}, not an experiment{values}; `maijax compare {name} OTHER{where}` puts runs "
                        "side by side")
