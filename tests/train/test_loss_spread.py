"""The loss on many devices is the loss on one, and so are its gradients, which lie where the arrays lie."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maijax.config import AttentionConfig, MeshConfig, ModelConfig
from maijax.errors import UserError
from maijax.parallel import sharding
from maijax.parallel.mesh import make_mesh
from maijax.parallel.sharding import Layout
from maijax.train.loss import cross_entropy, logit_room, token_losses

B, S, D, V, USED = 8, 16, 16, 40, 33  # over tensor 8 the last device has padding only
AXES = ("data", "fsdp", "expert", "context", "tensor", "stage")
MESHES = [
    *({"data": 1} | {axis: 8} for axis in AXES),
    {"data": 1, "tensor": 2}, {"data": 1, "tensor": 4}, {"data": 1, "fsdp": 2, "stage": 2},
    *({"data": 1, "fsdp": 1} | {a: 2, b: 4} for a, b in itertools.combinations(AXES, 2)),
    {"data": 1, "fsdp": 2, "tensor": 2, "context": 2},
    {"data": 1, "stage": 2, "expert": 2, "tensor": 2},
    {"data": 1, "stage": 2, "context": 2, "tensor": 2},
    {"data": 1, "replica": 2, "fsdp": 2, "stage": 2},
]
CHUNKED = dict(z_loss=0.1, softcap=2.0, logit_bytes=4 * 3 * V)  # a few tokens at once, the last chunk not full


def name(sizes: dict[str, int]) -> str:
    return "_".join(f"{axis}{size}" for axis, size in sizes.items() if size > 1)


def layout(sizes: dict[str, int]) -> Layout:
    mesh = MeshConfig(**sizes)
    devices = int(np.prod([getattr(mesh, a) for a in ("replica", *AXES)]))
    return Layout(make_mesh(mesh, jax.devices()[:devices]), mesh)


def problem(is_VD: bool):
    rng = np.random.default_rng(0)
    hidden, head = (rng.standard_normal(shape).astype(np.float32) for shape in ((B, S, D), (V, D)))
    targets = rng.integers(0, USED, (B, S)).astype(np.int32)
    weights = (rng.random((B, S)) * (rng.random((B, S)) > 0.3)).astype(np.float32)
    return hidden, (head if is_VD else head.T.copy()), targets, weights


def places(place: Layout, is_VD: bool):
    hidden = place.sharding(("batch", "residual_sequence", "act_embed"), (B, S, D), "hidden")
    axes = ("vocab", "embed") if is_VD else ("embed", "vocab")
    head = place.sharding(axes, (V, D) if is_VD else (D, V), "head")
    return hidden, head, place.batch((B, S)), place.batch((B, S))


def gradients(is_VD: bool, place: Layout | None, **options):
    """(hidden, head, targets, weights) -> ((0.5 loss_sum, sums), gradients), traced for a layout."""

    def loss(hidden, head, targets, weights):
        found = cross_entropy(hidden, head, targets, weights, head_is_VD=is_VD, vocab_size=USED, **options)
        return 0.5 * found.loss_sum, found

    def run(*arrays):
        with sharding.use(place):
            return jax.value_and_grad(loss, (0, 1), has_aux=True)(*arrays)

    return jax.jit(run) if place is None else jax.jit(run, in_shardings=places(place, is_VD))


def check(sizes: dict[str, int], is_VD: bool, **options) -> None:
    place, arrays = layout(sizes), problem(is_VD)
    want, want_grads = gradients(is_VD, None, **options)(*arrays)
    found, grads = gradients(is_VD, place, **options)(*arrays)
    np.testing.assert_allclose(jax.tree.leaves(found), jax.tree.leaves(want), rtol=1e-5)
    for grad, other, where in zip(grads, want_grads, places(place, is_VD), strict=False):
        np.testing.assert_allclose(grad, other, rtol=1e-5, atol=1e-6)
        assert grad.sharding.is_equivalent_to(where, grad.ndim)


@pytest.mark.parametrize("is_VD", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("sizes", MESHES, ids=name)
def test_sums_and_gradients(sizes, is_VD):
    check(sizes, is_VD, **CHUNKED)


@pytest.mark.parametrize("options", [dict(), dict(z_loss=0.1), dict(softcap=2.0)], ids=str)
@pytest.mark.parametrize("sizes", [{"data": 1, "tensor": 8}, {"data": 1, "fsdp": 2, "tensor": 2, "stage": 2}], ids=name)
def test_options(sizes, options):
    check(sizes, True, **options)


@pytest.mark.parametrize(
    "sizes", [{"data": 1, "tensor": 8}, {"data": 1, "expert": 2, "context": 2, "stage": 2}, {"data": 2, "fsdp": 4}],
    ids=name,
)
def test_without_gradient(sizes):
    place, arrays = layout(sizes), problem(False)
    hidden, head, targets, weights = arrays
    one = dict(head_is_VD=False, vocab_size=USED, softcap=2.0)

    def run(hidden, head, targets, weights):
        with sharding.use(place):
            sums = cross_entropy(hidden, head, targets, weights, z_loss=0.1, **one)
            return sums, token_losses(hidden, head, targets, **one)

    sums, each = jax.jit(run, in_shardings=places(place, False))(*arrays)
    np.testing.assert_allclose(sums, cross_entropy(*arrays, z_loss=0.1, **one), rtol=1e-5)
    np.testing.assert_allclose(each, token_losses(hidden, head, targets, **one), rtol=1e-5)
    assert each.sharding.is_equivalent_to(place.sharding(("batch", "loss_sequence"), (B, S), "each"), 2)


def test_far_logits_stay_finite():
    place, (hidden, *others) = layout({"data": 1, "fsdp": 2, "tensor": 4}), problem(True)
    (value, _), grads = gradients(True, place)(hidden * np.float32(1e3), *others)
    assert np.isfinite(value) and all(np.isfinite(np.asarray(grad)).all() for grad in grads)


def test_bfloat16_hidden_and_float32_head():
    place, (hidden, *others) = layout({"data": 1, "fsdp": 2, "tensor": 2, "stage": 2}), problem(True)
    hidden = jnp.asarray(hidden, jnp.bfloat16)
    (want, _), want_grads = gradients(True, None)(hidden, *others)
    (value, _), grads = gradients(True, place)(hidden, *others)
    assert (value.dtype, grads[0].dtype, grads[1].dtype) == (jnp.float32, jnp.bfloat16, jnp.float32)
    np.testing.assert_allclose(value, want, rtol=1e-5)
    for grad, other in zip(grads, want_grads, strict=True):
        np.testing.assert_allclose(np.asarray(grad, np.float32), np.asarray(other, np.float32), rtol=2e-2, atol=2e-2)


def test_one_gather_and_one_reduction_of_the_head_outside_the_loop():
    """In several chunks, what a loop's body sends is a few numbers per token."""
    place = layout({"data": 1, "fsdp": 2, "context": 2, "tensor": 2})
    lowered = gradients(True, place, **CHUNKED).lower(*problem(True))
    assert lowered.as_text().count("stablehlo.reduce_scatter") == 2  # of hidden over tensor, of the head
    text = lowered.compile().as_text()
    assert f"f32[{V},{D}]" not in text and f"f32[{V // 2},{D}]" in text
    assert f"f32[{B * S},{V}]" not in text


