"""The same command on a cluster: a real Slurm of one node, started here, and Ray on this machine."""

import contextlib
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from sweep_parts import ROOT, four, process, tiny

from maijax import plain
from maijax.errors import UserError
from maijax.sweep import launch
from maijax.sweep.study import Study

CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CryptoType=crypto/munge
SlurmUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/ctld.pid
SlurmdPidFile={folder}/d.pid
SlurmctldLogFile={folder}/ctld.log
SlurmdLogFile={folder}/d.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
DAEMONS = ("munged", "slurmctld", "slurmd", "squeue")
SBIN = f"{os.environ['PATH']}:/usr/sbin:/sbin"


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture
def slurm(tmp_path):
    """The environment of a Slurm of this machine alone; its daemons end with the test."""
    if os.getuid() != 0 or not all(shutil.which(name, path=SBIN) for name in DAEMONS):
        pytest.skip("needs root and Debian's slurm-wlm")
    if importlib.util.find_spec("submitit") is None:
        pytest.skip("needs submitit")
    folder = tmp_path / "slurm"
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    host = socket.gethostname().split(".")[0]
    conf = CONF.format(host=host, folder=folder, ports=(free_port(), free_port()), cores=os.cpu_count())
    (folder / "slurm.conf").write_text(conf)
    (folder / "cgroup.conf").write_text("CgroupAutomount=no\n")
    (folder / "key").write_bytes(os.urandom(1024))
    (folder / "key").chmod(0o600)
    env = {"PATH": SBIN, "SLURM_CONF": str(folder / "slurm.conf")}
    munge = ["munged", "--foreground", "--force", f"--key-file={folder}/key", f"--socket={folder}/munge.socket",
             f"--pid-file={folder}/munge.pid", f"--log-file={folder}/munge.log", f"--seed-file={folder}/munge.seed"]
    with contextlib.ExitStack() as stack:
        for words in (munge, ["slurmctld", "-D"], ["slurmd", "-D"]):
            log = stack.enter_context(open(folder / f"{words[0]}.out", "wb"))
            daemon = subprocess.Popen(words, env=os.environ | env, stdout=log, stderr=log)
            stack.callback(daemon.wait)
            stack.callback(daemon.terminate)
        for _ in range(100):
            time.sleep(0.2)
            done = subprocess.run(["sinfo", "-h", "-o", "%T"], env=os.environ | env, capture_output=True, text=True)
            if done.stdout.strip() in ("idle", "mixed"):
                break
        else:
            pytest.skip(f"Slurm did not start here: {(folder / 'd.log').read_text()[-300:]}")
        yield env


def command(corpus, tmp_path, launcher: str) -> list[str]:
    """A 4-trial sweep of the tiny experiment, as a person would give it."""
    return [*four(tiny(corpus), tmp_path), "--launcher", launcher, "--workers", "2", "--together", "2",
            "--runs-dir", str(tmp_path / "runs"), "--json"]


def four_trials(done: str, tmp_path) -> None:
    told = json.loads(done)
    assert told["finished"] and told["count"] == 4
    assert [t["state"] for t in told["trials"]] == ["done"] * 4
    assert len(Study.load(tmp_path / "runs" / "four").trials()) == 4


def test_slurm(corpus, tmp_path, slurm):
    words = command(corpus, tmp_path, "slurm:timeout_min=10,cpus_per_task=1")
    driver = process(*words, **slurm, PYTHONPATH=f"{ROOT}:{tmp_path}")
    out, err = driver.communicate(timeout=240)
    assert driver.returncode == 0, err
    four_trials(out, tmp_path)
    jobs = [p.name for p in (tmp_path / "runs" / "four" / "workers").iterdir()]
    assert sum(name.isdecimal() for name in jobs) >= 2  # by their numbers


def unreadable(words: list[str], tmp_path, **env: str) -> None:
    """A person's mistake ends the sweep in its one line: nobody died of it, and nothing is tried again."""
    driver = process(*words, "--set", "data.sources=nowhere.txt", **env, PYTHONPATH=f"{ROOT}:{tmp_path}")
    _, err = driver.communicate(timeout=240)
    assert driver.returncode == 2 and "nowhere.txt" in err.splitlines()[-1], err
    assert "ended with code" not in err and "Traceback" not in err
    [folder] = (tmp_path / "runs").iterdir()
    assert all(t.result is None and not t.running and t.deaths == 0 for t in Study.load(folder).trials())


