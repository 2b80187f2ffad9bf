"""The page holds every number and series, needs no network, lets nothing of a run act, and is sound HTML."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from run_folders import experiment, make_run

from maijax import cli, registry, scaling
from maijax.compare import charts, ladder, measured, page, runs, static

HOSTILE = "</script><img src=x onerror=alert(1)>'\"&<!--\x00]]>"
VOID = {"meta"}


class Page(HTMLParser):
    """Elements with attributes, text and scripts; fails on elements that are not closed in order."""

    def __init__(self, text):
        super().__init__()
        self.found, self.open, self.texts, self.scripts = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        (self.scripts if self.open and self.open[-1] == "script" else self.texts).append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())

    @property
    def charts(self):
        return [json.loads(script) for script in self.scripts[:-1]]


@pytest.fixture(scope="module")
def compared():
    return static.compare([registry.get("phi_1b"), registry.get("mai_500b")], registry.topology("v5p:16x16x32"))


@pytest.fixture
def two(tmp_path):
    for name, lr in (("a", 0.01), ("b", 0.02)):
        for seed in range(2):
            made = experiment(lr=lr, seed=seed)
            make_run(tmp_path / f"{name}{seed}", made, {50: 3.0, 100: 2.0 + lr + seed / 1_000})
    return measured.measure(runs.gather(tmp_path, ["a*", "b*"]))


def test_every_fact_and_difference_is_there(compared):
    found = Page(page.render(compared=compared))
    for group in compared.groups:
        for line in group.lines:
            for said in (line.what, line.note, *line.cells()):
                assert " ".join(said.split()) in found.text, said
    for one in compared.differences:
        assert one.path in found.text
    assert "499,496,601,600" in found.text and "Step Law 1.79" in found.text and "phi_1b beside mai_500b" in found.text


def test_every_series_has_every_axis_it_can(compared):
    found = {chart["title"]: chart for chart in Page(page.render(compared=compared)).charts}
    assert set(found) == {"Size and budget", "Peak learning rate", "Batch", "Loss that the law expects"}
    for chart in found.values():
        axes = [axis for axis, _ in chart["axes"]]
        for one in chart["series"]:
            assert any(axis in one["x"] for axis in axes)
            assert all(len(values) == len(one["y"]) for values in one["x"].values())
    names = {one["name"] for one in found["Size and budget"]["series"]}
    assert {"phi_1b", "mai_500b", "20 tokens per parameter", "compute-optimal, Epoch refit"} == names
    law = found["Loss that the law expects"]["series"][1]
    large = compared.experiments[1]
    assert law["x"]["tokens"][-1] == pytest.approx(large.tokens)
    assert law["x"]["flops"][-1] == pytest.approx(scaling.train_flops(large))
    assert law["x"]["seconds"][-1] == pytest.approx(large.train.steps * compared.step_seconds[1])
    assert law["y"][-1] == pytest.approx(static.expected_loss(large))


def test_runs_are_drawn_point_by_point(two):
    found = Page(page.render(measured=two))
    [chart] = found.charts
    assert [axis for axis, _ in chart["axes"]] == ["tokens", "flops", "seconds"]
    assert [(one["name"], one["color"], one["group"]) for one in chart["series"]] == [
        ("a0", 0, "a0 (2 seeds)"), ("a1", 0, "a0 (2 seeds)"), ("b0", 1, "b0 (2 seeds)"), ("b1", 1, "b0 (2 seeds)"),
    ]
    assert chart["series"][3]["y"] == [3.0, 2.021] and chart["series"][3]["x"]["seconds"] == [25.0, 50.0]
    assert "2.010±0.001" in found.text


def test_a_ladder_has_its_verdict_its_line_and_its_pairs(tmp_path):
    from test_gain_ladder import make

    make(tmp_path / "plain", 0.0)
    make(tmp_path / "mup", 0.1, rates=(0.02,), rng=np.random.default_rng(1))
    told = ladder.ladder(str(tmp_path), "plain", "mup")
    found = Page(page.render(ladders=[told]))
    assert "mup over plain: the gain grows" in found.text
    gains, losses = found.charts
    pairs = next(one for one in gains["series"] if one["style"] == "points")
    assert len(pairs["y"]) == 10 and np.log(pairs["y"]) == pytest.approx(told.trend.gains)
    band = next(one for one in gains["series"] if one["style"] == "band")
    line = next(one for one in gains["series"] if one["name"] == "line")
    assert all(low <= y <= high for low, y, high in zip(band["y"], line["y"], band["high"], strict=True))
    assert np.log(line["y"][-1]) == pytest.approx(told.trend.top)
    assert np.log(band["high"][-1] / line["y"][-1]) == pytest.approx(told.trend.top_half)
    assert [len(one["y"]) for one in losses["series"]] == [41, 10, 10]


def test_needs_no_network_and_only_its_own_script_may_run(compared, two):
    text = page.render(compared=compared, measured=two)
    assert not re.search(r"(?<!ns\.)https?://(?!www\.w3\.org/2000/svg)|url\((?!#)|@import|\bsrc=|fetch\(|XMLHttp", text)
    found = Page(text)
    assert not {tag for tag, _ in found.found} & {"link", "img", "iframe", "object", "base", "form"}
    policy = next(a["content"] for tag, a in found.found if tag == "meta" and "http-equiv" in a)
    digest = base64.b64encode(hashlib.sha256(found.scripts[-1].encode()).digest()).decode()
    assert policy.startswith("default-src 'none'") and f"script-src 'sha256-{digest}'" in policy
    kinds = [a.get("type") for tag, a in found.found if tag == "script"]
    assert kinds[-1] is None and set(kinds[:-1]) == {"application/json"}


def test_hostile_names_stay_text(two):
    import dataclasses

    named = dataclasses.replace(two, sides=tuple(
        dataclasses.replace(side, name=HOSTILE, how=HOSTILE,
                            runs=tuple(dataclasses.replace(run, name=HOSTILE) for run in side.runs))
        for side in two.sides
    ))
    calm, hostile = Page(page.render(measured=two)), Page(page.render(measured=named))
    assert {tag for tag, _ in calm.found} == {tag for tag, _ in hostile.found}
    assert "<img src=x onerror=alert(1)>" in hostile.text
    assert hostile.charts[0]["series"][0]["name"] == HOSTILE


def test_what_is_drawn_is_finite(compared, two):
    for chart in [*charts.of_experiments(compared), charts.of_runs(two)]:
        json.dumps(chart.plain(), allow_nan=False)


def test_the_command_writes_it(tmp_path, capsys):
    file = tmp_path / "c.html"
    assert cli.main(["compare", "phi_tiny", "mai_500b", "--html", str(file)]) == 0
    assert f"page: {file}" in capsys.readouterr().out
    Page(file.read_text())
    assert list(tmp_path.iterdir()) == [file]
    assert cli.main(["compare", "phi_tiny", "mai_500b", "--json", "--html", str(file)]) == 0
    json.loads(capsys.readouterr().out)  # the page's path goes to stderr then


@pytest.mark.parametrize(
    ("file", "why"), [("no/c.html", "there is no folder .*no; make it"), (".", "cannot be written")]
)
def test_a_page_that_cannot_be_written_is_told_before_anything_is_printed(tmp_path, capsys, file, why):
    (tmp_path / "here").mkdir()
    assert cli.main(["compare", "phi_tiny", "mai_500b", "--html", str(tmp_path / "here" / file)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and re.search(why, err) and err.count("\n") == 1
    assert [p.name for p in tmp_path.rglob("*")] == ["here"]  # no part of a file
