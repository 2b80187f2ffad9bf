"""Attention on context meshes equals one device: outputs and gradients to 1e-5 in float32."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maijax.config import MESH_AXES, MeshConfig
from maijax.errors import UserError
from maijax.models import attention, decoder, flash
from maijax.models.flash import Rule
from maijax.models.kernels import Local
from maijax.parallel import order, sharding
from maijax.parallel.attention import over_devices
from maijax.parallel.mesh import make_mesh
from maijax.parallel.sharding import Layout
from tests.models.tiny_models import MOE, longrope, quick, tiny, weights

B, S, H, G, K = 2, 64, 4, 2, 4
CASES = {
    "plain": {},
    "documents": dict(documents=True),
    "window": dict(window=9),
    "all": dict(window=21, softcap=1.5, documents=True),
}


def layout(attention="ring", **sizes):
    config = MeshConfig(attention=attention, **{"data": 1, "fsdp": 1} | sizes)
    return Layout(make_mesh(config, jax.devices()[: int(np.prod([sizes.get(a, 1) for a in MESH_AXES]))]), config)


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Tiles of 3 tokens, so that pieces of 4 to 16 tokens make several and an odd last one."""
    monkeypatch.setattr(flash, "TILE", 3)
    with jax.numpy_rank_promotion("raise"):
        yield


def arrays(documents=False, batch=B):
    rng = np.random.default_rng(0)
    q, k, v, g = (jnp.asarray(rng.standard_normal((batch, S, h, K)), jnp.float32) for h in (H, G, G, H))
    segments = jnp.asarray(np.sort(rng.integers(0, 4, (batch, S)), axis=1), jnp.int32) if documents else None
    return (q, k, v), g, segments


def dealt(x, ways):
    """Along axis 1, by the definition: device i has pieces i and 2 * ways - 1 - i."""
    parts = np.split(np.asarray(x), 2 * ways, axis=1)
    return jnp.asarray(np.concatenate([parts[p] for i in range(ways) for p in (i, 2 * ways - 1 - i)], axis=1))


def close(got, want, tolerance=1e-5):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(1.0, float(np.abs(b).max())))


def results(local, where, qkv, g, segments, wrap=lambda f: f):
    """The output and the gradients of q, k and v, computed on a layout."""

    def both(qkv, g, segments):
        with sharding.use(where):
            out, back = jax.vjp(wrap(lambda qkv: over_devices(*qkv, segments, local)), qkv)
            return out, back(g)

    return quick(both)(qkv, g, segments)


@functools.cache
def one_device(case):
    kw = dict(CASES[case])
    qkv, g, segments = arrays(kw.pop("documents", False))
    local = Local(Rule(scale=0.7, **{"window": None, "softcap": None} | kw), "xla")
    out = functools.partial(attention.attend, impl="dense", **dataclasses.asdict(local.rule))
    see = lambda qkv: out(*qkv, q_segments_BS=segments, k_segments_BT=segments)  # noqa: E731
    value, back = quick(lambda qkv: jax.vjp(see, qkv))(qkv)
    return local, qkv, g, segments, (value, quick(back)(g))


SIZES = [
    dict(context=2), dict(context=8), dict(context=2, tensor=2), dict(context=2, data=2), dict(context=4, fsdp=2),
    dict(context=2, fsdp=2, tensor=2),
]  # fmt: skip


def name(value):
    return "-".join(f"{axis}{size}" for axis, size in value.items()) if isinstance(value, dict) else None


@pytest.mark.parametrize("way", ["ring", "gather"])
@pytest.mark.parametrize(
    ("mesh", "case"), [*((dict(context=4), case) for case in CASES), *((sizes, "all") for sizes in SIZES)], ids=name
)
def test_context_meshes_equal_one_device(mesh, case, way):
    check(mesh, case, way)


def test_without_context_each_device_has_its_rows_and_heads():
    check(dict(tensor=2, fsdp=2), "all", "ring")


def check(mesh, case, way):
    local, qkv, g, segments, (value, gradients) = one_device(case)
    ways = mesh.get("context", 1)
    where = layout(**mesh, attention=way)
    deal = lambda x: None if x is None else dealt(x, ways)  # noqa: E731
    got = results(local, where, jax.tree.map(deal, qkv), deal(g), deal(segments))
    close(got, jax.tree.map(deal, (value, gradients)))




@pytest.mark.parametrize("way", ["ring", "gather"])
@pytest.mark.parametrize("mesh", [dict(context=2, stage=2), dict(context=2, stage=2, tensor=2), dict(stage=2, data=2)],
                         ids=name)  # fmt: skip
