"""What the tests of sweeps share."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from maijax.train import environment, metrics
from maijax.train.trainer import Trainer

sys.path.insert(0, str(Path(__file__).parent))

WORDS = "the a king queen tin soldier mermaid sea stood sang danced went home on one leg and said never".split()


@pytest.fixture
def quick(monkeypatch):
    """No stories, no TensorBoard and no measuring of the machine: they take longer than all the rest."""
    monkeypatch.setattr(environment, "matmul_peak", lambda *_: 1e9)
    monkeypatch.setattr(metrics, "_open_board", lambda *_: None)
    monkeypatch.setattr(Trainer, "sample", lambda self, *_, count=1, **__: ["x"] * count)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    rng = np.random.default_rng(3)
    file = tmp_path_factory.mktemp("corpus") / "tales.jsonl"
    with open(file, "w") as out:
        for _ in range(60):
            out.write(json.dumps({"text": " ".join(rng.choice(WORDS, int(rng.integers(5, 60)))) + "."}) + "\n")
    return file
