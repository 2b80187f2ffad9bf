"""Levanter's side of cpu_step.py, run by the interpreter of Levanter's own environment; nothing of maijax is imported.

    PYTHON levanter_step.py SIZE STEPS

Its Trainer.train_step on its Llama and random tokens, AdamW without clipping or warm-up; no rematerialisation. Prints
one JSON line.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path

from timing import SIZES, timed


def levanter(size: dict[str, int], folder: Path) -> tuple[Callable[[], float], int]:
    """Return Levanter's step, which fetches its loss each time, and the number of parameters."""
    import haliax
    import jax
    import jmp
    import numpy as np
    from levanter.callbacks.watch import WatchConfig
    from levanter.models.llama import LlamaConfig
    from levanter.models.lm_model import LmExample
    from levanter.optim.config import AdamConfig
    from levanter.tracker import NoopConfig
    from levanter.trainer import Trainer, TrainerConfig

    shape = LlamaConfig(
        max_seq_len=size["seq"], hidden_dim=size["d"], intermediate_dim=size["ffn"], num_layers=size["layers"],
        num_heads=size["heads"], num_kv_heads=size["heads"], gradient_checkpointing=False,
    )
    config = TrainerConfig(
        id="cpu_step", log_dir=folder, tracker=NoopConfig(), watch=WatchConfig(watch_targets=[]), log_jaxprs=False,
        log_xla_hlo=False, require_accelerator=False, mp=jmp.get_policy("f32"), train_batch_size=size["batch"],
        num_train_steps=1000,
    )
    config.initialize()
    optimizer = AdamConfig(
        learning_rate=3e-4, weight_decay=0.1, max_grad_norm=None, warmup=0, lr_schedule="constant"
    ).build(1000)
    trainer = Trainer(config, optimizer, lambda model, batch, key: model.compute_next_token_loss(batch, key=key),
                      add_default_hooks=False)  # no progress bar, no checkpoints
    trainer.__enter__()
    key, words = jax.random.PRNGKey(0), haliax.Axis("vocab", size["vocab"])
    state = trainer.initial_state(key, model_init=lambda: shape.build(words, key=key))
    rng = np.random.default_rng(0)
    batches = []
    for _ in range(4):
        tokens = jax.numpy.asarray(rng.integers(0, size["vocab"], (size["batch"], size["seq"]), dtype=np.int32))
        named = haliax.named(tokens, (trainer.TrainBatch, shape.max_Pos))
        batches.append(haliax.vmap(LmExample.causal, trainer.TrainBatch)(named))
    turn = iter(range(10**9))

    def one() -> float:
        nonlocal state
        info = trainer.train_step(state, batches[next(turn) % 4])
        state = info.state
        return float(info.loss)

    return one, sum(x.size for x in jax.tree.leaves(state.model))


def main() -> None:
    one, parameters = levanter(SIZES[sys.argv[1]], Path.cwd())
    found = timed(one, int(sys.argv[2])) | {"parameters": parameters}
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(json.dumps(found | {"peak_rss_mb": memory}), flush=True)
    os._exit(0)  # its threads need no goodbye


if __name__ == "__main__":
    main()
