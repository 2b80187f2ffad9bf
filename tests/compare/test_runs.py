"""Run folders as they are: seeds, sweeps, patterns, damaged and unfinished runs; and real runs of a tiny model."""

import dataclasses
import json
import math
import re

import pytest
from run_folders import experiment, make_run

from maijax import cli, registry, scaling
from maijax.compare import measured, points, runs
from maijax.config import DataConfig, SourceConfig
from maijax.errors import UserError


def test_a_run_is_read_with_what_was_spent(tmp_path):
    made = experiment(steps=100)
    make_run(tmp_path / "one", made, {50: 3.0, 100: 2.5})
    with open(tmp_path / "one" / "metrics.jsonl", "a") as log:
        log.write(json.dumps({"step": 75, "kind": "eval", "loss": 2.8}) + "\n")  # no log line of its own
        log.write(json.dumps({"step": 100, "kind": "eval", "loss": 2.4, "tokens": 9_000}) + "\n")  # all the text
        log.write(json.dumps({"step": 100, "kind": "eval", "loss": None}) + '\n{"torn')
    found = runs.read(tmp_path / "one")
    assert [(p.step, p.loss) for p in found.points] == [(50, 3.0), (75, 2.8), (100, 2.4)]
    each = scaling.train_flops_per_token(made.model, 64)
    assert [p.tokens for p in found.points] == [25_600, 38_400, 51_200]  # 8 x 64 a step
    assert found.points[1].flops == 38_400 * each
    assert [p.seconds for p in found.points] == [25.0, 37.5, 50.0]
    assert found.finished and found.points[0].bits_per_byte == 1.5


def test_seeds_are_one_side_however_they_are_named(tmp_path):
    for seed in range(3):
        make_run(tmp_path / f"a{seed}", experiment(seed=seed), {100: 2.0 + seed / 100})
        make_run(tmp_path / f"b{seed}", experiment(seed=seed, lr=0.1), {100: 2.5})
    for names in (["a*", "b*"], ["a0", "b0", "a1", "a2", "b1", "b2"], [str(tmp_path / "a0") + "/", "a[12]", "b?"]):
        found = runs.gather(tmp_path, names)
        assert [len(side.runs) for side in found] == [3, 3], names
        assert found[0].mean_last("loss") == pytest.approx(2.01)
    assert len(runs.gather(tmp_path, ["a0", "a0"])[0].runs) == 1  # the same folder twice is one run


def test_copies_of_a_seed_are_one_run_and_that_is_said(tmp_path):
    for name, seed, last in (("a0", 0, 50), ("a1", 0, 100), ("a2", 0, 100), ("b0", 1, 100)):
        make_run(tmp_path / name, experiment(seed=seed), {50: 3.0, last: 2.0})
    [side] = runs.gather(tmp_path, ["a*"])
    assert ([run.name for run in side.runs], side.copies) == (["a1"], ("a0", "a2"))  # the one that came farthest
    assert any("a0, a2 left out: of the same seed as a run of a1" in said for said in runs.cautions([side]))
    [side] = runs.gather(tmp_path, ["b0", "a0", "a1"])
    assert ([run.name for run in side.runs], side.copies) == (["b0", "a1"], ("a0",))
    assert measured.measure([side]).ends[0].runs == 2


def test_a_sweep_stands_for_its_best_run_and_its_seeds(tmp_path):
    for i, (lr, seed, loss) in enumerate([(0.1, 0, 3.0), (0.01, 0, 2.0), (0.01, 1, 2.2), (0.02, 0, 2.15)]):
        make_run(tmp_path / "sweep" / f"trial-{i}", experiment(lr=lr, seed=seed), {50: 4.0, 100: loss})
    make_run(tmp_path / "sweep" / "trial-10", experiment(lr=0.5), {50: 1.0})  # low, but not finished
    make_run(tmp_path / "sweep" / "trial-11", experiment(lr=0.6), {})  # nothing yet
    [side] = runs.gather(tmp_path, ["sweep"])
    assert [run.name for run in side.runs] == ["trial-1", "trial-2"]
    assert side.name == "sweep/trial-1 (2 seeds)" and side.how.startswith("best of the 6 runs in sweep")
    assert len(runs.gather(tmp_path, ["sweep"], every=True)) == 4


