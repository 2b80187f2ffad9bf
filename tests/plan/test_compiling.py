"""Compiles for machines that are not here: kept by content, told in one line where they fail, real where libtpu is."""

import dataclasses
import importlib.util
import json

import pytest

from maijax import cli, registry
from maijax.config import MeshConfig
from maijax.errors import RunError, UserError
from maijax.plan import checks, compiling, topology

TPU = registry.topology("v5e:2x2")
TOLD = {
    "devices": 4, "mesh": MeshConfig(data=1, fsdp=4).shape(4),
    "memory": {"parameters": 2**30, "optimizer": 2**31, "batch": 1024, "arguments": 3 * 2**30, "outputs": 3 * 2**30,
               "aliased": 3 * 2**30, "temporaries": 2**30, "code": 2**20, "peak": 4 * 2**30},
    "seconds": {"lower": 1.0, "compile": 2.0}, "largest": [{"bytes": 2**29, "holds": "f32[8,4], bf16[2]"}],
    "work": {"cycles": 1_500_000, "kernels": 2, "kernel_names": ["splash_mha_fwd"], "kernel_flops": 0.0,
             "unknown_loops": [], "traffic": [
        {"kind": "all-gather", "axes": ["fsdp"], "ways": 4, "times": 24, "sent": 2**28}]},
}


def planned(**mesh):
    return dataclasses.replace(registry.get("phi_tiny"), mesh=MeshConfig(**({"data": 1, "fsdp": 4} | mesh)))


@pytest.fixture
def compiler(monkeypatch, tmp_path):
    """A compiler that counts its calls and tells `TOLD`, and a cache of the test's own."""
    calls = []

    def compile_(experiment, where, say):
        calls.append((experiment.mesh, where.title))
        say("compiling")
        return json.loads(json.dumps(told[0]))

    told = [TOLD]
    monkeypatch.setattr(compiling, "_compile", compile_)
    monkeypatch.setattr(topology, "missing", lambda where: None)
    monkeypatch.setenv("MAIJAX_CACHE", str(tmp_path))
    return calls, told, tmp_path


def test_the_same_question_is_compiled_once(compiler):
    calls, _, cache = compiler
    first = compiling.compiled(planned(), TPU, cache=cache)
    again = compiling.compiled(dataclasses.replace(planned(), name="other"), TPU, cache=cache)
    assert (first["kept"], again["kept"], len(calls)) == (False, True, 1)
    assert {k: v for k, v in first.items() if k != "kept"} == TOLD
    compiling.compiled(planned(data=2, fsdp=2), TPU, cache=cache)
    compiling.compiled(planned(), registry.topology("v5e:2x4"), cache=cache)
    assert len(calls) == 3
    for file in (cache / "plans").iterdir():
        file.write_text("{cut")  # a damaged answer is asked for again
    compiling.compiled(planned(), TPU, cache=cache)
    assert len(calls) == 4


def test_the_key_follows_source_and_versions(monkeypatch):
    before = compiling.key(planned(), TPU)
    assert before == compiling.key(planned(), TPU)
    monkeypatch.setattr(compiling, "source", lambda: "other")
    assert compiling.key(planned(), TPU) != before
    monkeypatch.undo()
    monkeypatch.setattr(compiling, "_version", lambda name: "0")
    assert compiling.key(planned(), TPU) != before


def test_a_missing_compiler_is_one_line_that_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'libtpu, which is not installed; pip install -e "\.\[tpu-plan\]"'):
        compiling.compiled(planned(), TPU, cache=tmp_path)
    with pytest.raises(UserError, match=r'pip install -e "\.\[gpu-plan\]"'):
        compiling.compiled(planned(), registry.topology("h100:4"), cache=tmp_path)


def test_a_worker_that_fails_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(topology, "missing", lambda where: None)
    monkeypatch.setattr(topology, "environment", lambda where, dump: {"JAX_PLATFORMS": "no_such_platform"})
    with pytest.raises((RunError, UserError)) as caught:
        compiling.compiled(planned(), TPU, cache=tmp_path)
    assert "\n" not in str(caught.value) and "v5e:2x2" in str(caught.value)
    assert not (tmp_path / "plans").exists()


