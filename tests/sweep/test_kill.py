"""A sweep that really trains, killed in the middle, comes to what one that was never stopped came to."""

import os
import signal
from pathlib import Path

from sweep_parts import ROOT, four, process, tiny, wait_for

from maijax.sweep.study import Study, newest
from maijax.train.metrics import read

STEPS = 240
FAST = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"  # to compile


def workers(driver: int) -> list[int]:
    """The processes that it started."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has just ended
            continue
        if parent == driver:
            found.append(int(stat.parent.name))
    return found


def holds(pid: int, file: Path) -> bool:
    try:
        return any(os.path.realpath(one) == str(file) for one in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return False


def lines(folder: Path, kind: str) -> list[tuple]:
    """What may not depend on when a run was stopped."""
    return [(line["step"], line["loss"], line.get("token_hash"), line.get("bits_per_byte"))
            for line in read(folder) if line["kind"] == kind]


def test_kill_of_driver_and_worker_in_the_middle_of_training(corpus, tmp_path):
    base = tiny(corpus, steps=STEPS, checkpoint_every=20, eval_every=None)
    words = [*four(base, tmp_path), "--set", "optim.lr=1e-3,1e-2,3e-2", "--workers", "2", "--together", "2",
             "--runs-dir", str(tmp_path / "runs")]  # two trials in one program, and one alone

    def start(name: str):
        return process(*words, "--name", name, PYTHONPATH=f"{ROOT}:{tmp_path}", XLA_FLAGS=FAST)

    def finish(name: str) -> Study:
        _, err = (driver := start(name)).communicate(timeout=240)
        assert driver.returncode == 0, err
        return Study.load(tmp_path / "runs" / name)

    whole, folder = finish("whole"), tmp_path / "runs" / "killed"

    def midway() -> list[int]:
        return [n for n in range(3) if not (folder / f"trial-{n:04}" / "result.json").exists()
                and 0 < newest(folder / f"trial-{n:04}") < STEPS]

    driver = start("killed")
    wait_for(midway, 120)
    number = midway()[-1]
    at_it = [pid for pid in workers(driver.pid) if holds(pid, folder / f"trial-{number:04}" / ".claim")]
    for pid in (driver.pid, *at_it):
        os.kill(pid, signal.SIGKILL)
    driver.wait()
    assert len(at_it) == 1 and not (folder / f"trial-{number:04}" / "result.json").exists()
    before = {file: file.stat().st_mtime_ns for file in folder.glob("*/result.json")}

    killed = finish("killed")
    assert {file: file.stat().st_mtime_ns for file in before} == before  # what had ended was left alone
    assert [t.number for t in killed.trials()] == [0, 1, 2]
    for one, other in zip(killed.trials(), whole.trials(), strict=True):
        assert one.result.state == "done" and one.point == other.point
        assert (one.result.bits_per_byte, one.result.loss) == (other.result.bits_per_byte, other.result.loss)
        a, b = (study.where(one.number) for study in (killed, whole))
        assert [step for step, *_ in lines(a, "train")] == list(range(1, STEPS + 1))  # each once
        assert lines(a, "train") == lines(b, "train") and lines(a, "eval") == lines(b, "eval")
        assert len(lines(a, "eval")) == 1  # the last look, once
