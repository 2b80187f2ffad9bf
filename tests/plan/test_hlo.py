"""Reading compiled programs: trip counts, groups of devices, bytes, on short texts and on programs compiled here."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, PartitionSpec

from maijax.config import MESH_AXES
from maijax.plan import collectives, dump, hlo

SIZES = dict.fromkeys(MESH_AXES, 1) | {"data": 2, "fsdp": 2, "tensor": 2}

PROGRAM = """\
HloModule jit_step, is_scheduled=true

%all-reduce-scatter.1 (input: bf16[8,64]) -> bf16[4,64] {
  %input = bf16[8,64]{1,0:T(8,128)(2,1)} parameter(0)
  %all-reduce.1 = bf16[8,64]{1,0:T(8,128)(2,1)} all-reduce(%input), channel_id=8, replica_groups={{0,1},{2,3},{4,5},{6,7}}, to_apply=%add
  ROOT %dynamic-slice.1 = bf16[4,64]{1,0} dynamic-slice(%all-reduce.1, %constant.1), dynamic_slice_sizes={4,64}
}

%started (p: bf16[4,64]) -> (bf16[4,64], bf16[8,64]) {
  %p = bf16[4,64]{1,0} parameter(0)
  %all-gather.1 = bf16[8,64]{1,0} all-gather(%p), channel_id=1, replica_groups=[4,2]<=[8], dimensions={0}, backend_config={"async_collective_fusion_config":{"flag_end":"-1"}}
  ROOT %custom-call.1 = (bf16[4,64]{1,0}, bf16[8,64]{1,0}) custom-call(%all-gather.1), custom_call_target="AsyncCollectiveStart"
}

%carried_on (p: bf16[4,64]) -> bf16[8,64] {
  %p = bf16[4,64]{1,0} parameter(0)
  %all-gather.2 = bf16[8,64]{1,0} all-gather(%p), channel_id=1, replica_groups=[4,2]<=[8], dimensions={0}, backend_config={"async_collective_fusion_config":{"flag_end":"8"}}
  ROOT %custom-call.2 = bf16[8,64]{1,0} custom-call(%all-gather.2), custom_call_target="AsyncCollectiveDone"
}

%inner_condition (c: (s32[], s32[])) -> pred[] {
  %c = (s32[]{:T(128)}, s32[]{:T(128)}) parameter(0)
  %counter = s32[]{:T(128)} get-tuple-element(%c), index=0
  %bound = s32[]{:T(128)} get-tuple-element(%c), index=1
  ROOT %less = pred[] compare(%counter, %bound), direction=LT
}

%inner_body (b: (s32[], s32[])) -> (s32[], s32[]) {
  %b = (s32[], s32[]) parameter(0)
  %counter.1 = s32[] get-tuple-element(%b), index=0
  %two = s32[] constant(2)
  %next = s32[] add(%counter.1, %two)
  %bound.1 = s32[] get-tuple-element(%b), index=1
  %work = f32[8]{0} fusion(%counter.1), kind=kLoop, calls=%fused, backend_config={"estimated_cycles":"100"}
  ROOT %out = (s32[], s32[]) tuple(%next, %bound.1)
}

%fused (x: s32[]) -> f32[8] {
  %x = s32[] parameter(0)
  ROOT %made = f32[8]{0} broadcast(%x), backend_config={"estimated_cycles":"7"}
}

%condition (c.1: (u32[], bf16[4,64])) -> pred[] {
  %c.1 = (u32[], /*index=1*/bf16[4,64]{1,0}) parameter(0)
  %counter.2 = u32[] get-tuple-element(%c.1), index=0
  %constant.2 = u32[]{:T(128)} constant(24)
  ROOT %less.1 = pred[] compare(%counter.2, %constant.2), direction=LT
}

%body (b.1: (u32[], bf16[4,64])) -> (u32[], bf16[4,64]) {
  %b.1 = (u32[], bf16[4,64]{1,0}) parameter(0)
  %counter.3 = u32[] get-tuple-element(%b.1), index=0
  %one = u32[] constant(1)
  %next.1 = u32[] add(%counter.3, %one)
  %rows = bf16[4,64]{1,0} get-tuple-element(%b.1), index=1
  %start = (bf16[4,64]{1,0}, bf16[8,64]{1,0}) fusion(%rows), kind=kCustom, calls=%started
  %done = bf16[8,64]{1,0} fusion(%rows), kind=kCustom, calls=%carried_on, backend_config={"estimated_cycles":"1000"}
  %scattered = bf16[4,64]{1,0} fusion(%done), kind=kCustom, calls=%all-reduce-scatter.1
  %kernel = bf16[4,64]{1,0} custom-call(%rows), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"block": {\\"q\\": 512}
}}, backend_config={"custom_call_config":{"body":"x","cost_estimate":{"flops":"50","bytes_accessed":"1"}}}
  %zero = s32[] constant(0)
  %five = s32[] constant(5)
  %entered = (s32[], s32[]) tuple(%zero, %five)
  %while.2 = (s32[], s32[]) while(%entered), condition=%inner_condition, body=%inner_body
  ROOT %out.1 = (u32[], bf16[4,64]{1,0}) tuple(%next.1, %scattered)
}

