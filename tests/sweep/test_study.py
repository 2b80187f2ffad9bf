"""Trials that survive any kill: ended ones stay, those of the dead are taken up, nobody shares one."""

import collections
import dataclasses
import itertools
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from sweep_parts import process, tiny, wait_for

from maijax.errors import UserError
from maijax.space import Sweep
from maijax.sweep import drive, groups, launch
from maijax.sweep import study as studies
from maijax.sweep.study import Result, Study
from maijax.train import metrics, rundir

RUNNER = str(Path(__file__).parent / "runner.py")
RATES = ",".join(f"{i + 1}e-4" for i in range(24))


def make(folder: Path, corpus: Path, **changes) -> Study:
    sweep = Sweep(name="s", base=tiny(corpus), space={"optim.lr": RATES})
    return Study.create(folder, dataclasses.replace(sweep, **changes), {})


def told(folder: Path) -> dict[str, collections.Counter]:
    found = collections.defaultdict(collections.Counter)
    for line in (folder / "log").read_text().splitlines():
        word, number, _ = line.split()
        found[word][int(number)] += 1
    return found


def pids(folder: Path, word: str) -> list[int]:
    file = folder / "log"
    lines = file.read_text().splitlines() if file.exists() else []
    return [int(line.split()[2]) for line in lines if line.startswith(word) and len(line.split()) == 3]


def finish(*drivers: subprocess.Popen) -> None:
    for one in drivers:
        _, err = one.communicate(timeout=120)
        assert one.returncode == 0, err


def all_ran_once(folder: Path, kills: int = 0) -> None:
    """24 results, each written by one worker, and no step of any trial made twice or by two at once."""
    done = told(folder)["done"]
    assert set(done.values()) == {1} and len(done) >= 24 - kills  # one killed after its result has not noted it
    for number in range(24):
        steps = (folder / f"trial-{number:04}" / "steps").read_text().splitlines()
        assert len(steps) == 3
    trials = Study.load(folder).trials()
    assert [t.number for t in trials] == list(range(24)) and all(t.result.state == "done" for t in trials)


def test_kill_of_driver_and_worker_loses_nothing(corpus, tmp_path):
    make(tmp_path / "s", corpus)
    folder = tmp_path / "s"
    driver = process(RUNNER, "drive", str(folder), "2")
    wait_for(lambda: len(pids(folder, "done")) >= 3)
    os.kill(pids(folder, "begin")[-1], signal.SIGKILL)  # a worker: the driver starts another
    wait_for(lambda: len(pids(folder, "done")) >= 9)
    os.killpg(driver.pid, signal.SIGKILL)
    for pid in set(pids(folder, "begin")):
        try:
            os.kill(pid, signal.SIGKILL)  # and all of its workers
        except ProcessLookupError:
            pass
    driver.wait()
    before = told(folder)["done"]
    assert 9 <= len(before) < 24
    finish(process(RUNNER, "drive", str(folder), "2"))
    all_ran_once(folder, kills=3)
    finish(process(RUNNER, "drive", str(folder), "2"))  # and once more: nothing is left to do
    all_ran_once(folder, kills=3)


def test_workers_save_and_leave_when_their_driver_is_killed(corpus, tmp_path):
    make(tmp_path / "s", corpus)
    folder = tmp_path / "s"
    driver = process(RUNNER, "drive", str(folder), "1", NAP="0.3")
    wait_for(lambda: pids(folder, "begin"))
    driver.kill()
    driver.wait()
    worker = pids(folder, "begin")[0]
    wait_for(lambda: not Path(f"/proc/{worker}").exists() or "Z" in Path(f"/proc/{worker}/stat").read_text().split()[2])
    assert not any(t.running for t in Study.load(folder).trials())
    finish(process(RUNNER, "drive", str(folder), "2"))
    all_ran_once(folder)


def test_two_drivers_at_once_share_the_trials(corpus, tmp_path):
    make(tmp_path / "s", corpus)
    folder = tmp_path / "s"
    finish(*[process(RUNNER, "drive", str(folder), "2") for _ in range(2)])
    all_ran_once(folder)
    assert told(folder)["begin"] == told(folder)["done"]
    assert len(set(pids(folder, "done"))) >= 2


def test_ctrl_c_of_the_driver_stops_its_workers(corpus, tmp_path):
    make(tmp_path / "s", corpus)
    folder = tmp_path / "s"
    driver = process(RUNNER, "drive", str(folder), "2", NAP="0.2")
    wait_for(lambda: pids(folder, "begin"))
    driver.send_signal(signal.SIGINT)
    driver.communicate(timeout=60)
    assert driver.returncode == 75
    assert not Study.load(folder).held() and not any(t.running for t in Study.load(folder).trials())


