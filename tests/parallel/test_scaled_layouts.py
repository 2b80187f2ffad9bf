"""A parametrisation is multipliers only: a mixture under CompleteP trains alike on one device and on eight."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np


def test_losses_are_those_of_one_device():
    program = Path(__file__).with_name("layouts.py")
    done = subprocess.run(
        [sys.executable, program, "scaled", "stage=2,fsdp=2,tensor=2"], capture_output=True, text=True, check=True
    )
    line = json.loads(done.stdout)
    np.testing.assert_allclose(line["losses"], line["one"], rtol=1e-5)
    assert len(set(line["one"])) > 1