def test_inside_a_vmap_over_stages_and_a_checkpoint(mesh, way):
    if way == "gather" and "context" not in mesh:
        pytest.skip("the same as ring")
    local, qkv, g, segments, (value, gradients) = one_device("all")
    where, ways = layout(attention=way, **mesh), mesh.get("context", 1)

    def stages(x):  # both stages do the same, the second with rows in reverse order
        return jnp.stack([dealt(x, ways), dealt(x[::-1], ways)])

    def both(qkv, g, segments):
        with sharding.use(where):

            def one(qkv, segments):
                return jax.checkpoint(lambda qkv: over_devices(*qkv, segments, local))(qkv)

            every = jax.vmap(one, spmd_axis_name="stage")
            out, back = jax.vjp(lambda qkv: every(qkv, segments), qkv)
            return out, back(g)

    close(quick(both)(jax.tree.map(stages, qkv), stages(g), stages(segments)), jax.tree.map(stages, (value, gradients)))


@pytest.mark.parametrize("ways", [2, 4, 8])
def test_the_dealt_order_is_undone(ways):
    where = layout(context=ways)
    x = jnp.arange(2 * S).reshape(2, S)

    def there_and_back(x):
        with sharding.use(where):
            dealt = order.deal(x)
            return dealt, order.collect(jnp.stack([dealt, -dealt], axis=-1))

    there, back = jax.jit(there_and_back)(x)
    np.testing.assert_array_equal(there, dealt(x, ways))
    np.testing.assert_array_equal(back, np.stack([x, -x], axis=-1))


def test_hidden_states_travel_once():
    """Each device sends its two pieces and gets two: no device ever holds all tokens."""
    where = layout(context=4)
    rows = where.sharding(("batch", "sequence", None), (2, S, 4), "x")

    def collect(x):
        with sharding.use(where):
            return order.collect(x)

    text = jax.jit(collect, in_shardings=rows).lower(jax.ShapeDtypeStruct((2, S, 4), jnp.float32)).compile().as_text()
    assert "collective-permute" in text and "all-gather" not in text


def test_a_row_that_does_not_divide_is_refused():
    with sharding.use(layout(context=4)), pytest.raises(UserError, match="60 tokens .* try 64"):
        order.deal(jnp.zeros((1, 60), jnp.int32))


def test_one_device_has_its_tokens_in_order():
    x = jnp.arange(6).reshape(1, 6)
    assert order.deal(x) is x and order.collect(x) is x


def test_the_ring_holds_no_more_for_longer_rings():
    """Scores of one tile only: the memory of a row of 16 times the tokens grows with the tokens, not their square."""
    local = Local(Rule(scale=0.5, window=None, softcap=None), "xla")
    where, found = layout(context=4), []
    flash.TILE = 64
    for length in (512, 8192):
        shapes = [jax.ShapeDtypeStruct((1, length, 2, 4), jnp.float32, sharding=where.sharding(
            ("batch", "sequence", None, None), (1, length, 2, 4), "q"))] * 3

        def loss(*qkv):
            with sharding.use(where):
                return jnp.sum(over_devices(*qkv, None, local))

        compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(*shapes).compile()
        found.append(compiled.memory_analysis().temp_size_in_bytes)
    assert found[1] < 20 * found[0]


DECODERS = {
    "dense": tiny(attention_window=20, attention_softcap=3.0),
    "longrope, mixture": tiny(moe=MOE, attention_rope=longrope(8, 16), remat="full"),
}


@functools.cache
def decoder_alone(name):
    cfg = DECODERS[name]
    params = weights(cfg)
    rng = np.random.default_rng(3)
    tokens = jnp.asarray(rng.integers(0, cfg.vocab_size, (4, 32)), jnp.int32)
    segments = jnp.asarray(np.sort(rng.integers(1, 4, (4, 32)), axis=1), jnp.int32)
    g = jnp.asarray(rng.standard_normal((4, 32, cfg.d_model)), jnp.float32)
    return params, tokens, segments, g, hidden_and_gradient(cfg, None, params, tokens, segments, g)


def hidden_and_gradient(cfg, where, params, tokens, segments, g):
    def both(params, tokens, segments, g):
        with sharding.use(where):

            def loss(params):
                x, aux = decoder.hidden(params, cfg, tokens, segments)
                return jnp.sum(x * g) + aux.balance_loss, x

            return jax.grad(loss, has_aux=True)(params)

    return quick(both)(params, tokens, segments, g)


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("mesh", [
    dict(context=4), dict(context=4, attention="gather"), dict(context=2, fsdp=2, tensor=2),
], ids=name)  # fmt: skip
def test_the_decoder_on_context_meshes_equals_one_device(name, mesh):
    *given, want = decoder_alone(name)
    close(hidden_and_gradient(DECODERS[name], layout(**mesh), *given), want)
