"""The experiment that a command line means: name, module, mesh and settings."""

from __future__ import annotations

import argparse
import dataclasses

from maijax import overrides, registry
from maijax.config import Experiment
from maijax.errors import UserError


def experiment(args: argparse.Namespace) -> tuple[Experiment, Experiment]:
    """(as chosen, as registered), the former with --mesh and every --set applied; raises UserError."""
    base = named(args.name, args.module)
    chosen = base
    if getattr(args, "mesh", None):
        chosen = dataclasses.replace(chosen, mesh=registry.mesh(args.mesh))
    return overrides.apply(chosen, args.set), base


def named(name: str, module: str | None) -> Experiment:
    """The registered experiment, from a module of the user's own if one is given; raises UserError."""
    if module:
        registry.load_module(module)
    if name not in (*registry.names(), *registry.sweep_names()):
        _no_run(name)
    return registry.get(name)


def _no_run(name: str) -> None:
    """Raises UserError if a name is a run's, or of a folder of runs, with the verb that reads these."""
    from maijax.compare import select

    if folders := select.folders("runs", name):
        what = "is a run" if len(folders) == 1 else f"holds {len(folders)} runs"
        values = f"; {folders[0] / 'experiment.json'} holds its values" if len(folders) == 1 else ""
        raise UserError(f"{name} {what}, not an experiment{values}; `maijax compare {name} OTHER` puts runs side by "
                        "side")
