"""Trials in one program are, each, the run that it would have been alone."""

import dataclasses
import json

import numpy as np
import pytest
from sweep_parts import tiny

from maijax import overrides
from maijax.space import Sweep
from maijax.sweep import groups, vectorised, worker
from maijax.sweep.study import Study
from maijax.train import loop, rundir
from maijax.train.metrics import read

RECORD = {"name": "tiny", "provenance": {}, "totals": {}}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def losses(folder) -> np.ndarray:
    return np.asarray([line["loss"] for line in read(folder) if line["kind"] == "train"])


def figures(folder) -> list[tuple]:
    return [(line["step"], line["bits_per_byte"], line.get("final")) for line in read(folder) if line["kind"] == "eval"]


def stories(folder) -> list[str]:
    return [line["text"] for line in read(folder) if line["kind"] == "sample"]


def never(*_) -> bool:
    return False


def one_device(experiment):
    return dataclasses.replace(experiment, mesh=dataclasses.replace(experiment.mesh, data=1))


@pytest.mark.parametrize("vmap", [False, True])
@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_one_program_equals_separate_runs(corpus, cache, tmp_path, monkeypatch, name, vmap):
    if vmap:  # what accelerators get
        program = vectorised.program
        monkeypatch.setattr(vectorised, "program", lambda e, layout, **_: program(e, layout, vmap=True))
    base = overrides.apply(tiny(corpus), [f"optim.name={name}", "optim.adam_lr=0.02", "mesh.data=1"])
    settings = [
        ["optim.lr=0.003", "optim.warmup=0"],
        ["optim.lr=0.03", "optim.weight_decay=0", "optim.b1=0.8"],
        ["optim.lr=0.03", "train.seed=5", "optim.adam_lr=0.004", "optim.final_fraction=0.5"],
    ]
    experiments = [overrides.apply(base, one) for one in settings]
    shapes = {groups.signature(e) for e in experiments}
    assert len(shapes) == 1 and None not in shapes
    together = [tmp_path / f"together-{i}" for i in range(3)]
    found = vectorised.run(experiments, together, cache=cache, records=[RECORD] * 3, watch=never)
    for i, experiment in enumerate(experiments[:3] if not vmap else experiments[2:], 2 if vmap else 0):
        monkeypatch.setattr("jax.devices", lambda *_, d=__import__("jax").devices()[:1]: d)
        alone = loop.run(experiment, tmp_path / f"alone-{i}", cache=cache, record=RECORD)
        monkeypatch.undo()
        assert alone.finished and found[i].finished
        np.testing.assert_allclose(losses(together[i]), losses(tmp_path / f"alone-{i}"), rtol=1e-5, atol=1e-5)
        a, b = figures(together[i]), figures(tmp_path / f"alone-{i}")
        assert [x[0::2] for x in a] == [x[0::2] for x in b]
        np.testing.assert_allclose([x[1] for x in a], [x[1] for x in b], rtol=1e-5)
        hashes = [[r["token_hash"] for r in read(f) if r["kind"] == "train"] for f in (together[i], tmp_path / f"alone-{i}")]
        assert hashes[0] == hashes[1]
        names = {p.name for p in together[i].iterdir()}
        assert names >= {p.name for p in (tmp_path / f"alone-{i}").iterdir()}


def test_stopped_together_and_gone_on_alone_is_never_stopped(corpus, cache, tmp_path, monkeypatch):
    base = overrides.apply(tiny(corpus), ["mesh.data=1"])
    experiments = [overrides.apply(base, [f"optim.lr={lr}"]) for lr in (0.01, 0.02, 0.04)]
    whole, halved = ([tmp_path / f"{name}-{i}" for i in range(3)] for name in ("whole", "halved"))
    go = {"cache": cache, "records": [RECORD] * 3, "watch": never}
    vectorised.run(experiments, whole, **go)

    save, seen = vectorised._Chorus._save, []

    def falls_over(self, done):
        seen.append(done)
        if len(seen) == 2:
            raise RuntimeError("the power went")
        save(self, done)

    monkeypatch.setattr(vectorised._Chorus, "_save", falls_over)
    with pytest.raises(RuntimeError, match="power"):
        vectorised.run(experiments, halved, **go)
    monkeypatch.undo()
    vectorised.run(experiments[:2], halved[:2], cache=cache, records=[RECORD] * 2, watch=never)
    monkeypatch.setattr("jax.devices", lambda *_, d=__import__("jax").devices()[:1]: d)
    loop.run(experiments[2], halved[2], cache=cache, record=RECORD)  # as `maijax run` would
    monkeypatch.undo()
    for a, b in zip(whole, halved, strict=True):
        np.testing.assert_allclose(losses(a), losses(b), rtol=1e-6)
        assert figures(a)[-1][0] == figures(b)[-1][0] == 6


def test_losers_leave_the_program(corpus, cache, tmp_path):
    base = overrides.apply(tiny(corpus), ["mesh.data=1"])
    experiments = [overrides.apply(base, [f"optim.lr={lr}"]) for lr in (0.01, 0.02, 0.04, 0.08)]
    folders = [tmp_path / str(i) for i in range(4)]
    found = vectorised.run(
        experiments, folders, cache=cache, records=[RECORD] * 4, watch=lambda i, step, _: i in (1, 2, 3) and step == 2 * i
    )
    assert found[1] is None and found[2] is None and found[0].finished and found[3].finished
    assert [len(losses(f)) for f in folders] == [6, 2, 4, 6]


def test_what_is_traced_and_what_is_not(corpus):
    base = tiny(corpus)
    same = groups.signature(base)
    for setting in ("optim.lr=1", "optim.warmup=0", "train.seed=4", "optim.b2=0.5", "optim.weight_decay=0"):
        assert groups.signature(overrides.apply(base, [setting])) == same
    for setting in ("train.steps=7", "model.d_model=8", "optim.clip_norm=none", "optim.decay_fraction=0.5",
                    "train.z_loss=0.1", "optim.schedule=cosine", "train.batch_size=8"):
        assert groups.signature(overrides.apply(base, [setting])) not in (same, None)
    assert groups.signature(overrides.apply(base, ["mesh.tensor=2"])) is None


def test_a_worker_makes_complete_runs(corpus, tmp_path, monkeypatch):
    sweep = Sweep(name="s", base=tiny(corpus), space={"optim.lr": "1e-3,1e-2", "model.num_layers": "1,2"}, prune="none")
    study = Study.create(tmp_path / "s", sweep, {})
    assert worker.work(str(tmp_path / "s"), 1, 16) == 0
    for trial in study.trials():
        folder = study.where(trial.number)
        assert trial.result.state == "done" and trial.result.step == 6 and trial.result.seconds > 0
        assert rundir.load(folder).optim.lr == float(trial.point["optim.lr"])
        final = next(line for line in read(folder) if line["kind"] == "eval" and line.get("final"))
        assert final["bits_per_byte"] == trial.result.bits_per_byte
        held = json.loads((folder / "experiment.json").read_text())
        assert held["sweep"]["values"] == trial.point and held["totals"]["parameters"] > 0
        assert held["provenance"]["optim.lr"] == "sweep s"
        assert {"checkpoints", "report.html", "environment.json", "tokenizer.model"} <= {p.name for p in folder.iterdir()}
