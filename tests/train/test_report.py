"""The report says what the folder holds, needs nothing else, and lets nothing of a run act in the browser."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from maijax.train import chart
from maijax.train.chart import Chart, Series, draw, inline_json, number, smooth, thin
from maijax.train.report import write_report

HOSTILE = "</script><img src=x onerror=alert(1)>'\"&<!--\x00\ud800]]>"
VOID = {"meta", "input", "path", "rect", "br"}


class Page(HTMLParser):
    """Elements in order, their attributes, all text; fails on elements that are not closed in order."""

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

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        (self.scripts if self.open and self.open[-1] == "script" else self.texts).append(data)

    @property
    def text(self):
        return " ".join(self.texts)


def make_run(folder, text="the cat sat.", *, evals=True, steps=40):
    folder.mkdir(exist_ok=True)
    experiment = {
        "name": text, "train": {"steps": 40, "prompt": text}, "optim": {"lr": 0.003, "adam_lr": None},
        "data": {"sources": [{"uri": text, "weight": 1.0}]},
        "model": {"tied_head": True, "vocab_size": 32064},
    }
    described = {
        "name": text, "experiment": experiment, "provenance": {"optim.lr": "command line", "data": text},
        "rules": [["optim.adam_lr", text]],
        "totals": {"parameters": 1115264, "active": 1115264, "flops_per_token": 7e6, "tokens": 163840},
    }
    (folder / "experiment.json").write_text(json.dumps(described))
    (folder / "environment.json").write_text(
        json.dumps({"versions": {"jax": text}, "corpus": {"xz_bits_per_byte": 2.08}, text: text})
    )
    lines = []
    for step in range(1, steps + 1):
        measured = {"loss": 6.0 / step + 1, "grad_norm": 1.0, "tokens_per_s": 2e4, "data_wait_s": 0.01}
        counted = {"lr": 3e-3, "tokens": 4096 * step, "seconds": 0.2 * step, "skipped": 0, "token_hash": text}
        lines.append({"step": step, "kind": "train"} | measured | counted)
        if evals and step % 10 == 0:
            lines.append({"step": step, "kind": "eval", "loss": 2.0, "bits_per_byte": 1.5 + 1 / step})
            lines.append({"step": step, "kind": "sample", "prompt": "the", "text": f"{text} {step}"})
    lines.append({"step": steps, "kind": "event", "what": text})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def page(folder):
    return write_report(folder).read_text(encoding="utf-8")


def test_says_what_the_folder_holds(tmp_path):
    found = Page(page(make_run(tmp_path / "run")))
    for said in (
        "40 of 40 steps, finished", "1.525", "xz -9e 2.08", "1.12M", "optim.lr", "command line", "32,064",
        "data.sources[0].uri", " cat sat. 10", "rule: the cat sat.", "tokens per second, median", "20,000",
    ):
        assert said in found.text, said
    titles = [found.found[i + 1][0] for i, (tag, _) in enumerate(found.found) if tag == "svg"]
    assert titles == ["title"] * 6
    assert [tag for tag, _ in found.found].count("desc") == 6


def test_needs_nothing_else(tmp_path):
    text = page(make_run(tmp_path / "run"))
    assert not re.search(r"https?://|//[a-z]|url\((?!#)|@import|\bsrc=", text)
    assert {tag for tag, _ in Page(text).found} & {"link", "img", "iframe", "object", "base", "form"} == set()


def test_hostile_strings_stay_text(tmp_path):
    calm, hostile = (Page(page(make_run(tmp_path / n, t))) for n, t in (("a", "calm"), ("b", HOSTILE)))
    assert [tag for tag, _ in calm.found] == [tag for tag, _ in hostile.found]
    for (_, before), (tag, after) in zip(calm.found, hostile.found, strict=True):
        assert before.keys() == after.keys(), tag
        assert not any(name.startswith("on") for name in after)
    assert "</script><img src=x onerror=alert(1)>" in hostile.text  # shown, as text
    assert not any("onerror" in script for script in hostile.scripts)


def test_only_the_pages_own_script_may_run(tmp_path):
    found = Page(page(make_run(tmp_path / "run")))
    policy = next(a["content"] for tag, a in found.found if tag == "meta" and "http-equiv" in a)
    scripts = [a for tag, a in found.found if tag == "script"]
    assert [a.get("type") for a in scripts] == ["application/json"] * 6 + [None]
    digest = base64.b64encode(hashlib.sha256(found.scripts[-1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy


def test_missing_and_damaged_pieces(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "No step has been logged yet" in Page(page(empty)).text
    for name in ("experiment.json", "environment.json", "metrics.jsonl", "samples.jsonl"):
        (empty / name).write_bytes(b'{"step": [1], "kind\xff')
    Page(page(empty))
    odd = {"experiment": [1], "rules": {"a": 1}, "totals": {"parameters": "many"}, "name": 3}
    (empty / "experiment.json").write_text(json.dumps(odd))
    (empty / "metrics.jsonl").write_text(
        '{"step": 1, "kind": "train", "loss": "x", "lr": null, "tokens": true, "skipped": [1]}\n'
        '{"step": 1, "kind": "sample"}\n{"step": 2, "kind": "eval", "loss": 1e400}\n'
    )
    Page(page(empty))
    none = Page(page(make_run(tmp_path / "early", evals=False, steps=1)))
    assert "No evaluation has been made yet" in none.text and "1 of 40 steps, not finished" in none.text


def test_a_run_of_many_steps_makes_a_small_page(tmp_path):
    assert len(page(make_run(tmp_path / "run", steps=4000))) < 450_000


curves = st.lists(st.floats(-1e300, 1e300), min_size=1, max_size=300)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(curves, st.booleans(), st.booleans(), st.none() | st.floats(-1e9, 1e9))
def test_any_curve_is_drawn_with_finite_numbers(values, zero, cut, line):
    baseline = None if line is None else ("base", line)
    one = Series(name="s", steps=range(1, len(values) + 1), values=values)
    made = draw(
        Chart(title="T", unit="", from_zero=zero, cut_start=cut, noisy=True, baseline=baseline, series=[one])
    )
    Page(made)
    assert not re.search(r"nan|inf", re.sub(r"<desc.*?</desc>|<script.*?</script>", "", made))


def test_thinning_keeps_the_ends_and_the_spike():
    values = [1.0] * 10_000
    values[1234], values[7777] = 50.0, -3.0
    found = thin(Series(name="s", steps=range(10_000), values=values))
    assert len(found.steps) <= chart.POINTS + 2
    kept = set(zip(found.steps, found.values, strict=True))
    assert {(0, 1.0), (1234, 50.0), (7777, -3.0), (9999, 1.0)} <= kept
    calm = smooth(Series(name="s", steps=range(10_000), values=values))
    assert set(calm.values) == {1.0} and calm.steps[-1] == 9999


def test_inline_json_cannot_end_its_element():
    assert not set("<>&") & set(inline_json({"a": HOSTILE}))
    assert json.loads(inline_json({"a": HOSTILE}))["a"] == HOSTILE


@pytest.mark.parametrize(
    ("ticks", "texts"),
    [
        ([0, 0.0025, 0.005], ["0", "0.0025", "0.0050"]),
        ([10_000, 20_000], ["10k", "20k"]),
        ([1.5, 2.0], ["1.5", "2.0"]),
        ([0, 2.5e-5, 5e-5], ["0", "2.5e-5", "5e-5"]),
        ([1_500_000, 2_000_000], ["1.5M", "2.0M"]),
    ],
)
def test_tick_labels(ticks, texts):
    assert [number(t, ticks) for t in ticks] == texts