def test_names_that_lead_nowhere(tmp_path):
    make_run(tmp_path / "one", experiment(), {100: 2.0})
    make_run(tmp_path / "empty", experiment(), {})
    with pytest.raises(UserError, match="no run 'onee' in .*there are one"):
        runs.gather(tmp_path, ["onee"])
    with pytest.raises(UserError, match="run empty: no evaluation on held-out text yet"):
        runs.gather(tmp_path, ["empty"])
    with pytest.raises(UserError, match="no run 'x\\*'"):
        runs.gather(tmp_path, ["x*"])
    (tmp_path / "one" / "experiment.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read as an experiment"):
        runs.gather(tmp_path, ["one"])


def test_damaged_metrics_are_told(tmp_path):
    for name in ("a0", "a1", "b"):
        make_run(tmp_path / name, experiment(seed=int(name == "a1")), {50: 3.0, 100: 2.0})
    log = tmp_path / "a1" / "metrics.jsonl"
    whole = log.read_text().splitlines(keepends=True)
    log.write_text("".join(whole[:3]) + "#" + whole[3])
    [side] = runs.gather(tmp_path, ["a*"])
    assert any(f"a1: damaged metrics ({log}, line 4), evaluated up to step 50 of 100" == said
               for said in runs.cautions([side]))
    log.write_text("#\n")
    why = f"damaged metrics ({log}, line 1), and no evaluation of it can be read"
    with pytest.raises(UserError, match=re.escape(f"run a1: {why}; make it anew")):
        runs.gather(tmp_path, ["a1"])
    for names in (["a*"], ["b", "a*"]):  # of several it is left out, and not in silence
        assert f"a1 left out: {why}" in runs.cautions(runs.gather(tmp_path, names))


@pytest.mark.parametrize("every", [False, True])
def test_one_damaged_trial_does_not_hold_up_its_sweep(tmp_path, every):
    for i in range(4):
        make_run(tmp_path / "sweep" / f"trial-{i}", experiment(lr=0.1 + i), {50: 3.0, 100: 2.0 + i})
    (tmp_path / "sweep" / "sweep.json").write_text("{}")
    (tmp_path / "sweep" / "trial-0" / "metrics.jsonl").write_text("#\n")
    (tmp_path / "sweep" / "trial-2" / "experiment.json").write_text("{")
    make_run(tmp_path / "other", experiment(), {100: 2.0})
    sides = runs.gather(tmp_path, ["sweep", "other"], every=every)
    assert [side.runs[0].name for side in sides] == ["sweep/trial-1", *["sweep/trial-3"] * every, "other"]
    said = [text for text in runs.cautions(sides) if " left out: " in text]
    assert [text.split(":")[0] for text in said] == ["sweep/trial-0 left out", "sweep/trial-2 left out"]
    assert "damaged metrics (" in said[0] and "cannot be read as an experiment" in said[1]
    for i in (1, 3):
        (tmp_path / "sweep" / f"trial-{i}" / "metrics.jsonl").write_text("#\n")
    with pytest.raises(UserError, match="sweep: no run in it has been evaluated .*; sweep/trial-0 left out: damaged"):
        runs.gather(tmp_path, ["sweep"], every=every)


def test_a_run_whose_last_loss_is_no_number_is_not_finished(tmp_path):
    file = make_run(tmp_path / "a", experiment(), {50: 3.0, 100: 2.0}) / "metrics.jsonl"
    file.write_text(file.read_text().replace('"kind": "eval", "loss": 2.0', '"kind": "eval", "loss": null'))
    found = runs.read(tmp_path / "a")
    assert not found.finished and found.last.step == 50
    [side] = runs.gather(tmp_path, ["a"])
    assert "a: its last held-out loss is no number, evaluated up to step 50 of 100" in runs.cautions([side])
    file.write_text(file.read_text().replace('"kind": "eval", "loss": 3.0', '"kind": "eval", "loss": null'))
    with pytest.raises(UserError, match="run a: its last held-out loss is no number, and no evaluation of it can be"):
        runs.gather(tmp_path, ["a"])


