"""Run folders as training leaves them, with losses that a test chooses."""

import dataclasses
import json

from maijax import plain, registry


def experiment(*, width=64, seed=0, steps=100, lr=0.008, vocab=512, name="phi_test"):
    base = registry.get(name)
    return dataclasses.replace(
        base,
        model=dataclasses.replace(base.model, d_model=width, d_ff=3 * width, vocab_size=vocab),
        optim=dataclasses.replace(base.optim, lr=lr),
        train=dataclasses.replace(base.train, seed=seed, steps=steps),
    )


def make_run(folder, made, losses, *, bits=True, seconds_per_step=0.5):
    """losses: by step; every step of them is an evaluation and a log line, the one at train.steps the final look."""
    folder.mkdir(parents=True)
    (folder / "experiment.json").write_text(json.dumps({"name": made.name, "experiment": plain.to_plain(made)}))
    lines, last = [], made.train.steps
    for step, loss in losses.items():
        lines.append({"step": step, "kind": "train", "loss": loss, "seconds": step * seconds_per_step})
        lines.append({"step": step, "kind": "eval", "loss": loss, "tokens": 1_000, "bytes": 3_000}
                     | ({"bits_per_byte": loss / 2} if bits else {}) | ({"final": True} if step == last else {}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder
