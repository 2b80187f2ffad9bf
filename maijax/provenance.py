"""Where each value of an experiment comes from, found by comparing values, so that it cannot go stale."""

from __future__ import annotations

import dataclasses
from typing import Any

from maijax import plain, registry
from maijax.config import Experiment

DEFAULT = "default"  # the class's
COMMAND_LINE = "command line"


def explain(experiment: Experiment, base: Experiment | None = None) -> dict[str, str]:
    """Path -> origin of every value, in the order of `flatten`.

    An origin is "default", the full name of a value in configs/, "rule: ..." with the law, "experiment NAME"
    for what its function says, or "command line" for what differs from `base`, the experiment as registered.
    """
    blocks = registry.building_blocks()
    base = experiment if base is None else base
    own = f"experiment {base.name}"
    origins: dict[str, str] = dict.fromkeys(plain.METADATA, own)
    for field in dataclasses.fields(base):
        if field.name not in plain.METADATA:
            _explain(getattr(base, field.name), field.name, None, blocks, origins, own)
    before = plain.flatten(base)
    origins |= {path: f"rule: {law}" for path, law in base.rules if path in before}
    return {
        path: origins[path] if path in before and before[path] == value else COMMAND_LINE
        for path, value in plain.flatten(experiment).items()
    }


def _explain(
    block: Any, path: str, named: tuple[str, Any] | None, blocks: dict[str, object],
    origins: dict[str, str], own: str,
) -> None:
    """Adds the origin of each value in a block; `named` is the building block that its parent came from."""
    if named is None or type(named[1]) is not type(block):
        named = _nearest(block, blocks)
    for field in dataclasses.fields(block):
        value, here = getattr(block, field.name), f"{path}.{field.name}"
        theirs = getattr(named[1], field.name) if named else dataclasses.MISSING
        inherited = (named[0], theirs) if named else None
        if dataclasses.is_dataclass(value):
            _explain(value, here, inherited, blocks, origins, own)
        elif isinstance(value, tuple) and value and dataclasses.is_dataclass(value[0]):
            for i, item in enumerate(value):
                part = (named[0], theirs[i]) if named and isinstance(theirs, tuple) and i < len(theirs) else None
                _explain(item, f"{here}[{i}]", part, blocks, origins, own)
        elif named is not None and value != theirs:
            origins[here] = own
        elif value == field.default:
            origins[here] = DEFAULT
        else:
            origins[here] = own if named is None else named[0]


def _nearest(block: Any, blocks: dict[str, object]) -> tuple[str, Any] | None:
    """The building block of the same type that this one was most likely made from.

    The one that shares the most values which nobody has by default; among equals, the one with the fewest
    other differences. None if not a single such value is shared.
    """
    mine = dict(plain.leaves(block))
    usual = {f.name: f.default for f in dataclasses.fields(block)}
    best: tuple[tuple[int, int], tuple[str, Any]] | None = None
    for name, other in blocks.items():
        if type(other) is not type(block):
            continue
        theirs = dict(plain.leaves(other))
        same = [path for path, value in mine.items() if path in theirs and theirs[path] == value]
        telling = [path for path in same if mine[path] != usual.get(path, dataclasses.MISSING)]
        score = (len(telling), len(same) - len(theirs))
        if telling and (best is None or score > best[0]):
            best = score, (name, other)
    return best[1] if best else None
