"""Ladders of run folders whose gain is known: matching of sizes, verdicts, and what is refused."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from run_folders import experiment, make_run

from maijax import cli, scaling
from maijax.compare import ladder, runs
from maijax.errors import UserError

WIDTHS = (32, 64, 128, 256, 512)


def spent(width):
    made = experiment(width=width)
    return made.tokens * scaling.train_flops_per_token(made.model, 64)


def make(folder, beta, *, widths=WIDTHS, seeds=2, noise=0.002, gain=1.0, rates=(0.01,), rng=None, held_out=0.1):
    """Runs whose loss is a law of gain * C^(1+beta), the first rate the best."""
    rng = rng or np.random.default_rng(0)
    middle = np.sqrt(spent(widths[0]) * spent(widths[-1]))
    for width in widths:
        for i, lr in enumerate(rates):
            for seed in range(seeds):
                c = spent(width) * gain * (spent(width) / middle) ** beta
                loss = 1.5 + 2.0 * (c / 1e10) ** -0.15 + rng.normal() * noise + 0.3 * i
                made = experiment(width=width, lr=lr, seed=seed)
                made = dataclasses.replace(made, data=dataclasses.replace(made.data, held_out=held_out))
                make_run(folder / f"w{width}-r{i}-s{seed}", made, {50: 9.0, 100: loss})


@pytest.mark.parametrize(
    ("beta", "gain", "verdict"), [(0.1, 1.3, "grows"), (0.0, 1.3, "holds"), (-0.1, 1.3, "fades"), (-0.1, 2.5, "fades")]
)
def test_verdicts(tmp_path, beta, gain, verdict):
    make(tmp_path / "plain", 0.0)
    make(tmp_path / "mup", beta, gain=gain, rates=(0.02,), rng=np.random.default_rng(1))
    found = ladder.ladder(str(tmp_path), "plain", "mup")
    assert found.trend.verdict == verdict and found.needed is None
    assert len(found.rungs) == 5 and all(len(rung.pairs) == 2 for rung in found.rungs)
    assert [rung.a.parameters for rung in found.rungs] == sorted(rung.a.parameters for rung in found.rungs)
    assert abs(found.trend.slope - beta * np.log(10)) <= found.trend.half
    if gain == 2.5:  # still a gain at the top: where it would be gone is extrapolated
        assert found.gone_at > found.rungs[-1].flops("a")


def test_too_much_noise_asks_for_more_runs(tmp_path, capsys):
    make(tmp_path / "plain", 0.0, seeds=1, noise=0.02, widths=WIDTHS[:4])
    make(tmp_path / "mup", 0.0, seeds=1, noise=0.02, rates=(0.02,), rng=np.random.default_rng(1), widths=WIDTHS[:4])
    found = ladder.ladder(str(tmp_path), "plain", "mup")
    assert found.trend.verdict == "cannot be told"
    assert found.needed.seeds > 1 and found.more_runs == 2 * 4 * (found.needed.seeds - 1)
    assert cli.main(["compare", "--ladder", "--runs-dir", str(tmp_path), "plain", "mup"]) == 0
    out = capsys.readouterr().out
    assert "cannot be told" in out and f"{found.more_runs} more runs" in " ".join(out.split())
    assert max(map(len, out.splitlines())) <= 100


def test_the_best_configuration_of_a_size_counts_and_that_is_said(tmp_path):
    make(tmp_path / "plain", 0.0, rates=(0.01, 0.02, 0.04))
    make(tmp_path / "mup", 0.0, gain=1.3, rates=(0.03,), rng=np.random.default_rng(1))
    found = ladder.ladder(str(tmp_path), "plain", "mup")
    assert {rung.a.tried for rung in found.rungs} == {3}
    assert all(rung.a.side.experiment.optim.lr == 0.01 for rung in found.rungs)
    assert any("3 configurations a size in plain, 1 configuration a size" in note for note in found.notes)


def test_sizes_are_matched_and_the_rest_is_named(tmp_path):
    make(tmp_path / "plain", 0.0)
    make(tmp_path / "mup", 0.0, widths=(32, 128, 256), rates=(0.02,), seeds=3)
    make_run(tmp_path / "mup" / "late", experiment(width=64, lr=0.02), {50: 3.0})  # not finished
    (make_run(tmp_path / "mup" / "torn", experiment(width=64), {50: 3.0}) / "metrics.jsonl").write_text("#\n")
    found = ladder.ladder(str(tmp_path), "plain", "mup")
    assert [rung.a.side.experiment.model.d_model for rung in found.rungs] == [32, 128, 256]
    assert [[(x.experiment.train.seed, y.experiment.train.seed) for x, y in rung.pairs] for rung in found.rungs] == [
        [(0, 0), (1, 1)]
    ] * 3
    said = "\n".join(found.notes)
    assert "without a partner, so not counted in the trend: 1 run at 47,264 parameters" in said
    assert "only plain has 131,392, " in said and "left out, not finished: late" in said
    assert "torn left out: damaged metrics (" in said


@pytest.mark.parametrize("widths", [(32,), (32, 512)])
def test_fewer_than_three_sizes_are_refused(tmp_path, widths):
    make(tmp_path / "plain", 0.0)
    make(tmp_path / "mup", 0.1, widths=widths, rates=(0.02,))
    with pytest.raises(UserError, match=f"share {len(widths)} sizes? with finished runs, a verdict over scale needs 3"):
        ladder.ladder(str(tmp_path), "plain", "mup")


def test_losses_of_other_texts_are_refused(tmp_path):
    """As `maijax fit` refuses them, in the same words."""
    make(tmp_path / "plain", 0.0)
    make(tmp_path / "mup", 0.0, rates=(0.02,), held_out=0.3)
    with pytest.raises(UserError, match="differ in data.held_out: their losses cannot be compared; take those of one"):
        ladder.ladder(str(tmp_path), "plain", "mup")


def test_copies_of_a_seed_are_one_run(tmp_path):
    make(tmp_path / "plain", 0.0)
    make(tmp_path / "mup", 0.0, rates=(0.02,))
    shutil.copytree(tmp_path / "mup" / "w32-r0-s0", tmp_path / "mup" / "w32-copy")
    found = ladder.ladder(str(tmp_path), "plain", "mup")
    assert len(found.rungs[0].b.side.runs) == 2
    assert any(note.startswith("w32-r0-s0 left out: of the same seed") or note.startswith("w32-copy left out: of")
               for note in found.notes)


def test_nothing_finished_is_refused(tmp_path):
    make(tmp_path / "plain", 0.0)
    make_run(tmp_path / "mup" / "x", experiment(), {50: 2.0})
    with pytest.raises(UserError, match="mup: no run in it is finished"):
        ladder.ladder(str(tmp_path), "plain", "mup")


def test_patterns_and_json(tmp_path, capsys):
    make(tmp_path, 0.0, widths=WIDTHS[:4], rates=(0.01, 0.02), noise=0.0)
    sides = ["w*-r0-*", "w32-r1*,w64-r1*,w128-r1*,w256-r1*"]
    words = ["compare", "--ladder", "--runs-dir", str(tmp_path), *sides, "--json"]
    assert cli.main(words) == 0
    [found] = json.loads(capsys.readouterr().out)["ladders"]
    assert len(found["rungs"]) == 4 and all(gain < 1 for rung in found["rungs"] for gain in rung["gains"])
    assert found["verdict"] in ("fades", "grows", "holds", "cannot be told") and found["per_tenfold"][0] > 0
    assert runs.is_run(tmp_path, "w*-r0-*") and not runs.is_run(tmp_path, "q*")
