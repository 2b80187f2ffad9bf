"""The coordinate check tells what transfers from what does not, and says it in every form."""

import dataclasses
import json
import math

import jax
import pytest

from maijax import cli, overrides, registry
from maijax.train import coordcheck
from maijax.train.coordcheck import QUANTITIES, Line, Report


@pytest.fixture(scope="module")
def report():
    """Of a tied head and AdamW, the ends of the widths and most of the depths: a corner of benchmarks.coordchecks."""
    experiment = overrides.apply(registry.get("phi_test"), ["optim.name=adamw"])
    return coordcheck.check(experiment, widths=(64, 256), depths=(2, 8, 32))


def test_completep_passes_and_the_standard_one_fails(report):
    assert report.passed and report.parametrization == "completep"
    judged = [line for line in report.lines if line.judged]
    assert {(line.parametrization, line.axis) for line in judged} == {("completep", "width"), ("completep", "depth")}
    assert all(-0.75 <= line.slope <= 0.15 for line in judged)
    standard = {(line.axis, line.quantity): line for line in report.lines if line.parametrization == "standard"}
    assert report.control == standard["width", "residual stream"].slope > 1
    assert not any(standard["width", q].holds for q in ("residual stream", "attention out", "mlp out"))
    assert not standard["depth", "residual stream"].holds


ODD = "model.attention.num_heads=8 model.attention.kv_heads=4 model.attention.head_dim=24".split()


@pytest.mark.parametrize(("name", "settings"), [*((name, []) for name in registry.names()), ("phi_tiny", ODD)])
def test_every_model_has_a_shrunk_copy(name, settings):
    model = overrides.apply(registry.get(name), settings).model
    for width, depth in ((64, 2), (128, 2), (64, 16)):
        made = coordcheck.shrunk(model, "completep", width, depth, base=(64, 2), kinds=16)
        experiment = dataclasses.replace(registry.get("phi_test"), model=made)
        assert experiment.validate() and made.attention.num_heads * made.attention.head_dim == width
        assert made.attention.num_heads // made.attention.kv_heads in (1, 2)
        assert (made.moe is None) == (model.moe is None) and made.tied_head == model.tied_head


def made_up(slopes: dict[tuple[str, str], float], how: str = "completep") -> Report:
    sizes = {"width": (64, 128), "depth": (2, 4)}
    return Report(name="x", optimizer="adamw", parametrization=how, lines=tuple(
        Line(parametrization=p, axis=axis, quantity=q, sizes=sizes[axis], judged=p != "standard",
             values=(1.0, 2.0 ** slopes.get((p, axis), 0.0)))
        for p in (how, "standard") for axis in sizes for q in QUANTITIES
    ))


@pytest.mark.parametrize(
    ("slopes", "code", "word"),
    [
        ({("standard", "width"): 2.0}, 0, "PASS"),
        ({("standard", "width"): 2.0, ("completep", "depth"): 0.16}, 1, "residual stream over depth +0.16"),
        ({("standard", "width"): 2.0, ("completep", "width"): -0.76}, 1, "residual stream over width -0.76"),
        ({("standard", "width"): 2.0, ("completep", "width"): math.inf}, 1, "+inf"),
        ({("standard", "width"): 0.9}, 1, "could not have told"),
    ],
)
def test_verdicts(capsys, monkeypatch, tmp_path, slopes, code, word):
    monkeypatch.setattr(coordcheck, "check", lambda *_, **__: made_up(slopes))
    page = tmp_path / "check.html"
    assert cli.main(["coordcheck", "phi_tiny", "--html", str(page)]) == code
    out = capsys.readouterr().out
    assert word in " ".join(out.split()) and max(map(len, out.splitlines())) <= 100
    assert page.read_text().count("<svg") == 8 and "<script" not in page.read_text()
    assert cli.main(["coordcheck", "phi_tiny", "--json"]) == code
    found = json.loads(capsys.readouterr().out)
    assert found["passed"] == (code == 0) and len(found["lines"]) == 16


def test_programs_are_kept_for_the_next_time(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("MAIJAX_CACHE", str(tmp_path / "cache"))
    before, seen = jax.config.jax_compilation_cache_dir, []

    def check(*_, **__):
        seen.append(jax.config.jax_compilation_cache_dir)
        return made_up({("standard", "width"): 2.0})

    monkeypatch.setattr(coordcheck, "check", check)
    try:
        assert cli.main(["coordcheck", "phi_tiny", "--json"]) == 0
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
    assert seen == [str(tmp_path / "cache" / "xla")]


def test_a_missing_folder_is_told_before_training(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(coordcheck, "check", lambda *_, **__: pytest.fail("trained first"))
    page = tmp_path / "none" / "check.html"
    assert cli.main(["coordcheck", "phi_test", "--html", str(page)]) == 2
    assert "there is no folder" in capsys.readouterr().err
