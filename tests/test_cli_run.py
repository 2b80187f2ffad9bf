"""The computing verbs as a person uses them: run, stop, go on, evaluate, generate; and what bad input gets."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from maijax.cli import main

WORDS = "the a king queen tin soldier mermaid sea stood sang danced went home on one leg and said never".split()
SMALL = ["--set", "model.vocab_size=320", "--set", "train.log_every=1", "--set", "train.seq_len=32"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    rng = np.random.default_rng(1)
    file = tmp_path_factory.mktemp("corpus") / "tales.jsonl"
    with open(file, "w") as out:
        for _ in range(80):
            out.write(json.dumps({"text": " ".join(rng.choice(WORDS, int(rng.integers(5, 60)))) + "."}) + "\n")
    return file


def command(*words: str) -> subprocess.Popen:
    env = dict(os.environ, XLA_FLAGS="", PYTHONPATH=str(Path(__file__).parents[1]))
    return subprocess.Popen(
        [sys.executable, "-m", "maijax", *words], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # A shell's background job hands on that Ctrl-C is ignored; here it must count.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def finish(process: subprocess.Popen, code: int) -> str:
    out, err = process.communicate(timeout=300)
    assert process.returncode == code, err
    assert "Traceback" not in err
    return out


def steps(folder: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if line["kind"] == "train"}


def test_run_stop_resume_evaluate_generate(corpus, tmp_path):
    words = ["run", "phi_test", *SMALL, "--set", f"data.sources={corpus}", "--set", "train.steps=40",
             "--runs-dir", str(tmp_path)]
    whole = finish(command(*words, "--name", "whole"), 0)
    assert "bits per byte" in whole and "xz -9e" in whole and "Once upon a time" in whole

    # Ctrl-C in the middle: saved, told, and the same command goes on as if nothing had happened.
    halved = [*words, "--name", "halved"]
    process = command(*halved)
    wait_for(tmp_path / "halved" / "metrics.jsonl", process)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=300)
    if process.returncode == 75:  # else it had finished just before
        assert "same command" in out
        assert len(steps(tmp_path / "halved")) < 40
    finish(command(*halved), 0)
    assert steps(tmp_path / "halved") == steps(tmp_path / "whole")

    found = json.loads(finish(command("eval", "whole", "--json", "--runs-dir", str(tmp_path)), 0))
    other = json.loads(finish(command("eval", "halved", "--json", "--runs-dir", str(tmp_path)), 0))
    assert found["bits_per_byte"] == other["bits_per_byte"] and found["step"] == 40
    assert f"{found['bits_per_byte']:.3f} bits per byte" in whole
    again = finish(command("eval", "whole", "--source", str(corpus), "--runs-dir", str(tmp_path)), 0)
    assert "bits per byte" in again

    would = finish(command(*words, "--name", "whole", "--dry-run"), 0)
    assert "is finished, 40 steps" in would

    told = ["generate", "whole", "--prompt", "the king", "--max-tokens", "12", "--num", "2"]
    told += ["--runs-dir", str(tmp_path)]
    first, second = finish(command(*told), 0), finish(command(*told), 0)
    assert first == second and first.count("the king") >= 2


@pytest.mark.parametrize("after", [0.4, 1.0, 1.8])
def test_ctrl_c_before_the_first_step_is_one_line(after, corpus, tmp_path):
    process = command("run", "phi_test", *SMALL, "--set", f"data.sources={corpus}", "--runs-dir", str(tmp_path))
    time.sleep(after)  # among imports, data and compilation: wherever it falls, no traceback
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert process.returncode in (130, 75), err
    assert "Traceback" not in err
    assert ("maijax: interrupted" if process.returncode == 130 else "maijax: stopping") in err


def wait_for(file: Path, process: subprocess.Popen) -> None:
    for _ in range(1200):
        if process.poll() is not None or (file.exists() and '"train"' in file.read_text()):
            return
        time.sleep(0.1)
    raise AssertionError(f"{file} never came")


def test_sigterm_saves_and_leaves(corpus, tmp_path):
    words = ["run", "phi_test", *SMALL, "--set", f"data.sources={corpus}", "--set", "train.steps=4000",
             "--runs-dir", str(tmp_path), "--name", "long"]
    process = command(*words)
    wait_for(tmp_path / "long" / "metrics.jsonl", process)
    process.send_signal(signal.SIGTERM)
    finish(process, 75)
    saved = max(int(p.name) for p in (tmp_path / "long" / "checkpoints").iterdir() if p.name.isdigit())
    assert saved == max(steps(tmp_path / "long"))


def refused(capsys, tmp_path, *words: str) -> str:
    """The one line that a command's bad input gets; nothing is written."""
    before = sorted(tmp_path.rglob("*"))
    assert main([*words]) == 2
    line = capsys.readouterr().err
    assert line.startswith("maijax: ") and line.count("\n") == 1, line
    assert sorted(tmp_path.rglob("*")) == before
    return line