def test_every_obstacle_at_once():
    found = checks.problems(planned(data=1, fsdp=2, tensor=2), TPU)
    assert found == []
    # What the written sizes do not divide is said even where they are not those of the machine.
    found = checks.problems(planned(data=1, fsdp=3, tensor=3), TPU)
    assert "multiply to 9 devices, there are 4" in found[0] and any("train.batch_size" in line for line in found[1:])
    assert any("num_heads" in line for line in found[1:])
    bad = dataclasses.replace(planned(fsdp=64, tensor=8), train=dataclasses.replace(planned().train, batch_size=10))
    found = checks.problems(bad, registry.topology("v5p:8x8x8"))
    assert len(found) >= 3 and any("train.batch_size" in line for line in found)
    twice = checks.problems(planned(fsdp=8), registry.topology("v5e:2x2", 2))
    (line,) = twice
    assert "mesh.replica=1 x mesh.stage=1" in line and "try mesh.replica=2, or mesh.stage=2" in line


def test_the_report(compiler, capsys):
    words = ["plan", "phi_tiny", "--topology", "v5e:2x2", "--set", "mesh.data=1", "--set", "mesh.fsdp=4"]
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 100
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert lines[0] == "phi_tiny on v5e:2x2: 4 chips, fsdp 4"
    for line in ("parameters 1.000 exact", "temporaries 1.000 compiler", "peak 4.000 compiler, of 15.8"):
        assert line in lines
    assert any(line.startswith("all-gather over fsdp 0.25 24 times compiler; ") for line in lines)
    verdict = next(line for line in lines if line.startswith("fits: "))
    assert verdict.startswith("fits: peak 4.000 of 15.8 GiB; about ") and verdict.endswith("MFU (model)")
    assert cli.main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fits"] and found["kept"] and found["memory"]["exact"]["parameters"] == 2**30
    assert found["values"]["mesh.fsdp"] == 4 and found["run"]["mfu"] > 0
    assert len(compiler[0]) == 1


def test_what_does_not_fit_is_an_answer(compiler, capsys):
    refused = {"needs": 24 * 2**30, "has": 15 * 2**30, "message": "RESOURCE_EXHAUSTED: ..."}
    memory = {k: TOLD["memory"][k] for k in ("parameters", "optimizer", "batch")}
    compiler[1][0] = {k: v for k, v in TOLD.items() if k != "work"} | {"refused": refused, "memory": memory}
    assert cli.main(["plan", "phi_tiny", "--topology", "v5e:2x2", "--mesh", "FSDP"]) == 1
    out = capsys.readouterr().out
    assert "does not fit: temporaries need 24.0 of 15.0 GiB" in out and "f32[8,4], bf16[2]" in out


