"""Weights by how they are laid out, and what of them one device holds: few groups, so that a search is quick."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping

from maijax import scaling, weights
from maijax.config import MESH_AXES, ModelConfig, OptimConfig
from maijax.rules import RULES


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
    """All weights of the same logical axes in the same stack."""

    axes: tuple[str, ...]
    stack: str  # "layers", "dense_layers", or "" outside the layers
    depth: int  # layers of the stack
    looked_up: bool  # an input table, of which only rows are read
    size: int  # numbers
    state: int  # bytes of weights, gradients and optimizer state

    @property
    def matrices(self) -> bool:
        """Whether the group is worth counting in traffic: norms and biases are not."""
        return len([axis for axis in self.axes if axis != "layers"]) > 1

    def at_rest(self, mesh: Mapping[str, int]) -> frozenset[str]:
        """The mesh axes that share it out, as `rules.place` does for sizes that divide."""
        return _spread(self.axes, tuple(a for a in MESH_AXES if mesh[a] > 1))

    def in_use(self, mesh: Mapping[str, int]) -> frozenset[str]:
        """Those that still do once it is gathered to be multiplied."""
        return _spread(
            tuple(f"act_{axis}" for axis in self.axes if axis != "layers"),
            tuple(a for a in MESH_AXES if mesh[a] > 1),
        )


@functools.lru_cache(maxsize=4096)
def _spread(axes: tuple[str, ...], used: tuple[str, ...]) -> frozenset[str]:
    return frozenset(a for axis in axes for a in RULES[axis] if a in used)


def ways(mesh: Mapping[str, int], axes: frozenset[str] | tuple[str, ...]) -> int:
    return math.prod(mesh[a] for a in axes)


@functools.lru_cache(maxsize=64)
def groups(model: ModelConfig, optim: OptimConfig) -> tuple[Group, ...]:
    found: dict[tuple, list[weights.Weight]] = {}
    for weight in weights.declare(model):
        stack = weight.path.partition("/")[0] if "L" in weight.letters else ""
        looked_up = weight.group == "embed" and not model.tied_head
        found.setdefault((weight.logical_axes, stack, looked_up), []).append(weight)
    return tuple(
        Group(
            axes=axes, stack=stack, looked_up=looked_up, depth=members[0].sizes[0] if stack else 1,
            size=sum(w.size for w in members), state=sum(scaling.weight_state_bytes(w, optim) for w in members),
        )
        for (axes, stack, looked_up), members in found.items()
    )
