"""jax devices of machines that nobody here has, to compile for: TPU slices through libtpu, GPUs through CUDA's plugin.

No accelerator, driver or cloud is needed: both compilers run on any Linux machine with a CPU.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any

from maijax.errors import UserError
from maijax.hardware import Topology

# What the CUDA compiler asks of a GPU beside its `Chip`: compute capability, multiprocessors, L2 bytes, clock in
# GHz, memory in bytes. Source: what NVIDIA's driver reports of each, as OpenXLA's target files record it.
_GPUS: Mapping[str, tuple[int, int, int, float, int]] = {
    "h100": (9, 132, 52_428_800, 1.98, 84_942_979_072),
    "h200": (9, 132, 52_428_800, 1.98, 151_397_597_184),
    "b200": (10, 148, 132_644_864, 1.965, 191_514_411_008),
}
_TARGET = """\
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448
  registers_per_core_limit: 65536 registers_per_block_limit: 65536 fpus_per_core: 128 core_count: {cores}
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  memory_bandwidth: {bandwidth} l2_cache_size: {cache} clock_rate_ghz: {clock} device_memory_size: {memory}
  cuda_compute_capability {{ major: {capability} feature_extension: ACCELERATED_FEATURES }}
  device_vendor: "NVIDIA Corporation" name: "{name}" runtime_version: "13.0.0" driver_version: "13.0.0"
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
device_description_str: "{name}"
"""


def environment(topology: Topology, dump: str | None = None) -> dict[str, str]:
    """Variables that the compiling process must have before it imports jax; `dump` is a folder for XLA's own words."""
    found = {
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",  # no metadata server to wait for
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # several may compile beside each other
        "TPU_LOG_DIR": "disabled",
        "TF_CPP_MIN_LOG_LEVEL": "2",
    }
    if dump is not None:
        # Large programs cannot be read back from the executable (jaxlib 0.10.2), but the compiler writes them down.
        found["XLA_FLAGS"] = f"--xla_dump_to={dump} --xla_dump_hlo_as_text --xla_dump_hlo_module_re=jit_step"
    return found


def missing(topology: Topology) -> str | None:
    """What must be installed to compile for a topology, in one line; None if all is there."""
    if topology.chip.platform == "tpu":
        if importlib.util.find_spec("libtpu") is None:
            return f'{topology.text} is compiled by libtpu, which is not installed; pip install -e ".[tpu-plan]"'
        return None
    if importlib.util.find_spec("jax_cuda13_plugin") is None:
        return f'{topology.text} is compiled by the CUDA plugin, which is not installed; pip install -e ".[gpu-plan]"'
    return None


def devices(topology: Topology) -> list[Any]:
    """One jax device per device of the topology, over all its slices; none of them can run anything.

    Raises UserError if the compiler is not installed or does not know the shape.
    """
    from jax.experimental import topologies

    if (lacking := missing(topology)) is not None:
        raise UserError(lacking)
    chip = topology.chip
    shape = "x".join(map(str, topology.shape))
    try:
        if chip.platform == "tpu":
            found = topologies.get_topology_desc(
                platform="tpu", topology_name=f"{chip.compile_name}:{shape}", num_slices=topology.slices
            )
        else:
            nodes, each = topology.shape
            found = topologies.get_topology_desc(
                platform="cuda", topology_name="plan", target_config=_target(topology), topology=f"1x{nodes}x{each}"
            )
    except (RuntimeError, NotImplementedError, ValueError) as error:
        raise UserError(f"{topology.title}: the compiler refuses it: {str(error).splitlines()[0]}") from None
    if len(found.devices) != topology.devices:
        raise UserError(f"{topology.title}: the compiler has {len(found.devices)} devices, not {topology.devices}")
    return list(found.devices)


def _target(topology: Topology) -> str:
    chip = topology.chip
    capability, cores, cache, clock, memory = _GPUS[chip.name]
    return _TARGET.format(
        cores=cores, bandwidth=round(chip.hbm_bandwidth), cache=cache, clock=clock, memory=memory,
        capability=capability, name=chip.compile_name,
    )
