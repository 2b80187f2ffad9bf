"""`maijax fit` as a person meets it: tables, JSON, the ledger, the page, and errors in one line."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import finished
import numpy as np
import pytest

from maijax import cli, overrides, registry
from maijax.cli import table
from maijax.compare import points

HOSTILE = "<img src=x onerror=alert(1)>'\"&"


def run(capsys, *words):
    code = cli.main(["fit", *map(str, words)])
    out, err = capsys.readouterr()
    assert not out or max(map(len, out.splitlines())) <= table.WIDTH
    return code, out, err


@pytest.fixture
def runs(tmp_path):
    finished.ladder(tmp_path / "runs")
    return tmp_path / "runs"


@pytest.fixture
def budgets(tmp_path):
    """A file of five budgets of seven sizes each, by Epoch's law."""
    lines = ["params,tokens,loss,name"]
    rng = np.random.default_rng(0)
    for flops in np.geomspace(1e18, 1e21, 5):
        for n in 0.1 * flops**0.5 * np.geomspace(0.25, 4, 7):
            d = flops / 6 / n
            loss = (1.8172 + 482.01 / n**0.3478 + 2085.43 / d**0.3658) * (1 + 1e-3 * rng.standard_normal())
            lines.append(f'{n},{d},{loss},"{HOSTILE.replace(chr(34), chr(34) * 2)}"')
    (tmp_path / "budgets.csv").write_text("\n".join(lines))
    return tmp_path / "budgets.csv"


def test_a_fit_is_told_in_a_table(capsys, runs):
    code, out, err = run(capsys, *sorted(runs.iterdir()))
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert (code, err) == (0, "")
    assert lines[0] == "12 points, held-out nats per token, N of active parameters"
    assert lines[1] == "L = E + A/N^alpha + B/D^beta: parameters and tokens both vary"
    told = {line.split()[0]: line.split()[1:] for line in lines if len(line.split()) == 5 and " to " in line}
    for name, true in (("E", 1.2), ("alpha", 0.35), ("beta", 0.4)):
        value, low, _, high = told[name]
        assert float(low) <= float(value) <= float(high) and float(low) <= true <= float(high), name
    assert "IsoFLOP" not in out
    assert sum(line.startswith("l") and line.endswith("%") for line in lines) == 12


def test_json_holds_all_of_it(capsys, budgets):
    found = json.loads(run(capsys, budgets, "--json")[1])
    assert found["coefficients"]["alpha"]["value"] == pytest.approx(0.3478, rel=0.05)
    assert found["best_params"]["power"]["low"] < 0.5126 < found["best_params"]["power"]["high"]
    assert len(found["points"]) == 35 and abs(found["points"][0]["miss"]) < 0.01
    assert [b["flops"] for b in found["isoflop"]["budgets"]] == pytest.approx(np.geomspace(1e18, 1e21, 5).tolist())
    assert found["isoflop"]["params"]["power"]["value"] == pytest.approx(0.5126, abs=0.02)
    assert found["prediction"] is None


def test_budgets_are_told_of(capsys, budgets):
    _, out, _ = run(capsys, budgets)
    assert "IsoFLOP budget" in out and re.search(r"N_opt = [\d.]+ C\^0\.5\d+, exponent 0\.\d+ to 0\.\d+", out)
    assert "the 16 that miss most" in out


def test_foretell_then_run_then_score(capsys, runs):
    words = ["--runs-dir", runs, "--predict", "phi_test", "--set", "model.num_layers=5", "--set", "train.steps=1600"]
    code, out, _ = run(capsys, runs, *words, "--dry-run")
    assert code == 0 and "nothing was written" in out and not (runs / "ledger.jsonl").exists()
    code, out, _ = run(capsys, runs, *words)
    out = " ".join(out.split())
    assert code == 0 and "phi_test model.num_layers=5 train.steps=1600: foretold " in out
    assert "`maijax fit --ledger` scores it" in out
    assert "open: no run of that" in run(capsys, "--ledger", "--runs-dir", runs)[1]
    out = " ".join(run(capsys, runs, *words)[1].split())
    assert "the same was foretold at 20" in out and len((runs / "ledger.jsonl").read_text().splitlines()) == 1

    made = overrides.apply(registry.get("phi_test"), ["model.num_layers=5", "train.steps=1600"])
    finished.write(runs / "big", made, started=finished.later())
    _, out, _ = run(capsys, "--ledger", "--runs-dir", runs)
    assert re.search(r" inside$", out, re.MULTILINE) and "1 of 1 prediction inside" in out
    (one,) = json.loads(run(capsys, "--ledger", "--json", "--runs-dir", runs)[1])
    assert one["standing"] == "inside" and abs(one["miss"]) < 1e-2 and len(one["points"]) == 12

    _, out, _ = run(capsys, *sorted(runs.glob("l*-*")), *words)
    assert "no prediction: big is a run of this configuration" in out
    _, out, _ = run(capsys, "--ledger", "--runs-dir", runs)
    assert "too late: a run" in out and "1 of 1 prediction inside" in out


def test_a_refusals_command_asks_for_the_same(capsys, tmp_path):
    finished.ladder(tmp_path / "runs", layers=(1, 2, 3, 4), steps=(50, 200))
    words = ["--bits", "--params", "total"]
    code, _, err = run(capsys, tmp_path / "runs", *words)
    command = err.split("alone: maijax fit ")[1].split()
    assert code == 2 and command[:3] == words and len(command) == 7
    assert run(capsys, *command)[0] == 0


