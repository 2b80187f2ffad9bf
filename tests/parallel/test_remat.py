"""Under remat "attention" and "dots" no attention runs twice; under "full" each does; gradients are the same."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo

from maijax.config import MeshConfig
from maijax.models import attention, flash, kernels
from maijax.models.flash import Rule
from maijax.models.kernels import Local
from maijax.parallel import remat, sharding
from maijax.parallel.attention import over_devices
from maijax.parallel.mesh import make_mesh
from maijax.parallel.sharding import Layout

RULE = Rule(scale=0.3, window=None, softcap=None)
WHOLE = np.zeros((1, 1), np.int32)


def ring(q, k, v):
    config = MeshConfig(data=1, fsdp=1, context=2)
    with sharding.use(Layout(make_mesh(config, jax.devices()[:2]), config)):
        return over_devices(q, k, v, None, Local(RULE, "xla"))


def splash(q, k, v):
    return kernels.splash_attention(q, k, v, None, None, RULE, WHOLE, jnp.int32(0), interpret=True)


def xla(impl):
    return functools.partial(attention.attend, impl=impl, scale=RULE.scale)


# With the operation of the compiled program that tells how often the kernel stands in it.
KERNELS = {
    "blocked": (xla("blocked"), " exponential("), "tiled": (xla("tiled"), " while("), "splash": (splash, " while("),
    "ring": (ring, " while("),
}


def gradients(attend, policy=None, again=True):
    """Of two layers, one scanned over, with respect to their multipliers; and the value."""

    def layer(x, w):
        q, k, v = (part * w for part in x)
        return (jnp.sin(attend(q, k, v)) * w, k, v), None

    once = jax.checkpoint(layer, policy=policy, prevent_cse=False) if again else layer
    return jax.value_and_grad(lambda ws, qkv: jnp.sum(jax.lax.scan(once, qkv, ws)[0][0]))


@pytest.mark.parametrize("name", KERNELS)
def test_what_attention_made_is_kept(name, monkeypatch):
    monkeypatch.setattr(flash, "TILE", 64)
    attend, operation = KERNELS[name]
    rng = np.random.default_rng(0)
    qkv = tuple(jnp.asarray(rng.standard_normal((1, 128, heads, 16)), jnp.float32) for heads in (2, 1, 1))
    ws = jnp.asarray([1.1, 0.9])
    ways = {kept: gradients(attend, remat.POLICIES[kept]) for kept in ("full", "attention", "dots")}
    made = {
        kept: jax.jit(way).lower(ws, qkv).compile()
        for kept, way in (ways | {"none": gradients(attend, again=False)}).items()
    }
    runs = {kept: program.as_text().count(operation) for kept, program in made.items()}
    assert runs["none"] == runs["attention"] == runs["dots"] < runs["full"], runs
    want = made["none"](ws, qkv)
    for program in made.values():
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), program(ws, qkv), want)


def test_what_cudnn_made_is_kept(monkeypatch):
    """Traced as far as a machine without cuDNN can."""
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91_000)
    monkeypatch.setattr(fused_attention_stablehlo, "check_compute_capability", lambda *_: True)
    qkv = tuple(jax.ShapeDtypeStruct((1, 128, heads, 64), jnp.bfloat16) for heads in (2, 1, 1))

    def runs(kept):
        attend = functools.partial(kernels.cudnn_attention, segments_BS=None, rule=RULE)
        program = jax.make_jaxpr(gradients(attend, remat.POLICIES[kept]))(jnp.ones(2, jnp.bfloat16), qkv)
        return str(program).count("dot_product_attention_fwd_wrapper")

    assert runs("full") == 2 and runs("attention") == runs("dots") == 1
