"""An experiment small enough that many runs of it take seconds, and how to start processes."""

import os
import subprocess
import sys
from pathlib import Path

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
