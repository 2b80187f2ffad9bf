"""One device mesh with named axes; an axis of size 1 is free."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from maijax import rules
from maijax.config import MESH_AXES, MeshConfig


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh over the devices (default: all of this job), axes in the order of `MESH_AXES`.

    Devices of several slices are laid out so that only the axes of `rules.across` cross from one to another.
    Raises UserError if the sizes do not fit the devices or the slices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = config.shape(len(devices))
    shape = tuple(sizes[axis] for axis in MESH_AXES)
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    # Axes need not be lines of the physical torus: a plane may be split between two of them.
    if slices > 1:
        ways = rules.across(sizes, slices)
        across = tuple(ways.get(axis, 1) for axis in MESH_AXES)
        inside = tuple(size // crossing for size, crossing in zip(shape, across, strict=True))
        placed = mesh_utils.create_hybrid_device_mesh(
            inside, across, devices=devices, allow_split_physical_axes=True
        )
    else:
        placed = mesh_utils.create_device_mesh(shape, devices=devices, allow_split_physical_axes=True)
    # Auto axes: the compiler partitions, guided by `constrain`; manual islands use jax.shard_map.
    return Mesh(np.asarray(placed), MESH_AXES, axis_types=(AxisType.Auto,) * len(shape))