def test_slurm_with_data_that_cannot_be_read(corpus, tmp_path, slurm):
    unreadable(command(corpus, tmp_path, "slurm:timeout_min=10,cpus_per_task=1"), tmp_path, **slurm)


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs Ray")
def test_ray(corpus, tmp_path):
    words = command(corpus, tmp_path, "ray:num_cpus=1")
    driver = process(*words, PYTHONPATH=f"{ROOT}:{tmp_path}")
    out, err = driver.communicate(timeout=240)
    assert driver.returncode == 0, err
    four_trials(out, tmp_path)


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs Ray")
def test_ray_with_data_that_cannot_be_read(corpus, tmp_path):
    unreadable(command(corpus, tmp_path, "ray:num_cpus=1"), tmp_path)


@pytest.mark.parametrize(("text", "part"), [
    ("cloud", "must be local, slurm or ray"), ("local:x=1", "local takes no options"), ("slurm:gpu", "option=value"),
])
def test_bad_launchers(text, part, tmp_path):
    with pytest.raises(UserError, match=part):
        launch.make(text, tmp_path, workers=1, together=1)
    with pytest.raises(UserError, match=part):  # and so in a dry run, which makes none
        launch.parse(text)


def died(folder, program):
    """A launcher whose only worker, a Python program, has ended, which nobody has asked about."""
    launcher = launch.Local(folder, 1, 1, {})
    launcher.words = (sys.executable, "-c", program)
    launcher.start()
    while launcher.alive():
        time.sleep(0.01)
    return launcher


def test_a_worker_that_has_just_died_is_told_of_before_the_next(tmp_path):
    launcher = died(tmp_path, "")
    launcher.start()
    assert launcher.ended() == [(0, "")]


@pytest.mark.parametrize(("named", "found"), [
    (None, [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}]),
    ("3,5,7", [{"CUDA_VISIBLE_DEVICES": "3,7"}, {"CUDA_VISIBLE_DEVICES": "5"}]),
    ("", [{}, {}]),  # all are hidden on purpose
])
def test_each_worker_has_its_share_of_the_gpus(named, found, monkeypatch):
    monkeypatch.setattr(launch.glob, "glob", lambda _: ["/dev/nvidia1", "/dev/nvidia0"])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if named is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert [launch._device(place, 2) for place in range(2)] == found


@pytest.mark.parametrize(("package", "text"), [("submitit", "slurm"), ("ray", "ray")])
def test_a_missing_package_names_the_extra(package, text, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf'pip install -e "\.\[{text}\]"'):
        launch.make(text, tmp_path, workers=1, together=1)


def test_the_experiment_survives_the_command(corpus):
    assert plain.from_plain(plain.to_plain(tiny(corpus))) == tiny(corpus)


def test_a_job_that_died_without_a_word_is_told_of(tmp_path, monkeypatch):
    """Where there is no accounting, submitit waits for ever for the result of a job that was killed."""
    def job(number, result):
        paths = SimpleNamespace(result_pickle=tmp_path / f"{number}.pkl", stderr=tmp_path / f"{number}.err")
        return SimpleNamespace(paths=paths, result=result, job_id=number)

    slurm = object.__new__(launch.Slurm)
    slurm._jobs = {"1": job("1", None), "2": job("2", lambda: (2, "no such file"))}
    slurm._queued, slurm._gone, slurm._asked = set(), {}, float("inf")
    (tmp_path / "1.err").write_text("begins\nslurmstepd: error: Detected 1 oom_kill event\n")
    (tmp_path / "2.pkl").touch()
    assert slurm.ended() == [(2, "no such file")]  # what the other wrote may not be seen yet
    monkeypatch.setattr(launch, "_SHARED", 0.0)
    assert slurm.ended() == [(1, "slurmstepd: error: Detected 1 oom_kill event")] and slurm.ended() == []


def test_a_worker_is_told_of_without_the_name_of_the_program(tmp_path):
    launcher = died(tmp_path, "import sys; sys.exit('maijax: no space left')")
    assert launcher.ended() == [(1, "no space left")]
