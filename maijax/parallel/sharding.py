"""Logical axes to mesh axes: models name the former, a mesh preset's rules say where each one lies."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from maijax.config import MeshConfig, ModelConfig
from maijax.dims import LOGICAL_AXES
from maijax.errors import UserError
from maijax.weights import Weight, declare

_WEIGHT_AXES = frozenset(LOGICAL_AXES.values())


@dataclasses.dataclass(frozen=True)
class Layout:
    """A mesh and the rules that place logical axes on it."""

    mesh: Mesh
    rules: Mapping[str, tuple[str, ...]]

    @classmethod
    def of(cls, mesh: Mesh, config: MeshConfig) -> Layout:
        return cls(mesh=mesh, rules=dict(config.rules))

    def spec(self, axes: Sequence[str | None], sizes: Sequence[int], what: str) -> PartitionSpec:
        """Where an array of these logical axes and sizes lies.

        Raises UserError for an axis without a rule, a mesh axis used twice, or a size that does not divide.
        """
        if not self.rules:
            return PartitionSpec()
        return partition(self.rules, dict(self.mesh.shape), axes, sizes, what)

    def sharding(self, axes: Sequence[str | None], sizes: Sequence[int], what: str) -> NamedSharding:
        return NamedSharding(self.mesh, self.spec(axes, sizes, what))

    def replicated(self) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec())

    def batch(self, sizes: Sequence[int]) -> NamedSharding:
        """Of a [batch, seq] array of the data."""
        return self.sharding(("batch", "sequence"), sizes, "train.batch_size x train.seq_len")

    def params(self, model: ModelConfig) -> Any:
        """A tree of shardings, one per weight of the model."""
        return tree({w.path: NamedSharding(self.mesh, self.weight_spec(w)) for w in declare(model)})

    def weight_spec(self, weight: Weight) -> PartitionSpec:
        return self.spec(weight.logical_axes, weight.sizes, weight.path)


def partition(
    rules: Mapping[str, tuple[str, ...]],
    mesh_sizes: Mapping[str, int],
    axes: Sequence[str | None],
    sizes: Sequence[int],
    what: str,
) -> PartitionSpec:
    """The PartitionSpec of one array by the rules; a pure function of sizes, so that plans need no devices."""
    parts: list[Any] = []
    taken: dict[str, str] = {}
    for axis, size in zip(axes, sizes, strict=True):
        if axis is None:
            parts.append(None)
            continue
        if axis not in rules:
            raise UserError(f"{what}: mesh.rules has no entry for the logical axis {axis!r}; add one, () to replicate")
        mesh_axes = tuple(a for a in rules[axis] if mesh_sizes[a] > 1)
        for mesh_axis in mesh_axes:
            if mesh_axis in taken:
                raise UserError(f"{what}: mesh axis {mesh_axis!r} shards both {taken[mesh_axis]!r} and {axis!r}")
            taken[mesh_axis] = axis
        ways = math.prod(mesh_sizes[a] for a in mesh_axes)
        if size % ways:
            above = -(-size // ways) * ways
            legal = f"{above - ways} or {above}" if above > ways else f"{above}"
            raise UserError(
                f"{what}: {axis}={size} does not divide over {' x '.join(mesh_axes)} = {ways} devices; try {legal}"
            )
        parts.append(mesh_axes if len(mesh_axes) > 1 else (mesh_axes[0] if mesh_axes else None))
    return PartitionSpec(*parts)


def tree(by_path: Mapping[str, Any]) -> dict[str, Any]:
    """The nested dict of 'a/b/c' keys, as parameters are kept."""
    root: dict[str, Any] = {}
    for path, value in by_path.items():
        *parents, name = path.split("/")
        node = root
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    return root


_LAYOUT: contextvars.ContextVar[Layout | None] = contextvars.ContextVar("maijax_layout", default=None)


@contextlib.contextmanager
def use(layout: Layout | None) -> Iterator[None]:
    """Within it, `constrain` places activations by this layout; wrap what is traced."""
    token = _LAYOUT.set(layout)
    try:
        yield
    finally:
        _LAYOUT.reset(token)


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """The same array, laid out as its logical axes say; without a layout, or on one device, nothing happens.

    Activations have rules of their own where a weight has the same axis: `embed` here is the rule `act_embed`,
    since a weight's rows may be sharded over the devices that share out the batch.
    """
    layout = _LAYOUT.get()
    if layout is None or layout.mesh.size == 1 or not layout.rules:
        return x
    named = [f"act_{axis}" if axis in _WEIGHT_AXES else axis for axis in axes]
    what = f"activation [{', '.join(map(str, axes))}]"
    return jax.lax.with_sharding_constraint(x, layout.sharding(named, x.shape, what))
