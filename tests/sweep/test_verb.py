"""The verb: what a command line means, what it foretells, what it prints and draws."""

import json
import re
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
from sweep_parts import ROOT, tiny

from maijax import cli, registry
from maijax.cli import sweep as verb
from maijax.cli import table
from maijax.space import Sweep
from maijax.sweep import drive, picture, seeds
from maijax.sweep.study import Result, Study, Trial

TITLE = "mean over seeds, and the standard deviation of a single trial"


@pytest.fixture
def lab(corpus, clean_registry, monkeypatch):
    monkeypatch.setattr(registry, "_sweeps", dict(registry._sweeps))

    @registry.register_sweep
    def rates() -> Sweep:
        """Which rate?"""
        return Sweep(base=tiny(corpus), space={"optim.lr": "log:1e-4..1:5", "optim.name": "adamw,lion"})


def chosen(*words: str) -> Sweep:
    return verb.chosen(cli.parser().parse_args(["sweep", *words]))[0]


def test_what_a_command_line_means(lab):
    assert chosen("rates").count == 10
    assert chosen("rates", "--set", "train.seed=0,1,2").count == 30
    held = chosen("rates", "--set", "optim.name=lion", "--set", "train.steps=9")
    assert held.count == 5 and held.base.optim.name == "lion" and held.base.train.steps == 9
    found = chosen("phi_test", "--set", "optim.lr=log:1e-4..1")
    assert (found.sampler, found.count, found.name) == ("random", 20, "phi_test")
    found = chosen("phi_test", "--set", "optim.lr=1,2", "--sampler", "tpe", "--trials", "7", "--prune", "halving")
    assert (found.sampler, found.count, found.prune) == ("tpe", 7, "halving")