def test_a_run_is_finished_when_all_held_out_text_was_looked_at(tmp_path):
    """By one word of `maijax compare` and `maijax fit`: the look on part of the text at the last step is not it."""
    made = experiment(steps=100)
    file = make_run(tmp_path / "a", made, {50: 3.0, 100: 2.0}) / "metrics.jsonl"
    assert runs.read(tmp_path / "a").finished and points.gather(["a"], runs_dir=tmp_path).points
    file.write_text(file.read_text().replace(', "final": true', ""))
    assert not runs.read(tmp_path / "a").finished
    with pytest.raises(UserError, match="left out, not finished: a"):
        points.gather(["a"], runs_dir=tmp_path)


def test_bits_per_byte_where_tokenizers_differ(tmp_path):
    make_run(tmp_path / "a", experiment(), {100: 2.0})
    make_run(tmp_path / "b", experiment(vocab=1_024), {100: 2.6})
    make_run(tmp_path / "c", experiment(vocab=2_048), {100: 2.6}, bits=False)
    assert runs.metric_of(runs.gather(tmp_path, ["a", "b"]))[0] == "bits_per_byte"
    assert runs.metric_of(runs.gather(tmp_path, ["a"]))[0] == "loss"
    with pytest.raises(UserError, match="run c: has no bits per byte"):
        runs.metric_of(runs.gather(tmp_path, ["a", "c"]))


def test_cautions(tmp_path):
    make_run(tmp_path / "a", experiment(), {50: 3.0})
    (tmp_path / "a" / "environment.json").write_text(json.dumps({"devices": "1 x cpu", "cpu": "X"}))
    other = dataclasses.replace(experiment(), data=DataConfig(sources=(SourceConfig(uri="x.txt"),)))
    make_run(tmp_path / "b", other, {100: 2.0})
    (tmp_path / "b" / "environment.json").write_text(json.dumps({"devices": "8 x h100", "cpu": "Y"}))
    said = "\n".join(runs.cautions(runs.gather(tmp_path, ["a", "b"])))
    for words in ("corpora differ", "a: not finished, evaluated up to step 50 of 100",
                  "different machines: 1 x cpu, X; 8 x h100, Y"):
        assert words in said


def test_the_command_on_runs(tmp_path, capsys, monkeypatch):
    for seed in range(2):
        early_a, early_b = {10: 5.0, 30: 4.0, 60: 3.0}, {10: 4.5, 30: 3.5, 60: 2.5}
        make_run(tmp_path / f"a{seed}", experiment(seed=seed), early_a | {100: 2.0 + 0.01 * seed})
        make_run(tmp_path / f"b{seed}", experiment(seed=seed, lr=1.0), early_b | {100: 2.2 + 0.01 * seed})
    monkeypatch.chdir(tmp_path)
    words = ["compare", "--runs-dir", str(tmp_path), "a*", "b*"]
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 100
    assert "2.005±0.007" in out and "2.205±0.007 (+0.200±0.030)" in out
    assert "x0.902, 0.898 to 0.907" in out and "as low, range over pairs of seeds" in out
    assert "51.2K FLOPs" not in out  # a token costs both the same
    assert out.startswith("held-out loss") and "layers x width" not in out  # measured first; then what differs
    assert out.index("by arithmetic, where they differ") < out.index("optim.lr")
    assert cli.main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["measured"]
    [gain] = found["gains"]
    # From 60 to 100 steps A falls by 1 in ln(100/60): down to 2.205 it takes 60 (100/60)^0.8 steps, nearly.
    assert gain["by"][0]["factor"] == pytest.approx(0.6 * (100 / 60) ** 0.8, rel=0.01)
    assert found["sides"][0]["runs"][1]["points"][-1]["tokens"] == 51_200


def test_what_limits_a_gain_is_said_once_and_within_the_width(tmp_path, capsys):
    long = "a-name-of-a-run-that-is-as-long-as-those-that-are-made-of-the-values-that-were-set-optim.lr-3e-3"
    make_run(tmp_path / long, experiment(), {50: 3.0, 100: 2.5})
    make_run(tmp_path / "b", experiment(lr=1.0), {50: 2.0, 100: 1.5})
    for first, other in ((long, "b"), ("b", long)):
        assert cli.main(["compare", first, other, "--runs-dir", str(tmp_path)]) == 0
        out = capsys.readouterr().out
        assert max(map(len, out.splitlines())) <= 100 and out.count("note:") == 1 and "a bound" in out