def test_bad_input_is_answered_in_one_line(capsys, tmp_path, corpus):
    def no(*words: str) -> str:
        return refused(capsys, tmp_path, "run", *words, "--runs-dir", str(tmp_path))

    sources = ["--set", f"data.sources={corpus}"]
    assert "did you mean phi_tiny" in no("phi_tinny")
    assert "optim.lr" in no("phi_test", "--set", "optim.lrr=3")
    assert "train.steps='abc' must be int" in no("phi_test", "--set", "train.steps=abc")
    assert "kv_heads=3 must divide num_heads=2" in no("phi_test", "--set", "model.attention.kv_heads=3")
    two = no("phi_test", "--set", "model.attention.kv_heads=3", "--set", "train.steps=0")
    assert "kv_heads" in two and "steps=0" in two  # all at once
    assert "nowhere.txt" in no("phi_test", "--set", f"data.sources={tmp_path}/nowhere.txt")

    (tmp_path / "empty.txt").write_text("")
    assert "empty" in no("phi_test", "--set", f"data.sources={tmp_path}/empty.txt")
    (tmp_path / "bad.txt").write_bytes(b"fine\nnot \xff fine\n")
    line = no("phi_test", "--set", f"data.sources={tmp_path}/bad.txt")
    assert "bad.txt" in line and "UTF-8" in line and "2" in line
    (tmp_path / "broken.jsonl").write_text('{"text": "a"}\n{"text": \n')
    assert "broken.jsonl:2" in no("phi_test", "--set", f"data.sources={tmp_path}/broken.jsonl")

    (tmp_path / "not.model").write_bytes(b"not a model")
    assert "not.model" in no("phi_test", *sources, "--set", f"data.tokenizer={tmp_path}/not.model")
    assert "letters" in no("phi_test", "--name", "../out")


def test_a_tokenizer_of_another_vocabulary_is_refused(capsys, tmp_path, corpus):
    from maijax.data import tokenizer

    made = tokenizer.train(["the king said never to the queen of the sea"] * 20, vocab_size=300, kind="bpe")
    (tmp_path / "own.model").write_bytes(made.model)
    line = refused(
        capsys, tmp_path, "run", "phi_test", "--set", f"data.sources={corpus}", "--set", "model.vocab_size=280",
        "--set", f"data.tokenizer={tmp_path}/own.model", "--runs-dir", str(tmp_path),
    )
    assert "300" in line and "280" in line and "own.model" in line


def test_unwritable_folder_and_missing_run(capsys, tmp_path, corpus):
    (tmp_path / "file").write_text("")
    words = ["run", "phi_test", *SMALL, "--set", f"data.sources={corpus}"]
    line = refused(capsys, tmp_path, *words, "--runs-dir", str(tmp_path / "file"))
    assert "--runs-dir" in line
    assert "no run 'x'" in refused(capsys, tmp_path, "eval", "x", "--runs-dir", str(tmp_path))
    assert "no run 'x'" in refused(capsys, tmp_path, "generate", "x", "--prompt", "a", "--runs-dir", str(tmp_path))


def test_a_run_does_not_write_into_a_sweep(capsys, tmp_path):
    (tmp_path / "rates").mkdir()
    (tmp_path / "rates" / "sweep.json").write_text("{}")
    for more in (["--dry-run"], []):
        assert main(["run", "phi_test", "--name", "rates", "--runs-dir", str(tmp_path), *more]) == 2
        assert "rates is a sweep, not a run; give --name another" in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "rates").iterdir()] == ["sweep.json"]


def test_dry_run_writes_nothing(capsys, tmp_path, corpus):
    assert main(["run", "phi_test", "--dry-run", "--runs-dir", str(tmp_path)]) == 0
    assert "20 steps" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