@pytest.mark.parametrize(("words", "parts"), [
    ("phi_test", ["the space is empty"]),
    ("phi_tst --set optim.lr=1,2", ["did you mean phi_test"]),
    ("phi_test --set optim.lr=log:0..1:4 --set train.stepz=3 --set model.num_layers=0,1",
     ["begin above 0", "train.steps?"]),
    ("phi_test --set model.attention.kv_heads=1,3", ["kv_heads=3 must divide"]),
    ("phi_test --set optim.lr=1,2 --trials 4", ["a grid has 2"]),
    ("phi_test --set optim.lr=1,2 --launcher cloud", ["must be local, slurm or ray"]),
    ("phi_test --set optim.lr=1,2 --name ../x", ["run name"]),
    ("phi_test --set optim.lr=1,2 --workers 0", ["must be a whole number above 0"]),
])
def test_bad_input_is_one_line_and_writes_nothing(capsys, tmp_path, words, parts):
    assert cli.main(["sweep", *words.split(), "--runs-dir", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert all(part in err for part in parts) and err.count("\n") == 1, err
    assert not list(tmp_path.iterdir())


def test_dry_run(capsys, tmp_path):
    words = ["sweep", "phi_test", "--set", "optim.lr=log:1e-3..1e-1:3", "--set", "model.num_layers=1,2"]
    assert cli.main([*words, "--dry-run", "--runs-dir", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "6 trials of phi_test, grid" in out and "2 different programs" in out and "0.01" in out
    assert not list(tmp_path.iterdir())


def ended(corpus, folder) -> Study:
    """A study with a trial of every fate."""
    space = {"optim.lr": "log:1e-4..1:5", "optim.name": "adamw,lion", "train.seed": "0,1"}
    study = Study.create(folder, Sweep(name="s", base=tiny(corpus), space=space), {})
    for claim in study.claim(99) + study.claim(99):
        n = claim.trial.number
        if n == 7:
            result = Result(state="failed", step=3, why="the loss is <not> finite & more")
        elif n == 8:
            result = Result(state="pruned", step=2, bits_per_byte=7.0, loss=5.0)
        else:
            figure = 1e6 if n == 19 else 3 + abs(n - 4.5) / 10
            result = Result(state="done", step=6, bits_per_byte=figure, loss=4.0)
        claim.release(result)
    return study


def test_the_table_and_the_page(corpus, tmp_path, capsys):
    study = ended(corpus, tmp_path / "s")
    trials = study.trials()
    assert len(trials) == 20 and drive.best(trials).number == 4
    page = picture.write(study)
    verb.tell(study, trials, page)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= table.WIDTH
    assert lines[0].split() == ["trial", "lr", "name", "seed", "bits/byte", "loss", "step"]
    assert lines[1].split()[0] == "4" and any("pruned" in line for line in lines)

    text = page.read_text()
    parser, open_tags = HTMLParser(), []
    parser.handle_starttag = lambda tag, attrs: open_tags.append(tag)
    parser.feed(text)
    assert open_tags.count("figure") == 2 and "&lt;not&gt;" in text and "<not>" not in text  # the seed has none
    assert text.count('class="dots"') == 10 * 2 and text.count('class="bar"') == 8 * 2 and "log axis" in text
    assert "Best mean over seeds: 3.0500 \u00b1 0.0000, at optim.lr = 0.001, optim.name = adamw." in text
    assert "http" not in text.replace("http-equiv", "")  # needs nothing else
    assert "base-uri 'none'" in text
    found = [line.split() for line in lines[lines.index(TITLE) + 1:][:11]]
    assert found[:2] == [["lr", "name", "bits/byte", "deviation", "seeds"], ["0.001", "adamw", "3.0500", "0.0000", "2"]]
    assert found[-1] == ["0.01", "adamw", "3.4500", "1", "1", "more", "did", "not", "finish"]
    told = verb._plainly(study, trials, True)
    assert [one["not_finished"] for one in told["settings"]] == [0] * 8 + [1] * 2
    assert json.loads(json.dumps(told))["best"] == 4 and len(told["trials"]) == 20
    assert drive.said(trials) == "best 3.0500 bits per byte (trial 4)  1 pruned  1 failed"


def test_means_over_seeds_are_those_of_numpy(corpus, tmp_path, capsys):
    space = {"train.seed": "0,1,2", "optim.lr": "1e-3,1e-2"}
    study = Study.create(tmp_path / "s", Sweep(name="s", base=tiny(corpus), space=space), {})
    figures = [3.1, 2.9, 3.3, 2.7, 3.2, 2.95]
    for claim, figure in zip(study.claim(6), figures, strict=True):
        claim.release(Result(state="done", step=6, bits_per_byte=figure))
    verb.tell(study, study.trials(), tmp_path / "none")
    lines = capsys.readouterr().out.splitlines()
    good, bad = figures[1::2], figures[0::2]
    expected = [[rate, f"{np.mean(f):.4f}", f"{np.std(f, ddof=1):.4f}", "3"] for rate, f in
                (("1e-2", good), ("1e-3", bad))]
    assert [line.split() for line in lines[lines.index(TITLE) + 2:]] == expected


def test_without_several_seeds_no_mean_is_told(corpus, tmp_path, capsys):
    for name, space in (("a", {"optim.lr": "1,2"}), ("b", {"optim.lr": "1,2", "train.seed": "4,5"})):
        study = Study.create(tmp_path / name, Sweep(name="s", base=tiny(corpus), space=space), {})
        for claim in study.claim(4):
            if claim.trial.point.get("train.seed") != "5":
                claim.release(Result(state="done", step=6, bits_per_byte=3.0))
        verb.tell(study, study.trials(), tmp_path / "none")
    assert TITLE not in capsys.readouterr().out


def test_only_seeds_are_an_axis_of_their_own(corpus, tmp_path):
    sweep = Sweep(name="s", base=tiny(corpus), space={"train.seed": "0,1,2"})
    study = Study.create(tmp_path / "s", sweep, {})
    for claim in study.claim(3):
        claim.release(Result(state="done", step=6, bits_per_byte=3.0 + claim.trial.number))
    assert picture.render(study).count('class="dots"') == 3


def test_equal_draws_are_one_setting_and_every_trial_counts(corpus, tmp_path):
    sweep = Sweep(name="s", base=tiny(corpus), space={"optim.lr": "1e-3,1e-2", "train.seed": "0,1"},
                  sampler="random", trials=12)
    study = Study.create(tmp_path / "s", sweep, {})
    claims = study.claim(12)
    for i, claim in enumerate(claims):
        last = i == len(claims) - 1
        claim.release(Result(state="failed", step=1, why="x") if last else
                      Result(state="done", step=6, bits_per_byte=2.0 + i))
    trials = study.trials()
    found = seeds.settings(trials)
    assert found[0].trials[0].number == 0 and sum(one.lost for one in found) == 0  # the failed one is a repetition
    assert "12 trials, 11 finished. Best: trial 0, 2.0000" in picture.render(study)


def test_a_lucky_seed_leads_no_means(corpus, tmp_path):
    """A stopped sweep has settings of which only one seed is done."""
    space = {"optim.lr": "1e-3,1e-2", "train.seed": "0,1,2"}
    study = Study.create(tmp_path / "s", Sweep(name="s", base=tiny(corpus), space=space), {})
    for claim, figure in zip(study.claim(4), (3.00, 3.01, 3.02, 2.5), strict=True):
        claim.release(Result(state="done", step=6, bits_per_byte=figure))
    assert [one.point["optim.lr"] for one in seeds.settings(study.trials())] == ["1e-3", "1e-2"]
    assert "Best mean over seeds: 3.0100 \u00b1 0.0100, at optim.lr = 1e-3" in picture.render(study)


def test_no_line_is_too_wide(corpus, tmp_path, capsys):
    """Of six values with long names, one of them a failure's long reason."""
    paths = ("model.attention.num_heads", "model.moe.num_experts", "optim.weight_decay", "optim.final_fraction",
             "optim.adam_lr", "train.eval_sequences")
    sweep = Sweep(name="s", base=tiny(corpus), space={path: "1,2" for path in paths})
    study = Study(tmp_path, sweep, {})
    trials = [Trial(number=0, point=dict.fromkeys(paths, "0.000123456"), deaths=0, step=0, running=False,
                    result=Result(state="failed", step=3, why="word " * 60))]
    verb.tell(study, trials, tmp_path / "none")
    assert max(map(len, capsys.readouterr().out.splitlines())) <= table.WIDTH
    words = ["sweep", "phi_test", "--dry-run", "--runs-dir", str(tmp_path)]
    words += ["--set", "optim.lr=log:1.23456e-4..1.23456e-1:12", "--together", "1"]
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    assert "at most 1 trial in one" in out
    assert max(map(len, out.splitlines()[1:])) <= table.WIDTH  # the first names the folder


def test_figures_are_whole_beside_any_number_of_values(corpus, tmp_path, capsys):
    paths = [f"optim.a_long_name_{i}" for i in range(30)]
    study = Study(tmp_path, Sweep(name="s", base=tiny(corpus), space={"optim.lr": "1,2"}), {})
    study.sweep = SimpleNamespace(space=dict.fromkeys(paths, "1,2"))
    result = Result(state="done", step=12_000, bits_per_byte=3.8060, loss=4.0)
    verb.tell(study, [Trial(number=7, point=dict.fromkeys(paths, "0.000123456"), deaths=0, step=0, running=False,
                            result=result)], tmp_path / "none")
    out = capsys.readouterr().out
    assert "3.8060" in out and "12,000" in out


def test_dry_run_of_a_stopped_sweep_says_what_is_left(corpus, lab, tmp_path, capsys):
    words = ["sweep", "rates", "--dry-run", "--runs-dir", str(tmp_path), "--name", "s"]
    study = Study.create(tmp_path / "s", verb.chosen(cli.parser().parse_args(words))[0], {})
    assert cli.main(words) == 0 and "would start 10 trials" in capsys.readouterr().out
    claims = study.claim(4)
    (claims[1].folder / "checkpoints" / "4").mkdir(parents=True)
    claims[0].release(Result(state="done", step=6, bits_per_byte=3.0))
    for claim in claims[1:]:
        claim.release(None)
    before = sorted(tmp_path.rglob("*"))
    assert cli.main(words) == 0
    assert "would go on: 1 of 10 trials ended, 1 to go on from a checkpoint, 8 to start" in capsys.readouterr().out
    assert sorted(tmp_path.rglob("*")) == before
    for claim in study.claim(99) + study.claim(99):
        claim.release(Result(state="done", step=6, bits_per_byte=3.0))
    assert cli.main(words) == 0 and "would train nothing: 10 trials of 10 ended" in capsys.readouterr().out


def test_the_sweep_of_the_documentation_works(tmp_path, monkeypatch, capsys, clean_registry):
    monkeypatch.setattr(registry, "_sweeps", dict(registry._sweeps))
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "adding.md").read_text(), re.DOTALL)
    [code] = [block for block in blocks if "register_sweep" in block]
    (tmp_path / "documented.py").write_text(code)
    assert cli.main(["sweep", "phi_test_seeds", "--module", "documented", "--dry-run"]) == 0
    assert "phi_test_seeds: 6 trials, grid" in capsys.readouterr().out


def test_data_that_cannot_be_read_stops_the_sweep_in_one_line(corpus, tmp_path, capsys):
    words = ["sweep", "phi_test", "--set", "optim.lr=1e-3,1e-2", "--set", f"data.sources={tmp_path}/nowhere.txt"]
    assert cli.main([*words, "--runs-dir", str(tmp_path / "runs"), "--name", "s"]) == 2
    assert "nowhere.txt" in capsys.readouterr().err.splitlines()[-1]
    assert not any(t.result for t in Study.load(tmp_path / "runs" / "s").trials())
