"""Run folders as a finished run leaves them, without the training."""

import dataclasses
import datetime
import json

from maijax import plain, registry
from maijax.compare.points import of_experiment


def experiment(*, layers=2, steps=100, seed=0, lr=1e-3, **data):
    """phi_test, changed."""
    base = registry.get("phi_test")
    return dataclasses.replace(
        base,
        model=dataclasses.replace(base.model, num_layers=layers),
        train=dataclasses.replace(base.train, steps=steps, seed=seed),
        optim=dataclasses.replace(base.optim, lr=lr),
        data=dataclasses.replace(base.data, **data),
    )


def law(params, tokens):
    """A law as of a small model on stories."""
    return 1.2 + 60.0 / params**0.35 + 300.0 / tokens**0.4


def write(folder, made, *, loss=None, started="2026-01-01T00:00:00+00:00", finished=True):
    """The folder of a run; its loss is the law's unless given."""
    folder.mkdir(parents=True)
    place = of_experiment(made, name=folder.name, count="active")
    loss = law(place.params, place.tokens) if loss is None else loss
    (folder / "experiment.json").write_text(json.dumps({"experiment": plain.to_plain(made)}))
    (folder / "environment.json").write_text(json.dumps({"started": started}))
    lines = [{"step": 10, "kind": "eval", "loss": 9.0, "bits_per_byte": 9.0, "tokens": 5, "bytes": 9}]
    if finished:
        lines.append({"step": made.train.steps, "kind": "eval", "loss": loss, "bits_per_byte": loss / 2, "tokens": 5,
                      "bytes": 9, "final": True})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def ladder(root, *, layers=(1, 2, 3, 4), steps=(50, 200, 800)):
    """A grid of sizes and lengths, whose losses miss the law by 0.05% up and down."""
    made = []
    for i, (n, s) in enumerate((n, s) for n in layers for s in steps):
        one = experiment(layers=n, steps=s)
        place = of_experiment(one, name="", count="active")
        loss = law(place.params, place.tokens) * (1 + 5e-4 * (-1) ** (i % 5))
        made.append(write(root / f"l{n}-s{s}", one, loss=loss))
    return made


def later(days=1):
    return (datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days)).isoformat(timespec="seconds")