def test_a_name_of_both_kinds_is_the_experiment_unless_runs_are_named_too(tmp_path, capsys):
    make_run(tmp_path / "phi_tiny", experiment(), {100: 2.0})
    make_run(tmp_path / "mine", experiment(lr=1.0), {100: 2.5})
    cli.main(["compare", "--runs-dir", str(tmp_path), "phi_tiny", "phi_10m", "--json"])
    assert "measured" not in json.loads(capsys.readouterr().out)
    cli.main(["compare", "--runs-dir", str(tmp_path), "phi_tiny", "mine", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["measured"]["sides"][0]["name"] == "phi_tiny" and found["names"] == ["phi_tiny", "mine"]
    make_run(tmp_path / "first", experiment(lr=2.0), {100: 2.5})
    cli.main(["compare", "--runs-dir", str(tmp_path), "mine", "phi_10m", "first", "mine", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["names"] == ["mine", "phi_10m", "first"]  # in the order given
    assert [side["name"] for side in found["measured"]["sides"]] == ["mine", "first"]
    cli.main(["compare", "--runs-dir", str(tmp_path), "mai_500b", "mine"])  # an experiment beside a run
    out = capsys.readouterr().out
    assert "499,496,601,600" in out and "at the end" in out


def test_names_of_one_side_are_told_what_they_are(tmp_path, capsys):
    for name, seed in (("mine", 0), ("copy", 0), ("other", 1)):
        make_run(tmp_path / name, experiment(seed=seed), {100: 2.0})
    for names, what in ((["mine", "mine"], "the same run, mine"), (["mine", f"{tmp_path}/mine"], "the same run, mine"),
                        (["mine", "copy"], "runs of one experiment and seed"),
                        (["mine", "other"], "seeds of one experiment, 2 in all")):
        assert cli.main(["compare", "--runs-dir", str(tmp_path), *names]) == 2
        assert f"{' and '.join(names)} are {what}; name another to compare with" in capsys.readouterr().err


@pytest.fixture(scope="session")
def real_run(tmp_path_factory):
    """Trained for a few steps by the real loop."""
    from maijax.train import loop

    folder, cache = tmp_path_factory.mktemp("real"), tmp_path_factory.mktemp("cache")
    text = folder / "tales.jsonl"
    text.write_text("".join(json.dumps({"text": f"the king of {i} stood by the sea and sang to queen {i * 7}."}) + "\n"
                            for i in range(80)))
    base = registry.get("phi_test")
    made = dataclasses.replace(
        base, name="little",
        model=dataclasses.replace(base.model, num_layers=1, d_model=32, d_ff=64, vocab_size=300, context=32),
        optim=dataclasses.replace(base.optim, name="adamw", lr=0.01, warmup=1),
        data=DataConfig(sources=(SourceConfig(uri=str(text)),), held_out=0.2),
        train=dataclasses.replace(base.train, steps=6, seq_len=32, log_every=1, eval_every=2, eval_sequences=8,
                                  checkpoint_every=6),
    )
    loop.run(made, folder / "runs" / "real", cache=cache, record={"name": "little", "provenance": {}, "totals": {}})
    return folder / "runs"


def test_a_real_run(real_run):
    [side] = runs.gather(real_run, ["real"])
    [run] = side.runs
    assert run.finished and [p.step for p in run.points] == [2, 4, 6]
    assert run.last.tokens == 6 * 8 * 32 and run.last.bits_per_byte is not None
    assert 0 < run.points[0].seconds < run.last.seconds
    assert run.last.scored > run.points[0].scored  # all that is held out, after a part of it
    assert all(0 < p.loss < 2 * math.log(300) for p in run.points)
    found = measured.measure([side])
    assert found.metric == "loss" and found.ends[0].runs == 1
    assert any("measured on all held-out text" in caution for caution in found.cautions)


def test_what_moved_a_value_is_what_the_run_recorded(tmp_path, capsys):
    for name, lr in (("a", 0.01), ("b", 0.02)):
        make_run(tmp_path / name, experiment(lr=lr), {50: 3.0, 100: 2.5})
        file = tmp_path / name / "experiment.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"provenance": {"optim.lr": f"sweep {name}"}}))
    assert cli.main(["compare", "a", "b", "--runs-dir", str(tmp_path)]) == 0
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  optim.lr ")]
    assert line.split()[3:] == ["sweep", "a;", "sweep", "b"]
