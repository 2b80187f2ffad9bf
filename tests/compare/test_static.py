"""Experiments side by side against hand-computed values and an independent minimisation; no run, no compile."""

import dataclasses
import json
import math
import os
import subprocess
import sys

import pytest
from scipy import optimize

from maijax import cli, plain, registry, scaling
from maijax.compare import meaning, static
from maijax.config import MeshConfig


def lines(compared):
    return {(group.title, line.what): line for group in compared.groups for line in group.lines}


@pytest.fixture(scope="module")
def small_large():
    return static.compare([registry.get("phi_tiny"), registry.get("mai_500b")])


def test_counts_are_the_ladders(small_large):
    found = lines(small_large)
    assert found["size", "parameters"].values == (1_115_264, 499_496_601_600)
    assert found["size", "FLOPs per token"].values == (7_477_248, 3_112_943_616_000)
    # 8 x 256 tokens for 1,250 steps; 2,048 x 8,192 for 595,447.
    assert found["budget", "tokens"].values == (2_560_000, 595_447 * 2_048 * 8_192)
    assert found["budget", "training FLOPs"].values[0] == 2_560_000 * 7_477_248
    assert found["by law", "compute-optimal tokens"].values == (22_305_280, 9_989_932_032_000)
    assert found["size", "state"].cells() == ["14.4 MB", "7.99 TB"]
    assert found["by law", "peak rate of AdamW"].values[1] == pytest.approx(
        1.79 * 499_496_601_600**-0.713 * (595_447 * 2_048 * 8_192) ** 0.307
    )


def test_the_mixtures_active_parameters_are_what_laws_take():
    one = registry.get("mai_500b_moe")
    found = lines(static.compare([one, one]))
    assert found["size", "active"].values[0] == 27_553_519_616
    assert found["by law", "loss at the end"].values[0] == scaling.chinchilla_loss(27_553_519_616, one.tokens)


@pytest.mark.parametrize("flops", [1e17, 5.76e23, 3e25])
def test_the_compute_optimal_point_minimises_the_law(flops):
    best = optimize.minimize_scalar(
        lambda log_n: scaling.chinchilla_loss(math.exp(log_n), flops / 6 / math.exp(log_n)),
        bounds=(math.log(1e5), math.log(1e14)), method="bounded", options={"xatol": 1e-10},
    )
    params, tokens = scaling.compute_optimal(flops)
    assert params == pytest.approx(math.exp(best.x), rel=1e-4)
    assert 6 * params * tokens == pytest.approx(flops)


def test_chinchillas_own_budget():
    # The refit's authors: about 20 tokens per parameter at Chinchilla's 5.76e23 FLOPs.
    params, tokens = scaling.compute_optimal(5.76e23)
    assert 18 < tokens / params < 24


def test_a_law_that_guesses_says_nothing(small_large):
    assert lines(small_large)["by law", "loss at the end"].cells() == ["-", "1.895*"]  # 15.06 is above ln 2048
    assert static.expected_loss(registry.get("phi_1b")) == pytest.approx(2.47, abs=0.01)
    assert not any(lines(static.compare([registry.get("phi_1b")] * 2))["by law", "loss at the end"].outside)


def test_every_dial_says_what_moves_it(small_large):
    found = {what: line for (title, what), line in lines(small_large).items() if title.startswith("hyper")}
    assert found["optim.lr"].values == ("0.008", "8e-5")
    assert found["optim.lr"].note.startswith("configs.optimizers.MUON; Step Law 1.79 N^-0.713 D^0.307")
    assert found["optim.weight_decay"].note == "experiment phi_tiny"
    assert "20 tokens per active parameter" in found["train.steps"].note
    assert found["optim.b2"].values == ("0.95", "0.95") and found["optim.b2"].note == ""


def test_a_plan_by_arithmetic_is_the_planners():
    from maijax.plan import arithmetic

    topology = registry.topology("v5p:4x4x4")
    one = dataclasses.replace(registry.get("phi_350m"), mesh=registry.mesh("FSDP"))
    found = static.compare([one, registry.get("phi_tiny")], topology)
    plan = {line.what: line.values for line in found.groups[-1].lines}
    told = arithmetic.estimate(one, topology)
    assert plan["step"][0] == told.step_seconds == found.step_seconds[0]
    assert plan["cost"][0] == pytest.approx(told.days * 24 * 64 * topology.chip.price)
    assert "does not divide" in plan["layout"][1] and plan["step"][1] is None  # 8 sequences of 256


def test_a_mesh_that_does_not_fit_is_replaced_by_the_best_that_does():
    one = dataclasses.replace(registry.get("phi_1b"), mesh=MeshConfig(data=4, fsdp=4))
    found = static.compare([one, one], registry.topology("v5p:4x4x4"))
    plan = {line.what: line for line in found.groups[-1].lines}
    assert plan["layout"].values[0].startswith("found: ") and plan["fits"].values[0] == "yes"
    assert " h" in plan["run"].cells()[0] and plan["cost"].cells()[0].startswith("$")


def test_a_layout_says_that_it_was_not_compiled():
    one = dataclasses.replace(registry.get("phi_350m"), mesh=registry.mesh("FSDP"))
    for slices, more in ((1, ""), (2, " --slices 2")):
        found = static.compare([one, one], registry.topology("v5p:2x2x4", slices))
        [note] = [line.note for line in found.groups[-1].lines if line.what == "layout"]
        assert "NOT compiled" in note and note.endswith(f"maijax plan NAME --topology v5p:2x2x4{more} --search")


def test_differences_have_a_meaning_and_a_law():
    a, b = registry.get("phi_1b"), registry.get("mai_500b")
    found = {one.path: one for one in meaning.differences([a, b])}
    assert set(found) == set(plain.diff(a, b))
    assert found["optim.lr"].explained and len(found["optim.lr"].reasons) == 1  # both by one law
    assert len(found["train.steps"].reasons) == 2
    assert not found["model.d_model"].explained
    kinds = [one.meaning for one in meaning.differences([a, b])]
    assert kinds == sorted(kinds, key=meaning.MEANINGS.index)


@pytest.mark.parametrize(
    ("path", "expected"),
    [("model.d_model", "shape"), ("optim.b2", "optimisation"), ("optim.eps", "numerics"), ("data.workers", "layout"),
     ("train.seq_len", "data"), ("mesh.fsdp", "layout"), ("train.accumulation", "layout"), ("model.dtype", "numerics"),
     ("train.eval_sequences", "watching"), ("model.layers", "layout"), ("model.moe", "shape")],
)
def test_meaning(path, expected):
    assert meaning.meaning(path) == expected


def test_every_value_has_a_meaning():
    for path in plain.flatten(registry.get("mai_500b_moe")):
        if path not in plain.METADATA:
            assert meaning.meaning(path) in meaning.MEANINGS


def test_json_has_numbers(capsys):
    assert cli.main(["compare", "phi_tiny", "mai_500b", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["facts"]["size"]["parameters"]["values"] == [1_115_264, 499_496_601_600]
    assert found["facts"]["by law"]["loss at the end"]["values"][0] is None
    assert found["differences"]["optim.lr"]["explained"] is True


def test_neither_jax_nor_numpy_is_loaded():
    program = (
        "import sys\nfrom maijax import cli\ncli.main(['compare', 'phi_tiny', 'mai_500b', '--topology', 'v5p:8x8x8'])\n"
        "sys.exit(bool({'jax', 'numpy', 'scipy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], stdout=subprocess.DEVNULL, env=os.environ).returncode == 0
