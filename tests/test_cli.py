"""The command line as a person meets it: flags, words, exit codes, widths, JSON, and time to the first line."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

import maijax
from maijax import cli, registry
from maijax.cli import table
from maijax.errors import RunError, UserError

ROOT = Path(__file__).parents[1]

# A value of an experiment is changed with --set. A flag more is a second configuration system: think twice.
FLAGS = {
    "list": "PATTERN --json --module",
    "show": "NAME --json --mesh --module --set",
    "diff": "A B --json --module",
    "compare": "A --html --json --ladder --module --runs-dir --slices --topology",
    "doctor": "NAME --json --mesh --module --set --slices --topology",
    "plan": "NAME --compile --json --mesh --module --search --set --slices --topology",
    "coordcheck": "NAME --html --json --mesh --module --set",
    "run": "NAME --dry-run --mesh --module --name --runs-dir --set",
    "sweep": "NAME --dry-run --json --launcher --mesh --module --name --prune --runs-dir --sampler --set --together "
             "--trials --workers",
    "eval": "RUN --field --json --runs-dir --source",
    "fit": "RUNS --bits --dry-run --html --json --ledger --module --params --predict --runs-dir --set",
    "generate": "RUN --max-tokens --num --prompt --runs-dir --seed --temperature --top-k --top-p",
}


def run(capsys, *words) -> tuple[int, str, str]:
    code = cli.main(list(words))
    out, err = capsys.readouterr()
    return code, out, err


def verbs():
    return next(a.choices for a in cli.parser()._actions if hasattr(a, "choices") and isinstance(a.choices, dict))


def test_flags_of_every_verb_are_frozen():
    found = {}
    for name, verb in verbs().items():
        words = [a.metavar for a in verb._actions if not a.option_strings]
        flags = [o for a in verb._actions for o in a.option_strings if o.startswith("--") and o != "--help"]
        found[name] = " ".join([*words, *sorted(flags)])
    assert found == FLAGS


def test_every_verb_explains_itself(capsys):
    for name in verbs():
        with pytest.raises(SystemExit) as caught:
            cli.main([name, "--help"])
        assert caught.value.code == 0
        out = capsys.readouterr().out
        assert f"maijax {name}" in out and ("Example" in out or "--set" in out)


def test_help_teaches(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["--help"])
    out = capsys.readouterr().out
    assert caught.value.code == 0
    assert "maijax run phi_tiny" in out and "Exit codes" in out


def test_no_verb_shows_the_help(capsys):
    code, out, _ = run(capsys)
    assert code == 2 and "maijax list" in out


def test_version(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"maijax {maijax.__version__}\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("lst", "no verb 'lst'; did you mean list?"),
        ("zzz", "no verb 'zzz'; there are list, show"),
        ("compare phi_tiny", "compare phi_tiny: give two names or more"),
        ("compare phi_tiny nosuch", "no experiment 'nosuch'; `maijax list` shows them all, --module adds those of a "
         "module of yours; no run 'nosuch'"),
        ("compare --ladder a b --topology v5p:8x8x8", "--ladder reads runs; a --topology is for experiments"),
        ("show", "the following arguments are required: NAME (see maijax show --help)"),
        ("sweep phi_test_ratez", "no experiment 'phi_test_ratez'; did you mean phi_test_rates"),
        ("show phi_tny", "no experiment 'phi_tny'; did you mean phi_tiny"),
        ("show phi_tiny --set train.stepz=3", "train.stepz: no such field; did you mean train.steps?"),
        ("show phi_tiny --set train.steps=abc", "train.steps='abc' must be int"),
        ("show phi_tiny --set model.attention.num_heads=3", "model.attention.kv_heads=2 must divide num_heads=3"),
        ("show phi_tiny --lr 3",
         "unrecognized arguments: --lr 3; values are set with --set PATH=VALUE (see maijax show --help)"),
        ("sweep phi_test --worker 3", "unrecognized arguments: --worker 3; values are set with --set PATH=VALUE "
         "(see maijax sweep --help)"),
        ("show phi_tiny --mesh BIG", "no mesh 'BIG'; configs/meshes.py has"),
        ("show phi_tiny --module nosuch.runs", "--module nosuch.runs: no such module"),
        ("list zzz", "no experiment matches 'zzz'; there are"),
        ("diff phi_tiny", "the following arguments are required: B"),
        ("generate x", "the following arguments are required: --prompt"),
        ("generate x --prompt y --top-p 2", "argument --top-p: '2' must be a number above 0 and at most 1"),
        ("generate x --prompt y --top-k 0", "argument --top-k: '0' must be a whole number above 0"),
        ("generate x --prompt y --temperature nan", "argument --temperature: 'nan' must be a finite number, 0 or more"),
        ("generate x --prompt y --num two", "argument --num: 'two' must be a whole number above 0"),
        ("run phi_tiny --dry", "unrecognized arguments: --dry"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(capsys, words, message):
    code, out, err = run(capsys, *words.split())
    assert code == 2 and out == ""
    assert err.startswith(f"maijax: {message}") and err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("show a", "a is a run, not an experiment; runs/a/experiment.json holds its values; `maijax compare a OTHER`"),
        ("diff phi_tiny runs/a/", "runs/a/ is a run, not an experiment; runs/a/experiment.json holds its values"),
        ("diff phi_tiny sweep", "sweep holds 2 runs, not an experiment; `maijax compare sweep OTHER` puts runs side"),
        ("show out", "out holds 1 run, not an experiment; `maijax compare out OTHER` puts"),
        ("run b --runs-dir mine", "b is a run, not an experiment; mine/b/experiment.json holds its values; `maijax "
         "compare b OTHER --runs-dir mine` puts"),
        ("generate sweep --prompt x", "runs/sweep is a sweep, no run; name one of its trials, as sweep/trial-0000"),
    ],
)
def test_a_run_in_an_experiments_place_is_told_where_it_belongs(capsys, tmp_path, monkeypatch, words, message):
    for name in ("runs/a", "runs/sweep/trial-0000", "runs/sweep/trial-0001", "runs/out/x", "mine/b"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "experiment.json").write_text("{}")
    (tmp_path / "runs" / "sweep" / "sweep.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, *words.split())
    assert (code, out) == (2, "") and err.startswith(f"maijax: {message}")


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (UserError("a\nb"), 2, "maijax: a b\n"),
        (RunError("it broke"), 1, "maijax: it broke\n"),
        (KeyboardInterrupt(), 130, "maijax: interrupted\n"),
    ],
)
def test_exit_codes(capsys, monkeypatch, error, code, words):
    def fail(_):
        raise error

    monkeypatch.setattr("maijax.cli.show.list_", fail)
    assert run(capsys, "list") == (code, "", words)


def test_a_bug_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr("maijax.cli.show.list_", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli.main(["list"])


def test_a_reader_that_leaves_early_is_no_error():
    program = f"{sys.executable} -m maijax show mai_500b | head -n 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith("mai_500b")


def test_list(capsys):
    code, out, err = run(capsys, "list")
    names = [line.split()[0] for line in out.splitlines() if not line.startswith(" ")]
    assert (code, err) == (0, "")
    sweeps = registry.sweep_names()
    assert names[0] == "name" and set(names[1:]) == {*registry.names(), *sweeps}
    experiments = names[1:-len(sweeps)]
    assert experiments[:2] == ["phi_test", "ladder_2"] and experiments[-1] == "mai_500b"  # by size, then the sweeps
    assert [line.split()[0] for line in run(capsys, "list", "phi3_*")[1].splitlines() if line[0] != " "] == [
        "name", "phi3_mini", "phi3_medium",
    ]
    found = json.loads(run(capsys, "list", "500b", "--json")[1])
    assert [(f["name"], f["parameters"]) for f in found] == [
        ("mai_500b_moe", 499_148_478_464), ("mai_500b", 499_496_601_600),
    ]


def test_show_prints_every_value_with_its_origin(capsys):
    code, out, err = run(capsys, "show", "mai_500b", "--set", "train.seed=7", "--mesh", "FSDP_8")
    assert (code, err) == (0, "")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    for line in (
        "num_layers 144 configs.models.MAI_500B", "seed 7 command line", "fsdp 8 command line", "b1 0.9 default",
        "remat full experiment mai_500b", "lr 8e-5 rule: Step Law 1.79 N^-0.713 D^0.307",
        "parameters 499,496,601,600 without the vocabulary's padding", "moe none default",
    ):
        assert line in lines
    assert registry.entry("mai_500b").doc.splitlines()[0] in out


def test_show_json_has_the_same(capsys):
    found = json.loads(run(capsys, "show", "mai_moe_3m", "--json", "--set", "optim.lr=1")[1])
    assert found["values"]["optim.lr"] == {"value": 1.0, "from": "command line"}
    assert found["values"]["model.moe.top_k"] == {"value": 2, "from": "configs.models.MAI_MOE_3M"}
    assert found["totals"]["active_parameters"] == 1_339_544
    assert found["name"] == "mai_moe_3m" and found["doc"] and found["file"].endswith("moe.py")


def test_diff_is_grouped_by_meaning_with_the_rule(capsys):
    code, out, _ = run(capsys, "diff", "phi_tiny", "mai_500b")
    assert code == 0
    groups = [line for line in out.splitlines() if line and line[0] != " "]
    assert [g for g in groups if not g.startswith("+ ")][:-1] == [
        "totals", "shape", "optimisation", "data", "numerics", "layout", "watching",
    ]
    assert groups[-1] == "31 values differ; a scaling rule explains 3, marked +"
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "model.d_model 128 18432" in lines
    assert any(line.startswith("+ optim.lr 0.008 8e-5 mai_500b: Step Law") for line in lines)
    assert "mesh.fsdp 1 1024" in lines
    assert "model.norm" not in out  # the same in both
    found = json.loads(run(capsys, "diff", "phi_tiny", "mai_500b", "--json")[1])
    assert found["values"]["model.d_model"] == {
        "a": 128, "b": 18_432, "meaning": "shape", "rules": [], "explained": False,
    }
    assert found["values"]["optim.lr"]["explained"]
    assert found["values"]["optim.lr"]["rules"][0].startswith("Step Law")


def test_diff_of_the_same(capsys):
    assert run(capsys, "diff", "phi_tiny", "phi_tiny")[:2] == (0, "phi_tiny and phi_tiny: every value is the same\n")


FAULTY = """
from experiments.phi import phi_test
from maijax import overrides
from maijax.registry import register, register_sweep
from maijax.space import Sweep

