"""The training step of a run, compiled for devices that need not be there, and what the compiler says of it."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from maijax import optim
from maijax.config import Experiment
from maijax.models import decoder
from maijax.optim import skip
from maijax.parallel.mesh import make_mesh
from maijax.parallel.sharding import Layout
from maijax.plan import dump
from maijax.train import state as states
from maijax.train.state import State
from maijax.train.step import compile_step


@dataclasses.dataclass(frozen=True)
class Step:
    """A training step and what it takes, as shapes."""

    function: Any  # jitted
    state: State
    batch: dict[str, jax.ShapeDtypeStruct]


def step(experiment: Experiment, devices: Sequence[Any]) -> Step:
    """The same step that a run compiles, over these devices; nothing is computed or stored.

    Raises UserError where the mesh does not divide the devices or the values.
    """
    platform = devices[0].platform
    experiment = dataclasses.replace(experiment, model=decoder.resolve(experiment.model, platform))
    model, train = experiment.model, experiment.train
    layout = Layout(make_mesh(experiment.mesh, devices), experiment.mesh)
    tx = skip.wrap(optim.build(experiment.optim, model, train.steps), experiment.optim)
    shape = (train.batch_size, train.seq_len)
    rows = layout.batch((train.batch_size // train.accumulation, train.seq_len))
    dtypes = dict.fromkeys(("tokens", "targets", "segments", "positions"), jnp.int32) | {"weights": jnp.float32}
    return Step(
        function=compile_step(experiment, tx, layout),
        state=states.abstract(model, tx, layout),
        batch={name: jax.ShapeDtypeStruct(shape, dtype, sharding=rows) for name, dtype in dtypes.items()},
    )


def held(tree: Any) -> int:
    """Bytes that arrays of these shapes and shardings take on one device; exact, without a device's padding."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)
    )


def memory(made: Step, compiled: Any) -> dict[str, int]:
    """Bytes on one device: what goes in, exactly and as the compiler lays it out, and what the step takes besides."""
    found = compiled.memory_analysis()
    # Temporaries lie beside everything that goes in or comes out.
    peak = (
        found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes + found.temp_size_in_bytes
    )
    # That is a little more than is used at once; but the peak that is told leaves out temporaries on a CPU, counts what
    # lies in the host's memory on a GPU, and on a TPU counts the larger of the device's temporaries and the host's.
    if found.peak_memory_in_bytes and {d.platform for d in made.state.step.sharding.device_set} == {"tpu"}:
        peak = min(peak, found.peak_memory_in_bytes)
    return arguments(made) | {
        "arguments": found.argument_size_in_bytes,
        "outputs": found.output_size_in_bytes,
        "aliased": found.alias_size_in_bytes,
        "temporaries": found.temp_size_in_bytes,
        "code": found.generated_code_size_in_bytes,
        "peak": peak,
    }


def arguments(made: Step) -> dict[str, int]:
    """Exact bytes on one device of what goes into a step."""
    return {
        "parameters": held(made.state.params),
        "optimizer": held(made.state.opt_state) + held(made.state.step),
        "batch": held(made.batch),
    }


def compile_for(experiment: Experiment, devices: Sequence[Any], written: Path) -> dict[str, Any]:
    """Everything that the compiler says of an experiment's step on these devices, as plain data.

    `written` is the folder that XLA was told to dump to. A program that does not fit is an answer too: "refused".
    """
    made = step(experiment, devices)
    mesh = experiment.mesh.shape(len(devices))
    began = time.perf_counter()
    lowered = made.function.lower(made.state, made.batch)
    lowering = time.perf_counter() - began
    told: dict[str, Any] = {"devices": len(devices), "mesh": mesh, "memory": arguments(made)}
    began = time.perf_counter()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if (refused := dump.refusal(str(error))) is None:
            raise
        told["refused"] = refused | {"message": str(error).splitlines()[0]}
    else:
        told["memory"] = memory(made, compiled)
    told["seconds"] = {"lower": lowering, "compile": time.perf_counter() - began}
    told["largest"] = dump.largest(written)
    if (work := dump.read(written, mesh)) is not None:
        told["work"] = dataclasses.asdict(work)
    return told
