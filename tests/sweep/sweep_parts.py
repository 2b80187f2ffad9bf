"""An experiment small enough that many runs of it take seconds, and how to start processes."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from maijax import plain
from maijax.config import AttentionConfig, DataConfig, Experiment, ModelConfig, OptimConfig, SourceConfig, TrainConfig

ROOT = Path(__file__).parents[2]


def tiny(corpus: Path, **train) -> Experiment:
    """An experiment of a few thousand parameters and 6 steps."""
    return Experiment(
        name="tiny",
        model=ModelConfig(
            num_layers=1, d_model=16, d_ff=16, vocab_size=300, context=64, tied_head=True, layers="scan",
            attention=AttentionConfig(num_heads=1, kv_heads=1, head_dim=16),
        ),
        optim=OptimConfig(name="adamw", lr=0.01, warmup=2),
        data=DataConfig(sources=(SourceConfig(uri=str(corpus)),), held_out=0.2),
        train=TrainConfig(**({
            "steps": 6, "batch_size": 4, "seq_len": 32, "log_every": 1, "eval_every": 2, "eval_sequences": 4,
            "sample_every": None, "checkpoint_every": 2,
        } | train)),
    )


def process(*words: str, **env: str) -> subprocess.Popen:
    """A command of its own process group, on one device."""
    return subprocess.Popen(
        [sys.executable, *words], env=os.environ | {"XLA_FLAGS": "", "PYTHONPATH": str(ROOT)} | env,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )


def four(base: Experiment, folder: Path) -> list[str]:
    """The command of a sweep of four rates, which a module in a folder registers; PYTHONPATH must hold that."""
    held = json.dumps(plain.to_plain(base))
    (folder / "lab.py").write_text(
        "import json\nfrom maijax import plain\nfrom maijax.registry import register_sweep\n"
        f"from maijax.space import Sweep\nBASE = json.loads({held!r})\n"
        "@register_sweep\ndef four():\n    '''Which rate?'''\n"
        "    return Sweep(base=plain.from_plain(BASE), space={'optim.lr': '1e-3,3e-3,1e-2,3e-2'})\n"
    )
    return ["-m", "maijax", "sweep", "four", "--module", "lab"]


def wait_for(condition, seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it never came"
        time.sleep(0.02)