def test_claims_are_alone_and_come_back(corpus, tmp_path):
    study = make(tmp_path / "s", corpus)
    first, second = study.claim(3), Study.load(study.folder).claim(2)
    assert [c.trial.number for c in first] == [0, 1, 2] and [c.trial.number for c in second] == [3, 4]
    assert study.held() == {0, 1, 2, 3, 4}
    first[0].release(Result(state="done", step=6, bits_per_byte=2.0))
    first[1].release(None)
    first[2].lock.close()  # as if its worker had been killed
    again = study.claim(16, workers=4)
    assert [c.trial.number for c in again] == [1, 2, 5, 6, 7, 8]  # a quarter of what is left
    assert [c.trial.deaths for c in again[:2]] == [0, 1]
    assert study.trials()[0].result == Result(state="done", step=6, bits_per_byte=2.0)


def test_a_trial_that_ends_while_another_looks_for_one_is_not_run_again(corpus, tmp_path, monkeypatch):
    study, other = make(tmp_path / "s", corpus), Study.load(tmp_path / "s")
    [mine] = study.claim(1)
    seen = other.trials()  # it runs
    mine.release(Result(state="pruned", step=4, bits_per_byte=5.0))
    monkeypatch.setattr(other, "trials", lambda: seen)
    assert [c.trial.number for c in other.claim(2)] == [1, 2]
    assert study.trials()[0].result == Result(state="pruned", step=4, bits_per_byte=5.0)


def test_a_trial_that_kills_its_workers_runs_alone_and_is_given_up(corpus, tmp_path):
    study = make(tmp_path / "s", corpus)
    numbers = []
    for _ in range(4):
        claims = study.claim(2)
        numbers.append([c.trial.number for c in claims])
        for claim in claims:
            claim.lock.close()
    assert numbers == [[0, 1], [0, 1], [0], [1]]
    assert "died 3 times" in study.trials()[0].result.why
    (study.where(0) / "result.json").unlink()  # as that says
    again = Study.load(study.folder).claim(2)
    assert [(c.trial.number, c.trial.deaths) for c in again] == [(0, 0), (2, 0)]


def test_only_equal_shapes_come_together(corpus, tmp_path):
    space = {"optim.lr": "1e-3,1e-2", "model.num_layers": "1,2", "train.seed": "0,1"}
    study = make(tmp_path / "s", corpus, space=space)
    held = [study.claim(16) for _ in range(3)]
    assert [[c.trial.point["model.num_layers"] for c in claims] for claims in held] == [["1"] * 4, ["2"] * 4, []]


def test_a_claim_looks_at_few_of_other_shapes(corpus, tmp_path, monkeypatch):
    study = make(tmp_path / "s", corpus, sampler="random", space={"optim.lr": "log:1e-4..1"}, trials=400)
    shapes = itertools.count()
    monkeypatch.setattr(groups, "signature", lambda _: str(next(shapes)))
    assert [c.trial.number for c in study.claim(16)] == [0]
    assert len(list(study.folder.glob("trial-*"))) == 1 + studies.MOST_MISFITS
    assert [c.trial.number for c in study.claim(16, but=[0, 1])] == [2]


def test_a_copy_beside_the_trials_is_none(corpus, tmp_path):
    study = make(tmp_path / "s", corpus)
    [claim] = study.claim(1)
    for name in ("trial-0000-backup", "trial-old", "trial-00000"):
        shutil.copytree(claim.folder, study.folder / name)
    assert [t.number for t in study.trials()] == [0]


def test_the_curve_of_a_trial_that_ended_is_read_once(corpus, tmp_path, monkeypatch):
    study, read = make(tmp_path / "s", corpus), []
    line = {"kind": "eval", "step": 2, "bits_per_byte": 3.0}
    monkeypatch.setattr(metrics, "read", lambda folder: read.append(folder) or [line])
    [claim] = study.claim(1)
    for result in (None, Result(state="done", step=2)):
        claim.release(result)
        study.trials()
        assert study.curve(0) == study.curve(0) == {2: 3.0}
    assert len(read) == 3


def test_a_worker_that_can_begin_nothing_waits_for_the_others(corpus, tmp_path, monkeypatch):
    """The second of two workers is refused what is left; the first goes on, ends well, and what is left fails."""
    monkeypatch.setattr(drive, "EVERY", 0)
    study = make(tmp_path / "s", corpus, space={"optim.lr": "1,2"})

    class Launcher:
        workers = 2
        begun, claims, codes = 0, [], []

        def start(self):
            self.begun += 1
            if self.begun == 2:
                self.codes.append((2, "maijax: no room"))
            else:
                self.claims += study.claim(1)

        def alive(self):
            return len(self.claims)

        def ended(self):
            codes, self.codes = self.codes, []
            if self.begun > 1 and not codes:
                for claim in self.claims:
                    claim.release(Result(state="done" if claim.trial.number == 0 else "failed", step=6))
                    self.codes.append((0, ""))
                self.claims = []
            return codes

    assert drive.drive(study, Launcher())
    assert [t.result.state for t in study.trials()] == ["done", "failed"]