def test_a_search_compiles_the_best_and_says_why_others_lose(compiler, capsys):
    assert cli.main(["plan", "phi_125m", "--topology", "v5e:2x2", "--search"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 100
    assert len(compiler[0]) == 3 and out.count("--set mesh.") >= 3
    assert "not taken" in out and "slower" in out and "take " in out
    assert cli.main(["plan", "phi_125m", "--topology", "v5e:2x2", "--search", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["best"]) == 3 and found["losers"] and found["tried"] > 3
    compiler[0].clear()
    assert cli.main(["plan", "phi_350m", "--topology", "v5e:2x2", "--search", "--compile", "1"]) == 0
    assert len(compiler[0]) == 1
    assert cli.main(["plan", "phi_350m", "--topology", "v5e:2x2", "--compile", "1"]) == 2
    assert "give --search, too" in capsys.readouterr().err


def test_a_search_goes_on_after_a_layout_that_does_not_compile(compiler, monkeypatch, capsys):
    calls, told, _ = compiler

    def compile_(experiment, where, say):
        calls.append(experiment.mesh)
        if len(calls) == 1:
            raise RunError("the step does not compile")
        return told[0]

    monkeypatch.setattr(compiling, "_compile", compile_)
    assert cli.main(["plan", "phi_125m", "--topology", "v5e:2x2", "--search"]) == 0
    out = capsys.readouterr().out
    assert len(calls) == 4 and "the step does not compile" in out and "take " in out


def test_a_search_goes_on_until_a_layout_fits(compiler, monkeypatch, capsys):
    calls, told, _ = compiler
    refused = {"needs": 24 * 2**30, "has": 15 * 2**30, "message": "RESOURCE_EXHAUSTED: ..."}
    large = {k: v for k, v in told[0].items() if k != "work"} | {"refused": refused}

    def compile_(experiment, where, say):
        calls.append(experiment.mesh)
        return large if len(calls) <= 4 else told[0]

    monkeypatch.setattr(compiling, "_compile", compile_)
    assert cli.main(["plan", "phi_125m", "--topology", "v5e:2x2", "--search", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [made["fits"] for made in found["best"]] == [False] * 4 + [True] and len(calls) == 5


@pytest.mark.parametrize(("words", "line"), [
    ("plan phi_tiny --topology v5z:2x2", "maijax: topology 'v5z:2x2': no chip 'v5z'; did you mean"),
    ("plan phi_tiny", "maijax: the following arguments are required: --topology"),
    ("plan phi_tiny --topology v5e:2x2 --set mesh.data=1 --set mesh.tensor=4",
     "maijax: phi_tiny on v5e:2x2: model.attention.num_heads"),
    ("doctor --topology v5e:2x2", "maijax: --topology asks whether an experiment fits it"),
])
def test_bad_questions_are_one_line(words, line, capsys):
    assert cli.main(words.split()) == 2
    err = capsys.readouterr().err
    assert err.startswith(line) and err.count("\n") == 1


def test_doctor_of_another_machine(capsys):
    assert cli.main(["doctor", "mai_70b", "--topology", "v5p:8x8x8", "--json"]) == 0
    found = {f["what"]: f for f in json.loads(capsys.readouterr().out)["findings"]}
    assert found["mesh"]["found"] == "data 2 x fsdp 256" and not found["fits in memory"]["bad"]
    assert cli.main(["doctor", "mai_500b", "--topology", "v5e:2x2", "--mesh", "FSDP"]) == 1
    assert "BAD" in capsys.readouterr().out


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason='needs pip install -e ".[tpu-plan]"')
def test_a_real_compile_for_a_slice(tmp_path):
    made = dataclasses.replace(registry.get("phi_test"), mesh=MeshConfig(data=1, fsdp=2, tensor=2))
    attention = dataclasses.replace(made.model.attention, kv_heads=2)
    model = dataclasses.replace(made.model, attention=attention, remat="full")
    made = dataclasses.replace(made, model=model, train=dataclasses.replace(made.train, batch_size=8))
    told = compiling.compiled(made, TPU, cache=tmp_path)
    memory = told["memory"]
    assert memory["arguments"] >= memory["parameters"] + memory["optimizer"] + memory["batch"] - 4
    assert memory["peak"] > 0 and told["work"]["cycles"] > 0 and not told["work"]["unknown_loops"]
    assert {"fsdp", "tensor"} <= {axis for one in told["work"]["traffic"] for axis in one["axes"]}


def test_a_search_asks_for_the_compiler_before_it_begins(compiler, monkeypatch, capsys):
    monkeypatch.setattr(topology, "missing", lambda where: "no compiler; install it")
    assert cli.main(["plan", "phi_125m", "--topology", "v5e:2x2", "--search"]) == 2
    said = capsys.readouterr()
    assert said.out == "" and "no compiler; install it" in said.err


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (-8, "died of SIGFPE, inside the compiler"), (-9, "was killed, perhaps for want of memory"),
        (137, "was killed, perhaps for want of memory"), (3, "ended with code 3: last line"),
    ],
)
def test_a_compile_that_gave_no_answer_is_told_by_how_it_ended(code, said):
    assert compiling._end(code, "first line\nlast line\n").startswith(said)
