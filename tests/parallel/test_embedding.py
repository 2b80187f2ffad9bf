"""The table shared out over many devices gives what one device gives, and so does its gradient."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maijax.config import AttentionConfig, MeshConfig, ModelConfig
from maijax.errors import UserError
from maijax.models import decoder
from maijax.parallel import embedding, sharding
from maijax.parallel.mesh import make_mesh
from maijax.parallel.sharding import Layout

B, S, V, D = 8, 16, 24, 32
AXES = ("data", "fsdp", "expert", "context", "tensor", "stage")
MESHES = [
    *({"data": 1, "fsdp": 1} | {axis: 8} for axis in AXES),
    {"data": 1, "tensor": 2}, {"data": 1, "tensor": 4}, {"data": 1, "stage": 3},
    *({"data": 1, "fsdp": 1} | {a: 2, b: 4} for a, b in itertools.combinations(AXES, 2)),
    {"data": 1, "fsdp": 2, "tensor": 2, "context": 2},
    {"data": 1, "stage": 2, "expert": 2, "tensor": 2},
    {"data": 1, "fsdp": 2, "expert": 2, "context": 2},
    {"data": 1, "replica": 2, "context": 2, "stage": 2},
]


def name(sizes: dict[str, int]) -> str:
    return "_".join(f"{axis}{size}" for axis, size in sizes.items() if size > 1)


def layout(sizes: dict[str, int]) -> Layout:
    mesh = MeshConfig(**sizes)
    devices = int(np.prod([getattr(mesh, a) for a in ("replica", *AXES)]))
    return Layout(make_mesh(mesh, jax.devices()[:devices]), mesh)


def problem(width: int = D) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    table, pull = (rng.standard_normal(shape).astype(np.float32) for shape in ((V, width), (B, S, width)))
    return table, rng.integers(0, V, (B, S)).astype(np.int32), pull


@pytest.mark.parametrize("sizes", MESHES, ids=name)
def test_rows_and_gradient(sizes):
    place = layout(sizes)
    table, tokens, pull = problem(width=D if D % place.ways("stage") == 0 else 24)

    def loss(table, tokens):
        x_BSD = embedding.lookup(table, tokens, place, jnp.float32)
        return jnp.sum(x_BSD * pull), x_BSD

    rest = place.sharding(("vocab", "embed"), table.shape, "table")
    found = jax.jit(jax.grad(loss, has_aux=True), in_shardings=(rest, place.batch(tokens.shape)))
    grad, x_BSD = found(table, tokens)
    np.testing.assert_array_equal(x_BSD, table[tokens])
    want = np.zeros_like(table)
    np.add.at(want, tokens.reshape(-1), pull.reshape(-1, pull.shape[-1]))
    np.testing.assert_allclose(grad, want, rtol=1e-5, atol=1e-5)
    assert grad.sharding.is_equivalent_to(rest, 2)
    out = place.sharding(("batch", "residual_sequence", "act_embed"), x_BSD.shape, "x")
    assert x_BSD.sharding.is_equivalent_to(out, 3)


def test_gradients_are_added_up_in_float32():
    place = layout({"data": 1, "fsdp": 2, "tensor": 2, "stage": 2})
    table, _, _ = problem()
    tokens = np.zeros((B, S), np.int32)  # 1 + 1 + ... in bfloat16 would stop at 256
    tokens = np.tile(tokens, (4, 1))
    grad = jax.jit(jax.grad(lambda t: jnp.sum(embedding.lookup(t, tokens, place, jnp.bfloat16).astype(jnp.float32))))
    np.testing.assert_array_equal(np.asarray(grad(table))[0], np.full(D, tokens.size, np.float32))


def test_the_table_is_never_whole():
    place = layout({"data": 1, "fsdp": 2, "tensor": 2, "context": 2})
    table, tokens, pull = problem()
    loss = lambda table, tokens: jnp.sum(embedding.lookup(table, tokens, place, jnp.float32) * pull)  # noqa: E731
    rest = place.sharding(("vocab", "embed"), table.shape, "table")
    where = (rest, place.batch(tokens.shape))
    text = jax.jit(jax.grad(loss), in_shardings=where, out_shardings=rest).lower(table, tokens).compile().as_text()
    assert f"f32[{V // 2},{D // 4}]" in text
    for whole in (f"[{V},{D}]", f"[{V // 2},{D}]", f"[{V},{D // 4}]"):
        assert whole not in text


MODEL = ModelConfig(
    num_layers=1, d_model=D, d_ff=32, vocab_size=V, context=S, vocab_multiple=8, dtype="float32",
    attention=AttentionConfig(num_heads=4, kv_heads=2, head_dim=8),
)


def test_the_model_looks_up_without_a_gather_of_the_table():
    place = layout({"data": 1, "fsdp": 4, "tensor": 2})
    params = decoder.init(MODEL, jax.random.key(0))
    _, tokens, _ = problem()
    want, _ = decoder.hidden(params, MODEL, tokens)

    def hidden(params, tokens):
        with sharding.use(place):
            return decoder.hidden(params, MODEL, tokens)[0]

    run = jax.jit(hidden, in_shardings=(place.params(MODEL), place.batch(tokens.shape)))
    np.testing.assert_allclose(run(params, tokens), want, rtol=1e-5, atol=1e-5)
    assert f"f32[{V // 2},{D}]" not in run.lower(params, tokens).compile().as_text()


def test_sizes_that_do_not_divide():
    place = layout({"data": 1, "fsdp": 4, "tensor": 2})
    assert embedding.fits(place, (8, 16)) and not embedding.fits(place, (6, 16)) and not embedding.fits(place, (8, 1))
    table, tokens, _ = problem()
    with pytest.raises(UserError, match="table"):
        embedding.lookup(table[:, :30], tokens, place, jnp.float32)
