"""Several processes on loopback, one device each: they train as one does, stop together, and end together."""

import dataclasses
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from maijax import cli, registry
from maijax.errors import UserError
from maijax.parallel import together
from maijax.train import loop

WORDS = "the a king queen tin soldier mermaid sea stood sang danced went home on one leg and said never".split()
# Compiled anew by each, and fast rather than well: with a cache, which only the first process fills, one would wait for
# the others longer than gloo does.
COMPILE = {
    "JAX_ENABLE_COMPILATION_CACHE": "false",
    "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
}
LIMIT = 300  # seconds; far more than any of this takes

# The command line, with an accident in one process: "stop" or "fail" when it places its so-manieth batch.
PROGRAM = """
import os, signal, sys
sys.modules["torch"] = None  # TensorBoard's writer would load it where it is installed
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
        "data.sources": folder / "tales.jsonl", "model.vocab_size": 320, "model.num_layers": 1,
        "train.seq_len": 32, "train.batch_size": 8, "train.steps": 12,
        "train.log_every": 1, "train.eval_every": "none", "train.sample_every": "none",
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
            env = os.environ | COMPILE | {"PYTHONPATH": str(Path(__file__).parents[2]), "ACCIDENT": accident}
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


def test_any_number_of_processes_trains_as_one_and_goes_on_as_another(words, capsys):
    mesh = ["--set", "mesh.data=1", "--set", "mesh.fsdp=8"]
    assert cli.main([*words, "--name", "alone", *mesh]) == 0  # in this process, on its eight simulated devices
    alone = capsys.readouterr().out

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
    assert re.search("held out.*", alone)[0] == re.search("held out.*", ended[0][1])[0]


def test_one_that_fails_ends_all(words):
    ended = go(2, [*words, "--name", "failing"], mesh="data=1 fsdp=2", accident="fail:1:3")
    assert all(code != 0 for code in codes(ended)), ended
    assert "maijax: stopping, since process 1 failed: RuntimeError: the power went\n" in ended[0][2]
    assert "in placed" in ended[1][2]  # where it happened


def test_a_process_that_was_started_differently_is_told(words, monkeypatch):
    # Other values would be another program, and the two would wait for each other for ever.
    there = registry.get("phi_test")
    data = SimpleNamespace(identity={"seed": 0})
    loop.agree(there, Path("runs/a"), data)
    first = {}
    monkeypatch.setattr(together, "from_first", lambda value: first or first.update(value()) or first)
    loop.agree(there, Path("runs/a"), data)
    with pytest.raises(UserError, match="another command than process 0"):
        loop.agree(dataclasses.replace(there, train=dataclasses.replace(there.train, keep=9)), Path("runs/a"), data)
    with pytest.raises(UserError, match="another command than process 0"):
        loop.agree(there, Path("runs/b"), data)
    with pytest.raises(UserError, match="another text than process 0"):
        loop.agree(there, Path("runs/a"), SimpleNamespace(identity={"seed": 1}))