def test_the_page_shows_the_prediction_that_is_kept(capsys, runs, tmp_path):
    words = [runs, "--runs-dir", runs, "--predict", "phi_test", "--set", "model.num_layers=5"]
    run(capsys, *words)
    ledger = runs / "ledger.jsonl"
    entry = json.loads(ledger.read_text())
    ledger.write_text(json.dumps(entry | {"predicted": 7.6543}) + "\n")  # kept by another version, say
    for more in ([], ["--dry-run"]):
        out = run(capsys, *words, "--html", tmp_path / "fit.html", *more)[1]
        assert "foretold 7.6543" in out and "7.6543" in (tmp_path / "fit.html").read_text()
    assert len(ledger.read_text().splitlines()) == 1


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.data = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.data.append(data)


def test_the_page_needs_nothing_and_lets_nothing_act(capsys, budgets, tmp_path):
    words = ["--predict", "phi_1b", "--dry-run", "--html", tmp_path / "fit.html"]
    code, out, _ = run(capsys, budgets, *words)
    assert code == 0 and f"page: {tmp_path / 'fit.html'}" in out
    page = Page((tmp_path / "fit.html").read_text())
    assert page.tags.count("svg") == 4 and not {"script", "img", "link", "iframe"} & set(page.tags)
    assert any(name == "title" and HOSTILE in value for name, value in page.attributes)  # as text
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert "http" not in " ".join(v or "" for _, v in page.attributes)
    titles = ("Held-out loss over C", "Measured over the law", "IsoFLOP", "Best size of a budget")
    assert all(title in page.data for title in titles) and "foretold" in page.data
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_a_page_of_one_variable(capsys, tmp_path):
    finished.ladder(tmp_path / "runs", layers=(2,), steps=(50, 100, 200, 400))
    assert run(capsys, tmp_path / "runs", "--html", tmp_path / "f.html")[0] == 0
    assert "Held-out loss over D" in Page((tmp_path / "f.html").read_text()).data


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "no RUNS to fit; give names"),
        ("nosuch", "no run 'nosuch' in"),
        ("l1-s50", "1 point of one size and one length"),
        ("l1-s50 l1-s200 l1-s800 broken", "4 are needed; add runs; left out, not finished: broken"),
        ("nosuch.csv", "nosuch.csv: there is no such file"),
        ("l1-s50 --set a=b", "--set changes what --predict does"),
        ("l1-s50 --ledger", "--ledger only reads"),
        ("l1-s50 l1-s200 l1-s800 l2-s50 l2-s800 l3-s50 l3-s800 --predict phi_10m",
         "l1-s50 and phi_10m differ in model.vocab_size: their losses cannot be compared"),
        ("--ledger", "holds no prediction; make one with `maijax fit RUNS --predict NAME`"),
        ("l1-s50 --params all", "argument --params: invalid choice: 'all'"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(capsys, runs, words, message):
    finished.write(runs / "broken", finished.experiment(layers=7), finished=False)
    code, out, err = run(capsys, *words.split(), "--runs-dir", runs)
    assert code == 2 and out == ""
    assert err.startswith("maijax: ") and message in err and err.count("\n") == 1


def test_a_page_that_cannot_be_written(capsys, runs, tmp_path):
    """Nothing is foretold then either: the same command may be given again."""
    words = ["--html", tmp_path / "no" / "fit.html", "--predict", "phi_test", "--set", "train.steps=1600"]
    code, out, err = run(capsys, runs, "--runs-dir", runs, *words)
    assert (code, out) == (2, "") and "there is no folder" in err and err.count("\n") == 1
    assert not (runs / "ledger.jsonl").exists()


EXAMPLE = "maijax fit runs/ladder_[2-5] --predict ladder_6"


@pytest.mark.parametrize("seeds", [1, 3])
def test_the_example_that_is_printed_works(capsys, tmp_path, monkeypatch, seeds):
    """As a shell expands it, and quoted, which it does not."""
    monkeypatch.chdir(tmp_path)
    noise = np.random.default_rng(0)
    for depth in (2, 3, 4, 5):
        for seed in range(seeds):
            made = overrides.apply(registry.get(f"ladder_{depth}"), [f"train.seed={seed}"])
            place = points.of_experiment(made, name="", count="active")
            loss = finished.law(place.params, place.tokens) * (1 + 1e-3 * noise.standard_normal())
            finished.write(tmp_path / "runs" / (f"ladder_{depth}" + f"-seed-{seed}" * bool(seed)), made, loss=loss)
    expanded = sorted(f"runs/{p.name}" for p in (tmp_path / "runs").glob("ladder_[2-5]"))
    assert len(expanded) == 4
    code, out, err = run(capsys, *expanded, *EXAMPLE.split()[3:], "--dry-run")
    assert (code, err) == (0, "") and "ladder_6: foretold" in out and out.startswith("4 points")
    every = run(capsys, "runs/ladder_[2-5]*", *EXAMPLE.split()[3:], "--dry-run", "--json")
    found = json.loads(every[1])
    assert [len(p["losses"]) for p in found["points"]] == [seeds] * 4 and found["prediction"]["name"] == "ladder_6"


def test_the_example_is_the_one_that_is_printed():
    root = Path(__file__).parents[2]
    for text in (cli.parser().format_help(), *((root / f).read_text() for f in ("README.md", "docs/fit.md"))):
        assert "ladder-*" not in text
    assert all(EXAMPLE in (root / f).read_text() for f in ("README.md", "docs/fit.md", "maijax/cli/__init__.py"))


def test_the_verb_needs_no_jax():
    """It answers in a second, since it never waits for jax."""
    program = "import sys; from maijax.compare import fit_page, ledger; print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
