"""What keeps an experiment from a topology, all of it at once and before any compile. No jax."""

from __future__ import annotations

from maijax import rules
from maijax.config import MESH_AXES, Experiment
from maijax.errors import UserError
from maijax.hardware import Topology


def problems(experiment: Experiment, topology: Topology) -> list[str]:
    """One line each, with the nearest sizes that would do; empty if the step can be laid out."""
    found: list[str] = []
    try:
        mesh = experiment.mesh.shape(topology.devices)
    except UserError as error:  # the other rules still speak of the axes that have a size
        found.append(str(error).removeprefix("mesh: "))
        mesh = {axis: getattr(experiment.mesh, axis) or 1 for axis in MESH_AXES}
    found += rules.problems(experiment, mesh)
    try:
        rules.across(mesh, topology.slices)
    except UserError as error:
        found.append(str(error))
    return found


def demand(experiment: Experiment, topology: Topology) -> None:
    """Raises one UserError that lists every problem, if there is any."""
    if found := problems(experiment, topology):
        raise UserError(f"{experiment.name} on {topology.title}: " + "; ".join(found))
