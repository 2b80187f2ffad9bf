"""A page of text for each experiment: its values, each of its weights, its totals.

A change of code that alters a run, the largest included, shows as a change of these files. If it is meant:
`pytest tests/test_golden.py --update-golden`, and read the difference before it is committed.
"""

import math
from pathlib import Path

import pytest

from maijax import overrides, parametrization, plain, registry, rules, scaling, weights
from maijax.config import MESH_AXES, Experiment
from maijax.weights import Weight

GOLDEN = Path(__file__).parent / "golden"


def page(experiment: Experiment) -> str:
    devices = max(8, math.prod(getattr(experiment.mesh, axis) or 1 for axis in MESH_AXES))
    sizes = experiment.mesh.shape(devices)
    axes = " ".join(f"{axis}={size}" for axis, size in sizes.items() if size > 1)
    lines = [experiment.name, "", "values"]
    for path, value in plain.flatten(experiment).items():
        if path not in plain.METADATA:
            lines.append(f"  {path} = {overrides.show(value)}")
    lines += ["", "rules", *(f"  {path}: {law}" for path, law in experiment.rules)]
    lines += ["", f"weights, float32, on {devices} devices: {axes}"]
    lines += [f"  {weight_line(w, experiment, sizes)}" for w in weights.declare(experiment.model)]
    counted = scaling.parameters(experiment.model)
    lines += [
        "", "totals",
        f"  parameters {counted.total:,}, active {counted.active:,}, embedding {counted.embedding:,}",
        f"  FLOPs per token {scaling.train_flops_per_token(experiment.model, experiment.train.seq_len):,.0f}",
        f"  tokens {experiment.tokens:,}",
        f"  state bytes {scaling.state_bytes(experiment.model, experiment.optim):,}",
    ]
    return "\n".join(lines) + "\n"


def weight_line(w: Weight, experiment: Experiment, sizes: dict[str, int]) -> str:
    letters = f"{w.stack}|{w.reads}>{w.writes}"
    found = rules.place(w.logical_axes, w.sizes, sizes, w.path)
    placed = ", ".join("+".join(axes) or "-" for axes in found)
    init = f"normal {w.std:.3e}" if w.init == "normal" else w.init
    marks = "decays" if w.decay else "no decay"
    scaled = parametrization.multipliers(w, experiment.model, experiment.optim.name)
    if scaled != parametrization.Multipliers():
        decay = f", decay x{scaled.decay:.4g}" if w.decay else ""
        marks += f", lr x{scaled.lr:.4g}{decay}, eps x{scaled.eps:.4g}"
    return (
        f"{w.path:34} {letters:8} {str(list(w.sizes)):28} {init:17} ({placed})  {marks}"
        f"{'' if w.trained else ', not trained'}"
    )


@pytest.mark.parametrize("name", registry.names())
def test_page_is_as_committed(name, update_golden):
    file, now = GOLDEN / f"{name}.txt", page(registry.get(name))
    if update_golden:
        file.parent.mkdir(exist_ok=True)
        file.write_text(now)
    assert file.exists(), f"no {file}: pytest {__file__} --update-golden writes it"
    assert now == file.read_text(), (
        f"{name} is not what it was. If that is meant, pytest {__file__} --update-golden rewrites the page"
    )


def test_no_page_without_an_experiment(update_golden):
    stale = [file for file in GOLDEN.glob("*.txt") if file.stem not in registry.names()]
    if update_golden:
        for file in stale:
            file.unlink()
        stale = []
    assert not stale