@pytest.mark.parametrize("before", [False, True])
def test_what_a_person_can_mend_ends_the_sweep_though_trials_ended_before(corpus, tmp_path, monkeypatch, before):
    """As when the cache folder has gone since the sweep was stopped."""
    study = make(tmp_path / "s", corpus, space={"optim.lr": "1,2"})
    if before:
        study.claim(1)[0].release(Result(state="done", step=6, bits_per_byte=2.0))
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MAIJAX_CACHE", str(tmp_path / "file"))
    begun = time.monotonic()
    with pytest.raises(UserError, match="^cache folder .*set MAIJAX_CACHE"):
        drive.drive(study, launch.Local(study.folder, 1, 1, {}))
    assert time.monotonic() - begun < 60 and not study.held()


def test_progress_says_what_runs(corpus, tmp_path, capsys, monkeypatch):
    """A line when a trial ends, and now and then one of how far the others are."""
    monkeypatch.setattr(drive, "EVERY", 0)
    monkeypatch.setattr(drive, "LOOK", 0)
    monkeypatch.setattr(drive, "QUIET", 0.2)
    study = make(tmp_path / "s", corpus, space={"optim.lr": "1,2"})
    claims = study.claim(2)

    class Launcher:
        workers, looks = 1, 0

        def start(self):
            """Nothing is left to do."""

        def alive(self):
            return len(claims)

        def ended(self):
            self.looks += 1
            if self.looks in (2, 3):
                with open(claims[0].folder / metrics.FILE, "a") as log:
                    log.write(json.dumps({"step": 3 * (self.looks - 1), "kind": "train"}) + "\n")
            if self.looks > 3 and claims:
                claims.pop(0).release(Result(state="done", step=6, bits_per_byte=2.0))
            time.sleep(0.3 if self.looks == 2 else 0)
            return []

    assert drive.drive(study, Launcher())
    assert capsys.readouterr().err.splitlines() == [
        "trial 0/2  2 running, at 0%", "trial 0/2  2 running, at 25%",
        "trial 1/2  1 running, at 0%  best 2.0000 bits per byte (trial 0)",
        "trial 2/2  best 2.0000 bits per byte (trial 0)",
    ]


def test_another_sweep_in_the_folder_is_refused_with_the_difference(corpus, tmp_path):
    make(tmp_path / "s", corpus, sampler="random", space={"optim.lr": "log:1e-4..1e-1"}, trials=5)
    grown = make(tmp_path / "s", corpus, sampler="random", space={"optim.lr": "log:1e-4..1e-1"}, trials=9)
    assert grown.count == 9 == Study.load(grown.folder).count
    assert len(grown.claim(9)) == 9
    smaller = Study(grown.folder, dataclasses.replace(grown.sweep, trials=5), {})  # of the driver before
    assert [t.number for t in smaller.trials()] == list(range(5))
    with pytest.raises(UserError, match="has 9 trials, 5 would be fewer; give --trials 9"):
        make(tmp_path / "s", corpus, sampler="random", space={"optim.lr": "log:1e-4..1e-1"}, trials=5)
    with pytest.raises(UserError, match=r"space optim.lr was log:1e-4..1e-1, is log:1e-4..1"):
        make(tmp_path / "s", corpus, sampler="random", space={"optim.lr": "log:1e-4..1"})
    with pytest.raises(UserError, match=r"train.steps was 6, is 7"):
        make(tmp_path / "s", corpus, sampler="random", space={"optim.lr": "log:1e-4..1e-1"}, base=tiny(corpus, steps=7))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "experiment.json").write_text("{}")
    with pytest.raises(UserError, match="is a run, not a sweep"):
        make(tmp_path / "run", corpus)


def test_a_damaged_file_is_named(corpus, tmp_path):
    study = make(tmp_path / "s", corpus)
    (study.folder / rundir.SWEEP).write_text('{"base": ')
    with pytest.raises(UserError, match="sweep.json: cannot be read as a sweep"):
        Study.load(study.folder)


def test_tpe_learns(corpus, tmp_path):
    space = {"optim.lr": "log:1e-4..1", "train.seed": "0,1"}
    study = make(tmp_path / "s", corpus, sampler="tpe", trials=40, space=space)
    rates = []
    while claims := study.claim(16):
        assert len(claims) <= 5
        for claim in claims:
            rate = float(claim.trial.point["optim.lr"])
            rates.append(rate)
            claim.release(Result(state="done", step=1, bits_per_byte=1 + abs(rate - 0.01) ** 0.5))
    assert len(rates) == 40
    near = [sum(0.003 < r < 0.03 for r in part) for part in (rates[:10], rates[-10:])]
    assert near[1] > near[0] and near[1] >= 6
