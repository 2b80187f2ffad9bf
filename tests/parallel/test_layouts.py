"""Every layout gives the losses of one device, for a dense model and for a mixture of experts.

By default each axis alone and two that combine; all of them, 20 minutes of compiling, with --all-layouts.
"""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

AXES = ("replica", "stage", "data", "fsdp", "expert", "context", "tensor")
ALONE = ["replica=8", "stage=4", "data=8", "fsdp=8", "expert=8", "context=8", "tensor=8"]
PAIRS = [f"{a}={2 if a == 'stage' else 4},{b}=2" for a, b in itertools.combinations(AXES, 2)]
MORE = [
    "stage=2,repeats=2,microbatches=4,tensor=2", "stage=2,repeats=2,fsdp=2,expert=2",
    "context=4,attention=gather,tensor=2", "expert=4,exchange_room=1,context=2",
    "fsdp=2,context=2,tensor=2", "data=2,expert=2,tensor=2", "stage=2,context=2,expert=2,tensor=2",
    "stage=2,gather=layer,repeats=2,microbatches=4,fsdp=2", "stage=2,gather=layer,fsdp=2,context=2,tensor=2,remat=dots",
    "fsdp=2,context=2,expert=2,remat=attention", "context=2,attention=gather,fsdp=2,tensor=2,remat=attention",
    "stage=2,microbatches=4,fsdp=2,expert=2,tensor=2", "replica=2,fsdp=2,context=2,tensor=2",
]
ALL = ["replica=2,stage=2,data=2,fsdp=2,expert=2,context=2,tensor=2"]
TOGETHER = [
    "stage=2,context=2,expert=2,tensor=2", "stage=2,gather=layer,fsdp=2,expert=2,tensor=2,remat=full",
    "context=4,attention=gather,tensor=2,remat=attention",
]
MESHES = [*ALONE, *dict.fromkeys([*TOGETHER, *PAIRS, *MORE, *ALL])]
QUICK = [*ALONE, *TOGETHER]


@pytest.fixture(scope="module")
def asked(request):
    return MESHES if request.config.getoption("--all-layouts") else QUICK


@pytest.fixture(scope="module")
def found(asked):
    """What tests/parallel/layouts.py prints, by model and mesh; both models' programs run side by side."""
    program = Path(__file__).with_name("layouts.py")
    running = {
        model: subprocess.Popen(
            [sys.executable, program, model, *asked], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for model in ("dense", "mixture")
    }
    results = {}
    for model, process in running.items():
        out, err = process.communicate(timeout=1800)
        assert process.returncode == 0, err[-3000:]
        results |= {(model, line["mesh"]): line for line in map(json.loads, out.splitlines())}
    return results


@pytest.mark.parametrize("model", ["dense", "mixture"])
@pytest.mark.parametrize("mesh", MESHES)
def test_losses_are_those_of_one_device(found, asked, model, mesh):
    if mesh not in asked:
        pytest.skip("with --all-layouts")
    line = found[model, mesh]
    np.testing.assert_allclose(line["losses"], line["one"], rtol=1e-5)
    assert line["one"][-1] < line["one"][0]


@pytest.mark.parametrize("model", ["dense", "mixture"])
@pytest.mark.parametrize("mesh", ALONE)
def test_first_parameters_and_gradients_are_those_of_one_device(found, model, mesh):
    assert found[model, mesh]["first"] == 0.0  # to the bit
    assert found[model, mesh]["gradients"] < 1e-5
