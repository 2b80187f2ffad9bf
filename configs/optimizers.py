"""Optimizers and their schedules; an experiment replaces the learning rates by what its law says."""

from maijax.config import OptimConfig

# The usual choice from 100M to 400B. Source: GPT-3, arXiv 2005.14165; Llama 3, arXiv 2407.21783.
ADAMW = OptimConfig(name="adamw", lr=3e-4, b2=0.95, weight_decay=0.1, clip_norm=1.0, warmup=2_000)

# Small runs: fewer steps to the same loss. Source: Muon, kellerjordan.github.io/posts/muon; lr: own sweeps.
MUON = OptimConfig(name="muon", lr=0.008, adam_lr=0.02, momentum=0.95, weight_decay=0.1, warmup=50)

# Little memory: factored second moments, AdamW's rates. Source: arXiv 1804.04235.
ADAFACTOR = OptimConfig(name="adafactor", lr=3e-4, weight_decay=0.1, warmup=2_000)

# One moment, sign updates: a third to a tenth of AdamW's rate. Source: arXiv 2302.06675.
LION = OptimConfig(name="lion", lr=1e-4, b1=0.9, b2=0.99, weight_decay=1.0, warmup=1_000)

# For runs of weeks: a step whose gradient norm stands out is skipped and counted.
ADAMW_LARGE = OptimConfig(
    name="adamw", lr=1e-4, b2=0.95, weight_decay=0.1, clip_norm=1.0, warmup=2_000, spike_sigmas=6.0
)
