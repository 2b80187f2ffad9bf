"""Trials in one program are, each, the run that it would have been alone."""

import json

import jax
import numpy as np
import pytest
from sweep_parts import tiny

from maijax import overrides
from maijax.data import pipeline
from maijax.space import Sweep
from maijax.sweep import groups, vectorised, worker
from maijax.sweep.study import Study
from maijax.train import loop, rundir
from maijax.train.metrics import read

RECORD = {"name": "tiny", "provenance": {}, "totals": {}}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def logged(folder) -> list[dict]:
    return [line for line in read(folder) if line["kind"] == "train"]


def losses(folder) -> np.ndarray:
    return np.asarray([line["loss"] for line in logged(folder)])


def figures(folder) -> list[tuple]:
    return [(line["step"], line["bits_per_byte"], line.get("final")) for line in read(folder) if line["kind"] == "eval"]


def never(*_) -> bool:
    return False


def alone(experiment, folder, cache) -> None:
    """As `maijax run` of it on one device."""
    one = jax.devices()[:1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda *_: one)
        assert loop.run(experiment, folder, cache=cache, record=RECORD).finished


@pytest.mark.parametrize(("name", "vmap", "which"), [("muon", False, 0), ("adamw", True, 1)])
def test_one_program_equals_separate_runs(corpus, cache, tmp_path, monkeypatch, quick, name, vmap, which):
    if vmap:  # what accelerators get
        program = vectorised.program
        monkeypatch.setattr(vectorised, "program", lambda e, layout, **_: program(e, layout, vmap=True))
    base = overrides.apply(tiny(corpus), [f"optim.name={name}", "optim.adam_lr=0.02"])
    experiments = [overrides.apply(base, settings) for settings in (
        ["optim.lr=0.003", "optim.warmup=0", "optim.weight_decay=0", "optim.b1=0.8"],
        ["optim.lr=0.03", "train.seed=5", "optim.adam_lr=0.004", "optim.final_fraction=0.5"],
    )]
    folders = [tmp_path / "0", tmp_path / "1"]
    found = vectorised.run(experiments, folders, cache=cache, records=[RECORD] * 2, watch=never)
    assert all(outcome.finished for outcome in found)
    together, apart = folders[which], tmp_path / "apart"
    alone(experiments[which], apart, cache)
    np.testing.assert_allclose(losses(together), losses(apart), rtol=1e-5, atol=1e-5)
    assert [line["token_hash"] for line in logged(together)] == [line["token_hash"] for line in logged(apart)]
    assert not np.allclose(losses(folders[0]), losses(folders[1]), rtol=1e-3)
    a, b = figures(together), figures(apart)
    assert [x[0::2] for x in a] == [x[0::2] for x in b]
    np.testing.assert_allclose([x[1] for x in a], [x[1] for x in b], rtol=1e-5)
    assert {p.name for p in together.iterdir()} >= {p.name for p in apart.iterdir()}


def test_stopped_together_and_gone_on_alone_is_never_stopped(corpus, cache, tmp_path, monkeypatch, quick):
    experiments = [overrides.apply(tiny(corpus, eval_every=None), [f"optim.lr={lr}"]) for lr in (0.01, 0.02)]
    whole, halved = ([tmp_path / f"{name}-{i}" for i in range(2)] for name in ("whole", "halved"))
    vectorised.run(experiments, whole, cache=cache, records=[RECORD] * 2, watch=never)
    save, seen = vectorised._Chorus._save, []

    def falls_over(self, done):
        seen.append(done)
        if len(seen) == 2:
            raise RuntimeError("the power went")
        save(self, done)

    monkeypatch.setattr(vectorised._Chorus, "_save", falls_over)
    with pytest.raises(RuntimeError, match="power"):
        vectorised.run(experiments, halved, cache=cache, records=[RECORD] * 2, watch=never)
    monkeypatch.setattr(vectorised._Chorus, "_save", save)
    alone(experiments[1], halved[1], cache)
    vectorised.run(experiments, halved, cache=cache, records=[RECORD] * 2, watch=never)
    for a, b in zip(whole, halved, strict=True):
        np.testing.assert_allclose(losses(a), losses(b), rtol=1e-6)
        assert [line["token_hash"] for line in logged(a)] == [line["token_hash"] for line in logged(b)]


