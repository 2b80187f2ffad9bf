"""Whole runs: a run that was stopped and went on is, to the bit, the run that never stopped."""

import dataclasses
import json
import math

import jax
import numpy as np
import pytest

from maijax.config import (
    AttentionConfig,
    DataConfig,
    Experiment,
    MeshConfig,
    ModelConfig,
    OptimConfig,
    SourceConfig,
    TrainConfig,
)
from maijax.errors import RunError, UserError
from maijax.train import loop, restore
from maijax.train.metrics import read
from maijax.train.trainer import Trainer

WORDS = "the a king queen tin soldier mermaid sea stood sang danced went home on one leg and said never".split()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)

    def text() -> str:
        return " ".join(rng.choice(WORDS, int(rng.integers(5, 60)))) + ".\n"

    with open(folder / "tales.jsonl", "w") as out:
        for _ in range(60):
            out.write(json.dumps({"text": text()}) + "\n")
    (folder / "more").mkdir()
    for n in range(30):
        (folder / "more" / f"{n}.txt").write_text(text())
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def experiment(corpus, *, workers: int = 0, name: str = "muon", **train) -> Experiment:
    return Experiment(
        name="little",
        model=ModelConfig(
            num_layers=2, d_model=32, d_ff=64, vocab_size=320, context=64, tied_head=True, layers="scan",
            attention=AttentionConfig(num_heads=2, kv_heads=1, head_dim=16),
        ),
        optim=OptimConfig(name=name, lr=0.01, adam_lr=0.01, warmup=2),
        data=DataConfig(
            sources=(
                SourceConfig(uri=str(corpus / "tales.jsonl"), weight=0.7),
                SourceConfig(uri=str(corpus / "more"), weight=0.3),
            ),
            held_out=0.2, workers=workers,
        ),
        train=TrainConfig(**({
            "steps": 12, "batch_size": 8, "seq_len": 32, "log_every": 1, "eval_every": 6, "eval_sequences": 8,
            "sample_every": None, "checkpoint_every": 5,
        } | train)),
        mesh=MeshConfig(),
    )


def go(exp: Experiment, folder, cache) -> loop.Outcome:
    return loop.run(exp, folder, cache=cache, record={"name": exp.name, "provenance": {}, "totals": {}})


def trained(folder) -> list[np.ndarray]:
    return [np.asarray(x) for x in jax.tree.leaves(restore.open_run(folder).params)]


def told(folder) -> dict[int, tuple[float, str]]:
    return {line["step"]: (line["loss"], line["token_hash"]) for line in read(folder) if line["kind"] == "train"}


@pytest.fixture(scope="module")
def whole(corpus, cache, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    outcome = go(experiment(corpus), folder, cache)
    assert outcome.finished
    return folder


def test_a_run_folder_is_complete(whole, corpus):
    names = {p.name for p in whole.iterdir()}
    assert {"experiment.json", "environment.json", "metrics.jsonl", "checkpoints", "report.html",
            "tokenizer.model"} <= names
    losses = told(whole)
    assert sorted(losses) == list(range(1, 13))
    assert losses[12][0] < losses[1][0]
    final = [line for line in read(whole) if line.get("final")]
    score = next(line for line in final if line["kind"] == "eval")
    assert 0 < score["bits_per_byte"] < 8 and score["xz_bits_per_byte"] > 0
    bits = score["loss"] * score["tokens"] / math.log(2)
    assert math.isclose(score["bits_per_byte"], bits / score["bytes"], rel_tol=1e-6)
    assert sum(line["kind"] == "sample" for line in final) >= 1


@pytest.mark.parametrize("workers", [0, 1])
def test_stopped_and_gone_on_is_never_stopped(whole, corpus, cache, tmp_path, monkeypatch, workers):
    place, seen = Trainer.place, []

    def falls_over(self, batch):
        seen.append(1)
        if len(seen) == 8:
            raise RuntimeError("the power went")
        return place(self, batch)

    monkeypatch.setattr(Trainer, "place", falls_over)
    with pytest.raises(RuntimeError, match="power"):
        go(experiment(corpus), tmp_path / "again", cache)
    monkeypatch.undo()
    outcome = go(experiment(corpus, workers=workers), tmp_path / "again", cache)
    assert outcome.finished
    assert told(tmp_path / "again") == told(whole)
    for a, b in zip(trained(tmp_path / "again"), trained(whole), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_finished_run_only_looks_again(whole, corpus, cache):
    before = told(whole)
    assert go(experiment(corpus), whole, cache).finished
    assert told(whole) == before


def test_another_experiment_in_the_folder_is_refused_with_the_difference(whole, corpus, cache):
    before = sorted(p.name for p in whole.iterdir())
    with pytest.raises(UserError, match=r"train.seed was 0, is 1"):
        go(experiment(corpus, seed=1), whole, cache)
    with pytest.raises(UserError, match=r"optim.name was 'muon', is 'lion'"):
        go(experiment(corpus, name="lion"), whole, cache)
    assert sorted(p.name for p in whole.iterdir()) == before


def test_a_corpus_that_changed_is_refused(corpus, cache, tmp_path):
    exp = experiment(corpus, steps=2, checkpoint_every=1)
    own = tmp_path / "own.jsonl"
    own.write_text((corpus / "tales.jsonl").read_text())
    exp = dataclasses.replace(exp, data=dataclasses.replace(exp.data, sources=(SourceConfig(uri=str(own)),)))
    go(exp, tmp_path / "run", cache)
    made = (tmp_path / "run" / "tokenizer.model").read_bytes()
    own.write_text(own.read_text().replace("king", "czar", 20))
    with pytest.raises(UserError, match="the documents"):
        go(exp, tmp_path / "run", cache)
    assert (tmp_path / "run" / "tokenizer.model").read_bytes() == made
    restore.open_run(tmp_path / "run")
    (tmp_path / "run" / "tokenizer.model").write_bytes(b"another")
    with pytest.raises(UserError, match="tokenizer"):
        restore.open_run(tmp_path / "run")


def test_a_prompt_that_fills_the_context_is_refused(corpus, cache, tmp_path):
    with pytest.raises(UserError, match="train.prompt is"):
        go(experiment(corpus, prompt="king " * 80), tmp_path / "run", cache)
    assert not (tmp_path / "run").exists()


def test_bad_data_leaves_no_folder(cache, corpus, tmp_path):
    exp = experiment(corpus)
    exp = dataclasses.replace(
        exp, data=dataclasses.replace(exp.data, sources=(SourceConfig(uri=str(tmp_path / "nowhere.txt")),))
    )
    with pytest.raises(UserError, match="nowhere"):
        go(exp, tmp_path / "run", cache)
    assert not (tmp_path / "run").exists()


def test_a_run_that_cannot_learn_halts_with_sound_weights(corpus, cache, tmp_path, monkeypatch):
    place = Trainer.place

    def spoiled(self, batch):
        return place(self, batch | {"weights": np.full_like(batch["weights"], np.nan)})

    monkeypatch.setattr(Trainer, "place", spoiled)
    exp = experiment(corpus, checkpoint_every=2)
    exp = dataclasses.replace(exp, optim=dataclasses.replace(exp.optim, max_skipped=3))
    with pytest.raises(RunError, match="skipped"):
        go(exp, tmp_path / "run", cache)
    assert all(np.isfinite(x).all() for x in trained(tmp_path / "run"))
