"""One device mesh with named axes; an axis of size 1 is free."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh

from maijax.config import MESH_AXES, MeshConfig
from maijax.errors import UserError


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh over the devices (default: all of this job), axes in the order of `MESH_AXES`.

    Raises UserError if the sizes do not fit the devices, or if several devices would all do the same work.
    """
    devices = jax.devices() if devices is None else devices
    sizes = config.shape(len(devices))
    if len(devices) > 1 and not config.rules:
        raise UserError(
            f"mesh.rules=() would leave {len(devices)} devices doing the same work; choose a mesh, e.g. --mesh FSDP"
        )
    placed = {axis for _, axes in config.rules for axis in axes}
    for axis in MESH_AXES:
        if sizes[axis] > 1 and axis not in placed:
            raise UserError(
                f"mesh.{axis}={sizes[axis]} shards nothing by these mesh.rules; name it in a rule, or set it to 1"
            )
    shape = tuple(sizes[axis] for axis in MESH_AXES)
    # Auto axes: the compiler partitions, guided by `constrain`; manual islands use jax.shard_map.
    return jax.make_mesh(shape, MESH_AXES, axis_types=(AxisType.Auto,) * len(shape), devices=devices)
