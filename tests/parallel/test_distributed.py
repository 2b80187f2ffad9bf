"""What each launcher's variables mean, and which rows of a batch a process reads."""

from types import SimpleNamespace

import numpy as np
import pytest

from maijax.config import MeshConfig
from maijax.errors import UserError
from maijax.parallel import together
from maijax.parallel.distributed import Settings, settings
from maijax.parallel.mesh import make_mesh
from maijax.parallel.sharding import Layout

OWN = {"MAIJAX_COORDINATOR": "10.0.0.1:8476", "MAIJAX_PROCESS_ID": "2", "MAIJAX_NUM_PROCESSES": "4"}
JOBSET = {
    "JOBSET_NAME": "lm", "JOBSET_JOB": "slice", "JOBSET_JOB_INDEX": "1", "JOBSET_JOB_COUNT": "2",
    "JOBSET_JOB_PROCESSES": "4", "JOB_COMPLETION_INDEX": "3",
}
SLURM = {
    "SLURM_JOB_ID": "4097", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NUM_NODES": "4",
    "SLURM_PROCID": "1", "SLURM_LOCALID": "0", "SLURM_STEP_NODELIST": "gpu[07-09,12],login1",
}


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"PATH": "/bin", "MAIJAX_CACHE": "/x", "JOB_COMPLETION_INDEX": "3"},  # an indexed job that is no set
        OWN | {"MAIJAX_PROCESS_ID": "0", "MAIJAX_NUM_PROCESSES": "1"},
        {"TPU_WORKER_HOSTNAMES": "localhost"},
        {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"},  # the batch script itself, or salloc's shell
        SLURM | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},
    ],
)
def test_the_only_process(environ):
    assert settings(environ) is None


def test_by_hand():
    found = settings(OWN)
    assert found == Settings(coordinator="10.0.0.1:8476", process_id=2, num_processes=4) and found.bind is None
    assert settings(OWN | {"MAIJAX_COORDINATOR": "127.0.0.1:5"}).bind == "127.0.0.1:5"  # shut to the outside
    assert settings({"MAIJAX_COORDINATOR": "auto"}) == Settings(coordinator=None)
    assert settings(SLURM | JOBSET | OWN).coordinator == "10.0.0.1:8476"


@pytest.mark.parametrize(
    "environ", [{"TPU_WORKER_HOSTNAMES": "a,b"}, {"TPU_PROCESS_ADDRESSES": "a:1,b:1"}, {"MEGASCALE_NUM_SLICES": "2"}]
)
def test_tpu_pods_are_jax_s_own(environ):
    assert settings(environ | JOBSET) == Settings(coordinator=None)


def test_jobset():
    assert settings(JOBSET) == Settings(coordinator="lm-slice-0-0.lm:8476", process_id=7, num_processes=8)


@pytest.mark.parametrize(
    ("nodes", "host"),
    [("a1", "a1"), ("a1,b2", "a1"), ("a[01-07,9]", "a01"), ("a[3]", "a3"), ("a-[1,5]-ib,b1", "a-1-ib")],
)
def test_slurm(nodes, host):
    found = settings(SLURM | {"SLURM_STEP_NODELIST": nodes})
    assert found == Settings(coordinator=f"{host}:61441", process_id=1, num_processes=4)


def test_slurm_tasks_that_share_a_node_share_out_its_gpus():
    crowded = SLURM | {"SLURM_STEP_NUM_NODES": "2", "SLURM_LOCALID": "1"}
    assert settings(crowded | {"CUDA_VISIBLE_DEVICES": "0,1"}).local_devices == (1,)
    assert settings(crowded | {"CUDA_VISIBLE_DEVICES": "3"}).local_devices is None  # bound by Slurm already


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"MAIJAX_PROCESS_ID": "2"}, "MAIJAX_COORDINATOR, MAIJAX_NUM_PROCESSES is not set"),
        (OWN | {"MAIJAX_COORDINATOR": "host"}, "MAIJAX_COORDINATOR='host' must be host:port"),
        (OWN | {"MAIJAX_COORDINATOR": "host:99999"}, "must be host:port"),
        (OWN | {"MAIJAX_PROCESS_ID": "4"}, "MAIJAX_PROCESS_ID=4 makes this process 4 of 4"),
        (OWN | {"MAIJAX_PROCESS_ID": "-1"}, "MAIJAX_PROCESS_ID='-1' must be a whole number"),
        (OWN | {"MAIJAX_NUM_PROCESSES": "0"}, "MAIJAX_NUM_PROCESSES='0' must be a whole number, 1 or more"),
        (OWN | {"MAIJAX_COORDINATOR": "auto"}, "unset MAIJAX_PROCESS_ID and MAIJAX_NUM_PROCESSES"),
        ({"JOBSET_NAME": "lm", "JOB_COMPLETION_INDEX": "0"}, "JOBSET_JOB, JOBSET_JOB_INDEX"),
        (JOBSET | {"JOB_COMPLETION_INDEX": "4"}, "JOB_COMPLETION_INDEX=4 must be below JOBSET_JOB_PROCESSES=4"),
        ({"SLURM_STEP_NUM_TASKS": "4"}, "SLURM_PROCID, SLURM_STEP_NODELIST, SLURM_JOB_ID is not set"),
    ],
)
def test_wrong_or_missing_variables_are_named(environ, words):
    with pytest.raises(UserError, match=words):
        settings(environ)


@pytest.mark.parametrize("sizes", [
    {"fsdp": 8}, {"fsdp": 2, "tensor": 4}, {"tensor": 2, "context": 4}, {"stage": 4, "fsdp": 2},
    {"stage": 2, "data": 4}, {"stage": 2, "fsdp": 2, "tensor": 2},
])
@pytest.mark.parametrize("hosts", [1, 2, 4, 8])
def test_each_process_reads_what_its_devices_need_and_counts_each_row_once(sizes, hosts, monkeypatch):
    config = MeshConfig(**({"data": 1} | sizes))
    shape = (16, 32)
    real = Layout(make_mesh(config), config).batch(shape).devices_indices_map(shape)
    held = {device.id: (device.id * hosts // 8, index) for device, index in real.items()}

    class Device(int):
        process_index = property(lambda self: held[self][0])

    where = SimpleNamespace(devices_indices_map=lambda _: {Device(k): index for k, (_, index) in held.items()})
    counts = np.zeros(shape[0], int)
    for host in range(hosts):
        monkeypatch.setattr(together.jax, "process_index", lambda host=host: host)
        rows, counted = together.rows_here(where, shape)
        needed = {r for k, (p, i) in held.items() if p == host for r in range(*i[0].indices(shape[0]))}
        assert rows == sorted(needed) and set(counted) <= needed
        counts[counted] += 1
    assert (counts == 1).all()
