"""The log survives torn lines, rewinds and full disks; TensorBoard's own reader reads what is written."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from maijax.train import metrics
from maijax.train.metrics import MetricLog, read


@pytest.fixture
def no_board(monkeypatch):
    monkeypatch.setattr(metrics, "_open_board", lambda *_: None)


def steps(folder):
    return [record["step"] for record in read(folder)]


def test_lines_are_on_disk_at_once(tmp_path, no_board):
    with MetricLog(tmp_path) as log:
        log.write(1, "train", loss=np.float32(2.5), grad_norm=np.inf, token_hash="ab", many=np.arange(2))
        line = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert line == {
        "step": 1, "kind": "train", "loss": 2.5, "grad_norm": None, "token_hash": "ab", "many": [0, 1]
    }


def test_damage_is_told_by_its_line_and_the_end_of_a_run_by_its_last_look(tmp_path, no_board):
    assert metrics.examine(tmp_path) == ([], "") and metrics.final(read(tmp_path)) is None
    with MetricLog(tmp_path) as log:
        log.write(1, "eval", loss=2.5)
        log.write(1, "eval", loss=2.4, final=True)
        log.write(1, "sample", text="x", final=True)
    records, damage = metrics.examine(tmp_path)
    last = metrics.final(records)
    assert damage == "" and last is not None and last["loss"] == 2.4 and records == read(tmp_path)
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(file.read_bytes().replace(b'{"step": 1, "kind": "eval", "loss": 2.4', b"\xff", 1))
    records, damage = metrics.examine(tmp_path)
    assert damage == f"damaged metrics ({file}, line 2)" and metrics.final(records) is None


def test_the_torn_end_of_a_run_that_is_alive_or_was_killed_is_no_damage(tmp_path, no_board):
    with MetricLog(tmp_path) as log:
        log.write(1, "eval", loss=2.5)
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 2, "ki')
        file.flush()
        assert metrics.examine(tmp_path) == (read(tmp_path), "") and steps(tmp_path) == [1]
        file.write(b"\n")
    assert metrics.examine(tmp_path)[1].endswith("line 2)")


def test_resume_cuts_what_is_past_and_what_is_torn(tmp_path, no_board):
    with MetricLog(tmp_path) as log:
        for step in range(1, 9):
            log.write(step, "train", loss=1.0 / step)
        log.write(5, "eval", loss=1.0)
    file = tmp_path / "metrics.jsonl"
    with file.open("ab") as f:
        f.write(b'{"step": 9, "kind": "tra')
    assert steps(tmp_path) == [1, 2, 3, 4, 5, 6, 7, 8, 5]
    with MetricLog(tmp_path, resume_step=5) as log:
        assert steps(tmp_path) == [1, 2, 3, 4, 5, 5]
        log.write(6, "train", loss=0.1)
    assert steps(tmp_path) == [1, 2, 3, 4, 5, 5, 6]
    assert all(json.loads(line) for line in file.read_text().splitlines())
    with MetricLog(tmp_path):
        assert steps(tmp_path) == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["metrics.jsonl"]


def test_reader_takes_what_is_sound(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(
        b'\n\xff\xfe\nnull\n[1]\n{"step": true, "kind": "x"}\n{"step": 1}\n'
        b'{"step": 2, "kind": "train"}\r\n{"step'
    )
    assert read(tmp_path) == [{"step": 2, "kind": "train"}]
    assert read(file) == read(tmp_path)
    assert read(tmp_path / "none.jsonl") == []


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200), st.lists(st.integers(1, 5)))
def test_any_bytes_in_the_file_do_no_harm(tmp_path, no_board, junk, later):
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(junk)
    with MetricLog(tmp_path, resume_step=0) as log:
        for step in later:
            log.write(step, "train", text=junk.decode("latin-1"))
    assert steps(tmp_path)[-len(later) :] == later or not later


def test_full_disk_costs_nothing_but_one_warning(tmp_path, no_board, monkeypatch, capsys):
    room = [150]
    real = os.write

    def limited(descriptor, data):
        if room[0] <= 0:
            raise OSError(28, "No space left on device")
        count = real(descriptor, data[: room[0]])
        room[0] -= count
        return count

    monkeypatch.setattr(metrics.os, "write", limited)
    with MetricLog(tmp_path) as log:
        for step in range(1, 11):
            log.write(step, "train", loss=0.5)
        assert steps(tmp_path) == [1, 2, 3]
        assert (tmp_path / "metrics.jsonl").read_bytes().endswith(b"}\n")
        room[0] = 10**6
        log.write(11, "train", loss=0.5)
        assert steps(tmp_path) == list(range(1, 12))
    assert capsys.readouterr().err.count("\n") == 1


def test_really_full(tmp_path):
    """The system's own limit on a file's size, in a process of its own."""
    code = (
        "import resource, sys; from maijax.train.metrics import MetricLog\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "log = MetricLog(sys.argv[1])\n"
        "for step in range(100): log.write(step, 'train', loss=1.0)\n"
        "log.close(); print('went on')\n"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, timeout=60)
    assert done.stdout == "went on\n", done.stderr
    assert 10 < len(read(tmp_path)) < 30
    assert (tmp_path / "metrics.jsonl").stat().st_size <= 1000
    said = [line for line in done.stderr.splitlines() if "metrics.jsonl" in line]
    assert len(said) == 2 and "training goes on" in said[0] and "lost" in said[1]


def test_unwritable_folder_does_not_raise(tmp_path, no_board, capsys):
    with MetricLog(tmp_path / "gone") as log:
        log.write(1, "train", loss=1.0)
    assert "cannot be written" in capsys.readouterr().err


def test_disabled_writes_nothing(tmp_path):
    with MetricLog(tmp_path, enabled=False) as log:
        log.write(1, "train", loss=1.0)
    assert list(tmp_path.iterdir()) == []


def test_tensorboard_reads_it(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with MetricLog(tmp_path) as log:
        for step in range(1, 7):
            log.write(step, "train", loss=1.0 / step, token_hash="x")
    with MetricLog(tmp_path, resume_step=4) as log:
        log.write(5, "train", loss=9.0)
        log.write(5, "sample", prompt="a", text="Once\n<b>upon</b> \ud800")
    found = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    assert [(e.step, round(e.value, 4)) for e in found.Scalars("train/loss")] == [
        (1, 1.0), (2, 0.5), (3, 0.3333), (4, 0.25), (5, 9.0)
    ]
    assert b"<b>upon</b>" in found.Tensors("sample/text_summary")[0].tensor_proto.string_val[0]
