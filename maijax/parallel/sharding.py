"""Logical axes to mesh axes: models name the former, `maijax.rules` says where each one lies on a mesh."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from maijax.config import MeshConfig, ModelConfig
from maijax.dims import LOGICAL_AXES
from maijax.rules import RULES, place
from maijax.weights import Weight, declare

_WEIGHT_AXES = frozenset(LOGICAL_AXES.values())


@dataclasses.dataclass(frozen=True)
class Layout:
    """A mesh, and the value it was made from."""

    mesh: Mesh | AbstractMesh
    config: MeshConfig
    rules: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=lambda: RULES)

    def axes(self, logical: str) -> tuple[str, ...]:
        """The mesh axes larger than 1 that a logical axis is shared out over."""
        return tuple(a for a in self.rules[logical] if self.mesh.shape[a] > 1)

    def ways(self, *mesh_axes: str) -> int:
        """The product of these mesh axes' sizes."""
        return math.prod(self.mesh.shape[a] for a in mesh_axes)

    def spec(self, axes: Sequence[str | None], sizes: Sequence[int], what: str) -> PartitionSpec:
        """Where an array of these logical axes and sizes lies; raises UserError as `rules.place` does."""
        placed = place(axes, sizes, self.mesh.shape, what, self.rules)
        return PartitionSpec(*(found if len(found) > 1 else (found[0] if found else None) for found in placed))

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


def spread() -> Layout | None:
    """The layout in use if it has several devices, else None: what is traced then needs no thought of others."""
    layout = _LAYOUT.get()
    return None if layout is None or layout.mesh.size == 1 else layout


@contextlib.contextmanager
def rows_over_stages(rows: int) -> Iterator[None]:
    """Within it, stages share out the rows of a batch too: for layers outside the pipeline. If they divide them."""
    layout = spread()
    if layout is None or rows % layout.ways(*layout.axes("batch"), "stage"):
        yield
        return
    with use(dataclasses.replace(layout, rules=layout.rules | {"batch": (*layout.rules["batch"], "stage")})):
        yield


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """The same array, laid out as its logical axes say; without a layout, or on one device, nothing happens.

    Where a weight has the same axis, the rule is that of its use, `act_embed` for `embed`: at rest a weight's rows
    are shared out over the devices that share out the batch, and are gathered to be multiplied.
    """
    if (layout := spread()) is None:
        return x
    named = used(axes)
    what = f"activation [{', '.join(map(str, axes))}]"
    return jax.lax.with_sharding_constraint(x, layout.sharding(named, x.shape, what))


def used(axes: Sequence[str | None]) -> tuple[str | None, ...]:
    """The names of a weight's or an activation's logical axes, as the rules have them for arrays in use."""
    return tuple(f"act_{axis}" if axis in _WEIGHT_AXES and axis != "layers" else axis for axis in axes)
