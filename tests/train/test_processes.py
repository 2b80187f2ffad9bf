"""Several processes on loopback, one device each: they train as one does, stop together, and end together."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

WORDS = "the a king queen tin soldier mermaid sea stood sang danced went home on one leg and said never".split()
LIMIT = 300  # seconds; far more than any of this takes

# The command line, with an accident in one process: "stop" or "fail" when it places its so-manieth batch.
PROGRAM = """
import os, signal, sys
from maijax import cli
from maijax.parallel import together
from maijax.train.trainer import Trainer

together.GRACE = 2
kind, process, batch = os.environ["ACCIDENT"].split(":")
place, seen = Trainer.place, []

def placed(self, rows):
    seen.append(rows)
    if process == os.environ.get("MAIJAX_PROCESS_ID", "0") and len(seen) == int(batch):
        if kind == "fail":
            raise RuntimeError("the power went")
        os.kill(os.getpid(), signal.SIGTERM)
    return place(self, rows)

Trainer.place = placed
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def words(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("processes")
    rng = np.random.default_rng(1)
    with open(folder / "tales.jsonl", "w") as out:
        for _ in range(80):
            out.write(json.dumps({"text": " ".join(rng.choice(WORDS, int(rng.integers(5, 60)))) + "."}) + "\n")
    values = {
        "data.sources": folder / "tales.jsonl", "model.vocab_size": 320, "train.seq_len": 32, "train.batch_size": 8,
        "train.steps": 12, "train.log_every": 1, "train.eval_every": "none", "train.sample_every": "none",
    }
    sets = [word for path, value in values.items() for word in ("--set", f"{path}={value}")]
    return ["run", "phi_test", *sets, "--runs-dir", str(folder)]


def go(count: int, words: list[str], *, mesh: str, accident: str = "none:0:0") -> list[tuple[int, str, str]]:
    """(exit code, stdout, stderr) of each process; none of them outlives this."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    sizes = [word for size in mesh.split() for word in ("--set", f"mesh.{size}")]
    started = []
    try:
        for index in range(count):
            env = dict(os.environ, XLA_FLAGS="", PYTHONPATH=str(Path(__file__).parents[2]), ACCIDENT=accident)
            if count > 1:
                env |= {"MAIJAX_COORDINATOR": f"127.0.0.1:{port}", "MAIJAX_PROCESS_ID": str(index)}
                env |= {"MAIJAX_NUM_PROCESSES": str(count)}
            started.append(subprocess.Popen(
                [sys.executable, "-c", PROGRAM, *words, *sizes], env=env, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            ))
        said = [process.communicate(timeout=LIMIT) for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()
    return [(process.returncode, *text) for process, text in zip(started, said, strict=True)]


def told(words: list[str], name: str) -> dict[int, tuple[float, str]]:
    lines = map(json.loads, (Path(words[-1]) / name / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: (line["loss"], line["token_hash"]) for line in lines if line["kind"] == "train"}


def codes(ended: list[tuple[int, str, str]]) -> list[int]:
    return [code for code, _, _ in ended]


def silent(text: str) -> str:
    """What a process prints, but for what gloo says of its connections."""
    return re.sub(r"\[Gloo\].*\n", "", text)


def test_any_number_of_processes_trains_as_one_and_goes_on_as_another(words):
    alone = go(1, [*words, "--name", "alone"], mesh="data=1")
    assert codes(alone) == [0], alone[0][2]

    # Four processes, of which each pair has the same rows and half of each; one of them is asked to stop.
    here = [*words, "--name", "together"]
    ended = go(4, here, mesh="data=1 fsdp=2 context=2", accident="stop:2:4")
    assert codes(ended) == [75] * 4, ended
    assert "the same command goes on" in ended[0][1] and not any(silent(out) for _, out, _ in ended[1:])
    assert max(told(words, "together")) == 5  # all have heard of it a step later
    folder = Path(words[-1]) / "together"
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["5"]

    # One goes on, and two finish.
    ended = go(1, here, mesh="data=1", accident="stop:0:4")
    assert codes(ended) == [75] and "goes on after step 5" in ended[0][2], ended
    ended = go(2, here, mesh="data=1 fsdp=2")
    assert codes(ended) == [0, 0], ended
    assert "held out" in ended[0][1] and not silent(ended[1][1])

    one, several = told(words, "alone"), told(words, "together")
    assert sorted(one) == sorted(several) == list(range(1, 13))
    for step, (loss, hashed) in one.items():
        assert several[step][0] == pytest.approx(loss, rel=1e-5)
        assert several[step][1] == hashed
    names = {path.name for path in folder.iterdir()}
    assert names == {path.name for path in (Path(words[-1]) / "alone").iterdir()} | {
        "environment.5.json", "environment.9.json"
    }
    final = [re.search("held out.*", ended[0][1])[0] for ended in (alone, ended)]
    assert final[0] == final[1]


def test_one_that_fails_ends_all(words):
    ended = go(2, [*words, "--name", "failing"], mesh="data=1 fsdp=2", accident="fail:1:3")
    assert all(code != 0 for code in codes(ended)), ended
    assert "process 1 failed: RuntimeError: the power went" in ended[0][2]
    assert "the power went" in ended[1][2]


def test_processes_that_were_started_differently_are_told(words):
    # Different values would be different programs, which wait for each other for ever.
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    both = []
    try:
        for index in range(2):
            env = dict(os.environ, XLA_FLAGS="", PYTHONPATH=str(Path(__file__).parents[2]), ACCIDENT="none:0:0")
            env |= {"MAIJAX_COORDINATOR": address, "MAIJAX_PROCESS_ID": str(index), "MAIJAX_NUM_PROCESSES": "2"}
            both.append(subprocess.Popen(
                [sys.executable, "-c", PROGRAM, *words, "--name", "odd", "--set", f"train.keep={index + 1}"], env=env,
                text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            ))
        said = [process.communicate(timeout=LIMIT)[1] for process in both]
    finally:
        for process in both:
            process.kill()
            process.wait()
    assert both[1].returncode == 2 and "another command than process 0" in said[1], said
    assert both[0].returncode != 0 and "process 1 failed" in said[0], said