@register
def my_misspelt():
    "What is wrong?"
    return overrides.apply(phi_test(), ["train.stepz=3"])

@register_sweep
def my_rates():
    "Which?"
    return Sweep(base=phi_test(), space={"optim.lr": "1e-3,1e-2"})

@register_sweep
def my_typo():
    "Which?"
    return Sweep(base=phi_test(), space={"optim.lrr": "1e-3,1e-2"})

@register_sweep
def my_fall():
    "Which?"
    return Sweep(base=phi_test(), space={"optim.lr": [1, 2][5]})
"""


def test_list_names_what_cannot_be_made_and_lists_the_others(capsys, tmp_path, monkeypatch, clean_registry):
    monkeypatch.setattr(registry, "_sweeps", dict(registry._sweeps))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "faulty.py").write_text(FAULTY)
    code, out, err = run(capsys, "list", "--module", "faulty")
    assert code == 2 and "phi_tiny " in out and "mai_500b" in out and "phi_test_rates" in out
    assert [line.split()[:4] for line in out.splitlines() if "my_" in line] == [["my_rates", "sweep,", "2", "trials"]]
    place, lines = f"maijax: {tmp_path / 'faulty.py'}", err.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith(place) and "my_misspelt: train.stepz: no such field; did you mean" in lines[0]
    assert lines[1].startswith(place) and "my_typo: optim.lrr: no such field; did you mean optim.lr" in lines[1]
    assert lines[2].startswith(place) and "my_fall cannot be made: IndexError" in lines[2]
    assert [one["name"] for one in json.loads(run(capsys, "list", "my_", "--json", "--module", "faulty")[1])] == [
        "my_rates"]


@pytest.mark.parametrize("words", [["list"], ["diff", "mai_moe_3m", "llama3_405b"],
                                   ["compare", "phi_tiny", "mai_500b"], ["compare", *registry.names()[:7]],
                                   ["compare", "phi_1b", "mai_moe_1b", "mai_7b", "--topology", "v5e:4x4"]]
                         + [["show", name] for name in registry.names()])
def test_no_line_is_wider_than_100_columns(capsys, words):
    out = run(capsys, *words)[1]
    assert max(map(len, out.splitlines())) <= table.WIDTH


def test_doctor(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("MAIJAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, "doctor", "phi_test")
    assert (code, err) == (0, "") and "nothing to mend" in out
    assert not list(tmp_path.iterdir())  # it only looks
    code, out, _ = run(capsys, "doctor", "mai_7b", "--mesh", "FSDP", "--json")
    found = {f["what"]: f for f in json.loads(out)["findings"]}
    assert code == 1
    assert found["mesh"]["found"] == "fsdp 8"
    assert found["fits in memory"]["bad"] and found["data.tokenizer"]["bad"]
    assert run(capsys, "doctor", "phi_test", "--set", "train.batch_size=12")[0] == 1  # over 8 devices


def test_numbers_as_people_say_them():
    assert [table.count(n) for n in (7, 131_392, 1_115_264, 27_553_519_616, 14_999_997_808_640)] == [
        "7", "131K", "1.12M", "27.6B", "15T",
    ]
    assert [table.size(n) for n in (512, 14_400_000, 7.99e12)] == ["512 bytes", "14.4 MB", "7.99 TB"]


@pytest.mark.parametrize("words", ["--help", "list", "show mai_500b", "diff phi_tiny mai_500b",
                                   "compare phi_tiny mai_500b"])
def test_reading_is_quick(words):
    def seconds() -> float:  # of processor time: another process on this machine does not change it
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "maijax", *words.split()], cwd=ROOT, check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(seconds() for _ in range(3)) < 0.4