def test_losers_leave_the_program(corpus, cache, tmp_path, monkeypatch, quick):
    """Between two log lines too: the last trial, equal to the first, tells the same, and nothing of its neighbours."""
    base = tiny(corpus, log_every=3)
    experiments = [overrides.apply(base, [f"optim.lr={lr}"]) for lr in (0.01, 0.02, 0.04, 0.01)]
    folders = [tmp_path / str(i) for i in range(4)]
    batches, opened = pipeline.batches, []
    monkeypatch.setattr(pipeline, "batches", lambda *args, **rest: opened.append(args) or batches(*args, **rest))

    def lost(which: int, step: int, figure: float) -> bool:
        return which in (1, 2) and step == 2 * which

    found = vectorised.run(experiments, folders, cache=cache, records=[RECORD] * 4, watch=lost)
    assert found[1] is None and found[2] is None and found[0].finished and found[3].finished
    assert [len(losses(f)) for f in folders] == [2, 0, 1, 2]
    for key in ("loss", "grad_norm", "skipped", "skipped_in_row"):
        assert [line[key] for line in logged(folders[0])] == [line[key] for line in logged(folders[3])]
    assert len(opened) == 1  # one seed is read once


def test_what_is_traced_and_what_is_not(corpus):
    base = tiny(corpus)
    same = groups.signature(base)
    for setting in ("optim.lr=1", "optim.warmup=0", "train.seed=4", "optim.b2=0.5", "optim.weight_decay=0"):
        assert groups.signature(overrides.apply(base, [setting])) == same
    for setting in ("train.steps=7", "model.d_model=8", "optim.clip_norm=none", "optim.decay_fraction=0.5",
                    "train.z_loss=0.1", "optim.schedule=cosine", "train.batch_size=8"):
        assert groups.signature(overrides.apply(base, [setting])) not in (same, None)
    assert groups.signature(overrides.apply(base, ["mesh.tensor=2"])) is None


def test_a_worker_makes_complete_runs_of_what_can_run(corpus, tmp_path, monkeypatch, quick):
    """Where the context is 8 the prompt does not fit, which is found only when the text is open: those fail, alone."""
    space = {"model.context": "8,64", "optim.lr": "1e-3,1e-2"}
    study = Study.create(tmp_path / "s", Sweep(name="s", base=tiny(corpus, seq_len=8), space=space), {})
    run, shared = vectorised.run, []
    monkeypatch.setattr(vectorised, "run", lambda given, *a, **k: shared.append(len(given)) or run(given, *a, **k))
    assert worker.work(str(tmp_path / "s"), 1, 16) == 0
    assert shared == [2, 2, 2]  # refused, trained, and now known to have themselves to blame
    trials = study.trials()
    assert [t.result.state for t in trials] == ["failed", "failed", "done", "done"]
    assert all("train.prompt" in t.result.why for t in trials[:2])
    for trial in trials[2:]:
        folder = study.where(trial.number)
        assert trial.result.state == "done" and trial.result.step == 6 and trial.result.seconds > 0
        assert rundir.load(folder).optim.lr == float(trial.point["optim.lr"])
        final = next(line for line in read(folder) if line["kind"] == "eval" and line.get("final"))
        assert final["bits_per_byte"] == trial.result.bits_per_byte
        held = json.loads((folder / "experiment.json").read_text())
        assert held["sweep"]["values"] == trial.point and held["totals"]["parameters"] > 0
        assert held["provenance"]["optim.lr"] == "sweep s"
        names = {p.name for p in folder.iterdir()}
        assert {"checkpoints", "report.html", "environment.json", "tokenizer.model"} <= names
