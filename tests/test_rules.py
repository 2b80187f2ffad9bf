"""The one table of the mesh: what lies where, and what is refused with which way out."""

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maijax import registry, rules, weights
from maijax.config import MESH_AXES, MeshConfig
from maijax.dims import LOGICAL_AXES
from maijax.errors import UserError

ALONE = dict.fromkeys(MESH_AXES, 1)


def test_every_axis_has_a_rule_and_rules_name_mesh_axes():
    assert set(LOGICAL_AXES.values()) <= set(rules.RULES)
    assert {f"act_{axis}" for axis in LOGICAL_AXES.values() if axis != "layers"} <= set(rules.RULES)
    assert {axis for axes in rules.RULES.values() for axis in axes} <= set(MESH_AXES)


def test_each_mesh_axis_shares_out_something():
    assert {axis for axes in rules.RULES.values() for axis in axes} == set(MESH_AXES)


def test_a_mesh_axis_shards_one_dim():
    mesh = ALONE | {"expert": 4, "fsdp": 2, "tensor": 2}
    placed = rules.place(("layers", "expert", "embed", "mlp"), (3, 8, 16, 6), mesh, "w")
    assert placed == ((), ("expert",), ("fsdp",), ("tensor",))
    assert rules.place(("embed", "mlp"), (16, 6), mesh, "w") == (("fsdp", "expert"), ("tensor",))


@given(st.sampled_from([w for name in ("phi_test", "mai_500b_moe") for w in weights.declare(registry.get(name).model)]),
       st.lists(st.sampled_from([1, 2, 4]), min_size=7, max_size=7))
def test_shares_divide_the_array_or_are_refused(weight, sizes):
    mesh = dict(zip(MESH_AXES, sizes, strict=True))
    try:
        placed = rules.place(weight.logical_axes, weight.sizes, mesh, weight.path)
    except UserError as error:
        assert "try" in str(error) and weight.path in str(error)
        return
    used = [axis for axes in placed for axis in axes]
    assert len(used) == len(set(used))
    assert weight.size % rules.shares(weight.logical_axes, weight.sizes, mesh, weight.path) == 0
    for axes, size in zip(placed, weight.sizes, strict=True):
        assert size % math.prod(mesh[a] for a in axes) == 0


@pytest.mark.parametrize(
    "mesh, line",
    [
        ({"tensor": 16}, "attention.kv_heads: kv_heads=8 does not divide over mesh tensor 16 = 16 devices; try 16"),
        ({"tensor": 3}, "attention.kv_heads: kv_heads=8 does not divide over mesh tensor 3 = 3 devices; try 6 or 9"),
        ({"fsdp": 4096}, "train.batch_size: batch=2048 does not divide over mesh fsdp 4096 = 4096 devices; try 4096"),
        ({"context": 3}, "must divide into 2 x mesh.context 3 pieces of equal length; try 8190 or 8196"),
        ({"stage": 256}, "mesh.stage 256 x mesh.repeats 1 is more than the 144 layers there are to share out"),
    ],
)
def test_what_does_not_divide_is_named_with_the_nearest(mesh, line):
    found = rules.problems(registry.get("mai_500b"), ALONE | mesh)
    assert any(line in problem for problem in found), found


def test_the_pipeline_asks_for_micro_batches():
    experiment = registry.get("mai_500b")
    few = dataclasses.replace(experiment, mesh=MeshConfig(stage=16, microbatches=8))
    assert any("microbatches=8 must be at least mesh.stage=16" in p for p in rules.problems(few, ALONE | {"stage": 16}))
    odd = dataclasses.replace(experiment, mesh=MeshConfig(stage=4, microbatches=12))
    assert any("try 2040 or 2052" in p for p in rules.problems(odd, ALONE | {"stage": 4}))


def test_all_problems_are_told_at_once():
    found = rules.problems(registry.get("mai_500b"), ALONE | {"tensor": 7, "context": 7})
    assert len(found) >= 5 and len(found) == len(set(found))


@pytest.mark.parametrize("name", registry.names())
def test_registered_experiments_fit_their_mesh(name):
    experiment = registry.get(name)
    devices = math.prod(getattr(experiment.mesh, axis) or 1 for axis in MESH_AXES)
    assert rules.problems(experiment, experiment.mesh.shape(devices)) == []