def test_a_device_bounds_its_own_logits():
    """1 GiB of logits over 8 devices in chunks of 64 MiB each: two chunks, not sixteen."""
    place = layout({"data": 1, "fsdp": 2, "context": 2, "tensor": 2})
    hidden, head, targets, weights = (8, 512, D), (65536, D), (8, 512), (8, 512)
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (hidden, head, targets, weights)]
    arrays[2] = jax.ShapeDtypeStruct(targets, jnp.int32)
    text = gradients(True, place).lower(*arrays).as_text()
    assert "512x32768xf32" in text and "1024x32768xf32" not in text


def test_room_for_logits_by_platform():
    heads = AttentionConfig(num_heads=1, kv_heads=1, head_dim=8)
    model = ModelConfig(num_layers=1, d_model=D, d_ff=D, vocab_size=USED, context=S, attention=heads, kernels="xla")
    assert logit_room(model) == 64 * 2**20
    assert {logit_room(dataclasses.replace(model, kernels=kernels)) for kernels in ("tpu", "gpu")} == {2**28}


def test_sizes_that_do_not_divide():
    place, (hidden, *others) = layout({"data": 1, "fsdp": 2, "tensor": 4}), problem(True)
    with pytest.raises(UserError, match="hidden"), sharding.use(place):
        cross_entropy(hidden[:, :14], *others, head_is_VD=True, vocab_size=USED)