%rare (r: f32[8]) -> f32[8] {
  ROOT %r = f32[8]{0} parameter(0)
}

%usual (u: f32[8]) -> f32[8] {
  %u = f32[8]{0} parameter(0)
  %all-reduce-start.1 = f32[8]{0} all-reduce-start(%u), replica_groups={}, to_apply=%add
  ROOT %all-reduce-done.1 = f32[8]{0} all-reduce-done(%all-reduce-start.1)
}

ENTRY %main (a: bf16[4,64], g: f32[8]) -> f32[8] {
  %a = bf16[4,64]{1,0} parameter(0)
  %g = f32[8]{0} parameter(1)
  %four = u32[] constant(4)
  %init = (u32[], bf16[4,64]{1,0}) tuple(%four, %a)
  %while.1 = (u32[], bf16[4,64]{1,0}) while(%init), condition=%condition, body=%body
  %gather-start = (bf16[4,64]{1,0}, bf16[8,64]{1,0}) all-gather-start(%a), replica_groups=[4,2]<=[2,2,2]T(1,2,0), dimensions={0}
  %gather-done = bf16[8,64]{1,0} all-gather-done(%gather-start)
  %sent = (bf16[4,64]{1,0}, bf16[4,64]{1,0}, u32[], u32[]) collective-permute-start(%a), source_target_pairs={{0,1},{1,0},{2,3},{3,2},{4,4}}
  ROOT %choice = f32[8]{0} conditional(%p, %g, %g), branch_computations={%rare, %usual}
}
"""  # noqa: E501


# As newer compilers write it: no instruction of its own for an element of a tuple.
IN_PLACE = re.sub(r"  %counter\.(\d) = u32\[\] get-tuple-element.*\n", "", PROGRAM)
IN_PLACE = IN_PLACE.replace("%counter.2", "%c.1#0").replace("%counter.3", "%b.1#0")


@pytest.mark.parametrize("text", [PROGRAM, IN_PLACE], ids=["named", "in place"])
def test_a_body_counts_as_often_as_its_loop_goes_round(text):
    program = hlo.parse(text)
    loops = {v.instruction.name: (program.trips(v.instruction), v.times) for v in program.visits()
             if v.instruction.op == "while"}
    # From 4 to 24 by 1; inside, from 0 to 5 by 2, the bound carried along.
    assert loops == {"while.1": (20, 1), "while.2": (3, 20)}
    assert program.unknown_loops() == []
    found = dump.work(program, SIZES)
    assert found.cycles == 20 * 1000 + 20 * 3 * 100  # what is fused runs with its fusion
    assert (found.kernels, found.kernel_names, found.kernel_flops) == (20, ("kernel",), 20 * 50)


def test_collectives_by_kind_and_axis():
    found = {(t.kind, t.axes): (t.times, t.sent) for t in collectives.read(hlo.parse(PROGRAM), SIZES)}
    whole = 8 * 64 * 2  # bytes
    assert found == {
        ("all-gather", ("tensor",)): (20, 20 * whole // 2),  # carried on by a second fusion, counted once
        ("reduce-scatter", ("tensor",)): (20, 20 * whole // 2),
        ("all-gather", ("data",)): (1, whole // 2),
        ("permute", ("tensor",)): (1, whole // 2 + 4),
        ("all-reduce", ("data", "fsdp", "tensor")): (1, 2 * 8 * 4 * 7 // 8),
    }


def test_a_loop_of_unknown_length_is_named_and_counted_once():
    text = PROGRAM.replace("%constant.2 = u32[]{:T(128)} constant(24)", "%constant.2 = u32[] custom-call(%c.1)")
    program = hlo.parse(text)
    assert program.unknown_loops() == ["while.1"]
    assert {v.times for v in program.visits() if v.computation == "body"} == {1}


def groups(axes: tuple[str, ...]) -> np.ndarray:
    """[groups, members]: an independent answer, by numpy."""
    names = list(SIZES)
    places = np.arange(8).reshape(tuple(SIZES.values()))
    last = [names.index(axis) for axis in axes]
    moved = np.moveaxis(places, last, range(-len(last), 0))
    return moved.reshape(-1, math.prod(SIZES[axis] for axis in axes))


@pytest.mark.parametrize(
    ("text", "axes"),
    [
        ("{{0,1},{2,3},{4,5},{6,7}}", ("tensor",)),
        ("[4,2]<=[8]", ("tensor",)),
        ("[2,4]<=[8]", ("fsdp", "tensor")),
        ("[4,2]<=[2,4]T(1,0)", ("data",)),
        ("[4,2]<=[2,2,2]T(0,2,1)", ("fsdp",)),
        ("[2,4]<=[2,2,2]T(1,0,2)", ("data", "tensor")),
        ("mesh['a'=2,'b'=2,'c'=2] {'b'}", ("fsdp",)),
        ("mesh['a'=2,'b'=2,'c'=2] {'a','c'}", ("data", "tensor")),
        ("mesh['a'=8] {'a':(2)2}", ("fsdp",)),
        ("mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}", ("data",)),
        ("{}", ("data", "fsdp", "tensor")),
    ],
)
def test_every_form_of_a_group(text, axes):
    line = f"  %x = f32[8]{{0}} all-gather(%a), channel_id=1, replica_groups={text}, dimensions={{0}}"
    program = hlo.parse("ENTRY %main (a: f32[4]) -> f32[8] {\n" + line + "\n}\n")
    (found,) = collectives.read(program, SIZES)
    assert found.axes == axes
    one = program.computations["main"][0]
    (members,) = collectives._group(one, SIZES)
    assert sorted(members) in [sorted(group) for group in groups(axes).tolist()]


@pytest.mark.parametrize("axes", [("tensor",), ("fsdp",), ("data",), ("data", "tensor"), ("fsdp", "tensor"),
                                  ("data", "fsdp", "tensor")])
def test_programs_compiled_here(axes):
    """Known traffic in a loop: the compiler's own text gives back its kind, axes, times and bytes."""
    mesh = Mesh(np.array(jax.devices()).reshape(tuple(SIZES.values())), MESH_AXES,
                axis_types=(AxisType.Auto,) * len(MESH_AXES))
    ways = math.prod(SIZES[axis] for axis in axes)

    def body(x, _):
        whole = jax.lax.all_gather(x * 2, axes, tiled=True)
        return jax.lax.psum_scatter(jnp.sin(whole), axes, tiled=True), None

    def f(x):
        x, _ = jax.lax.scan(body, x, None, length=11)
        return jax.lax.psum(x, axes)

    spec = PartitionSpec(axes)
    mapped = jax.jit(jax.shard_map(f, mesh=mesh, in_specs=spec, out_specs=PartitionSpec(), check_vma=False))
    text = mapped.lower(jax.ShapeDtypeStruct((ways * 16, 128), jnp.float32)).compile().as_text()
    found = collectives.read(hlo.parse(text), SIZES)
    here = 16 * 128 * 4
    by_kind = {t.kind: (t.axes, t.ways, t.times, t.sent) for t in found}
    assert by_kind["all-gather"] == (axes, ways, 11, 11 * here * (ways - 1))
    assert by_kind["reduce-scatter"] == (axes, ways, 11, 11 * here * (ways - 1))
    assert by_kind["all-reduce"] == (axes, ways, 1, round(2 * here * (ways - 1) / ways))


