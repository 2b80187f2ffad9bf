"""A plan's bytes beside the truth: what arrays really occupy, and what the program that ran really asked for."""

import dataclasses

import jax
import numpy as np
import pytest

from maijax import optim, registry
from maijax.config import Experiment, MeshConfig
from maijax.models import decoder
from maijax.optim import skip
from maijax.parallel.mesh import make_mesh
from maijax.parallel.sharding import Layout
from maijax.plan import links, program
from maijax.plan.memory import memory, peak
from maijax.train import state as states

# (name of the base, mesh, changes of the model)
CASES = {
    "dense, fsdp": ("phi_test", MeshConfig(data=1, fsdp=8), {}),
    "dense, fsdp x tensor, remat": (
        "phi_test", MeshConfig(data=1, fsdp=4, tensor=2), {"remat": "full", "num_layers": 6, "layers": "scan"}
    ),
    "dense, data x fsdp, dots": (
        "phi_test", MeshConfig(data=2, fsdp=4), {"remat": "dots", "num_layers": 6, "layers": "scan"}
    ),
    "dense, one device": ("phi_test", MeshConfig(data=1), {}),
    "dense, pipeline x fsdp, remat": (
        "phi_test", MeshConfig(data=1, fsdp=4, stage=2, microbatches=2),
        {"remat": "full", "num_layers": 4, "layers": "scan"},
    ),
    "dense, pipeline x data x fsdp, by layer, twice round": (
        "phi_test", MeshConfig(data=2, fsdp=2, stage=2, microbatches=4, repeats=2, gather="layer"),
        {"remat": "full", "num_layers": 8, "layers": "scan"},
    ),
    "mixture, fsdp": ("mai_moe_3m", MeshConfig(data=1, fsdp=8), {}),
    "mixture, data x fsdp, remat": ("mai_moe_3m", MeshConfig(data=4, fsdp=2), {"remat": "full", "layers": "scan"}),
    "mixture, pipeline x expert, remat": (
        "mai_moe_3m", MeshConfig(data=1, fsdp=2, expert=2, stage=2), {"remat": "full", "layers": "scan"}
    ),
}


def experiment(base: str, mesh: MeshConfig, changes: dict) -> Experiment:
    found = registry.get(base)
    model = dataclasses.replace(found.model, **changes)
    attention = dataclasses.replace(model.attention, num_heads=2, kv_heads=2)
    train = dataclasses.replace(found.train, batch_size=16, seq_len=64)
    return dataclasses.replace(
        found, model=dataclasses.replace(model, attention=attention, vocab_size=512), train=train, mesh=mesh
    )


def occupied(tree) -> int:
    """Bytes of the pieces that the first device really holds."""
    first = jax.devices()[0]
    return sum(s.data.nbytes for leaf in jax.tree.leaves(tree) for s in leaf.addressable_shards if s.device == first)


@pytest.mark.parametrize("case", CASES)
def test_bytes_of_a_step_that_runs(case, capsys):
    planned = experiment(*CASES[case])
    devices = jax.devices()[: 1 if case == "dense, one device" else 8]
    made = program.step(planned, devices)
    predicted = program.arguments(made)

    # The run, as the loop makes it.
    model = decoder.resolve(planned.model, "cpu")
    layout = Layout(make_mesh(planned.mesh, devices), planned.mesh)
    tx = skip.wrap(optim.build(planned.optim, model, planned.train.steps), planned.optim)
    state = states.create(model, tx, layout, seed=0)
    rows = layout.batch((planned.train.batch_size, planned.train.seq_len))
    shape = (planned.train.batch_size, planned.train.seq_len)
    values = {k: np.ones(shape, np.float32 if k == "weights" else np.int32) for k in made.batch}
    batch = jax.device_put(values, rows)
    assert predicted == {
        "parameters": occupied(state.params), "optimizer": occupied(state.opt_state) + occupied(state.step),
        "batch": occupied(batch),
    }
    compiled = made.function.lower(state, batch).compile()
    told = program.memory(made, compiled)
    state, metrics = compiled(state, batch)  # the program that is measured is one that runs
    assert np.isfinite(float(metrics["loss"]))
    assert occupied(state.params) == predicted["parameters"]

    # A CPU pads nothing: the compiler's arguments are the exact sum, less a counter that the step sets anew and
    # never reads; what comes out takes their place.
    assert 0 <= sum(predicted.values()) - told["arguments"] <= 4
    assert told["aliased"] >= predicted["parameters"]

    # Arithmetic beside the compiler, in float32; a CPU keeps scores, which no kernel hides there.
    laid = links.lay(registry.topology(f"h100:{len(devices)}"), planned.mesh.shape(len(devices)))
    resolved = dataclasses.replace(planned, model=model)
    model_peak = peak(memory(resolved, laid, width=4))
    error = model_peak / told["peak"] - 1
    with capsys.disabled():
        print(f"\n  {case}: arguments {told['arguments']:,} exact; peak {told['peak']:,} by the compiler, "
              f"{model_peak:,.0f} by arithmetic ({error:+.0%})")
    assert abs(error) < 0.4  # measured: -24% to +26%