def test_out_of_memory_is_told_in_bytes():
    said = (
        "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required for HLO "
        "temporaries (24.00G) exceeds available HBM (15.75G). HLO module: jit_step."
    )
    assert dump.refusal(said) == {"needs": 24 * 2**30, "has": int(15.75 * 2**30)}
    assert dump.refusal("RESOURCE_EXHAUSTED: something") == {"needs": 0, "has": 0}
    assert dump.refusal("INTERNAL: a bug") is None


def test_largest_buffers(tmp_path):
    (tmp_path / "module_0000.jit_step.after_optimizations-memory-usage-report.txt").write_text(
        "Memory Space: default (color=0)\nTotal bytes: 3 (3GiB)\n"
        "  cumulative_size;       size;       offset; used_by_n_values; shapes_list\n  ----\n"
        "    1.50GiB( 15%);    512B;    615579648;    5; pred[]\n"
        "    1.75GiB( 17%);  1.50GiB;   2469462016;   13; f32[8,4], 5\xd7bf16[24,8]\n"
        "Memory Space: vmem (color=1)\n    1.75GiB( 17%);  9.00GiB;   0;   13; f32[9]\n"
    )
    assert dump.largest(tmp_path) == [
        {"bytes": int(1.5 * 2**30), "holds": "f32[8,4], 5\xd7bf16[24,8]"}, {"bytes": 512, "holds": "pred[]"},
    ]
