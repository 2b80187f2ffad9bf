"""The layers' Linen modules: each creates its declared weights and calls plain functions.

Weights are kept in float32 and cast where they are used; norms, rotary positions, softmax and router compute
in float32 whatever the compute dtype.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from maijax import parametrization
from maijax.config import ModelConfig
from maijax.models import cache as caches
from maijax.models import moe, rope
from maijax.models.attention import attend
from maijax.models.flash import Rule
from maijax.models.initial import sample
from maijax.models.kernels import Local
from maijax.models.linear import linear
from maijax.models.mlp import gated_mlp
from maijax.models.norm import layer_norm, rms_norm
from maijax.parallel import embedding, remat
from maijax.parallel.attention import over_devices
from maijax.parallel.sharding import constrain, spread
from maijax.weights import Weight, declare


class Sight(NamedTuple):
    """Where each token stands, the same for every layer."""

    turn: rope.Rotation
    segments_BS: jax.Array | None  # 0: padding
    positions_BS: jax.Array | None  # only beside a cache; below 0: padding

    def valid_BS(self) -> jax.Array | None:
        if self.positions_BS is not None:
            return self.positions_BS >= 0
        return None if self.segments_BS is None else self.segments_BS > 0


@functools.lru_cache(maxsize=128)
def _declared(cfg: ModelConfig) -> dict[str, Weight]:
    return {weight.path: weight for weight in declare(cfg)}


class Declared(nn.Module):
    """A module whose parameters are the declared weights under `root`."""

    cfg: ModelConfig
    dtype: Any
    root: str

    def stored(self, name: str) -> jax.Array:
        """A weight as it lies at rest, float32."""
        weight = _declared(self.cfg)[f"{self.root}/{name}"]
        shape = weight.sizes[weight.letters.startswith("L") :]  # nn.scan adds the layers
        # Flax asks for the shape at every call; how to draw the numbers is traced only where they are drawn.
        draw = self.is_initializing()
        return self.param(name, lambda key: sample(weight, key, shape) if draw else jnp.zeros(shape, jnp.float32))

    def weight(self, name: str, dtype: Any = None) -> jax.Array:
        """A weight to be used."""
        weight, value = _declared(self.cfg)[f"{self.root}/{name}"], self.stored(name)
        # Cast, then gathered from the devices that share it: half the bytes travel.
        return constrain(value.astype(dtype or self.dtype), *weight.logical_axes[len(weight.sizes) - value.ndim :])


def scaled(x: jax.Array, multiplier: float) -> jax.Array:
    """x times a parametrisation's multiplier; the same array where that is 1."""
    return x if multiplier == 1 else x * multiplier


class Norm(Declared):
    multiplier: float = 1.0  # of what comes out

    @nn.compact
    def __call__(self, x_BSD: jax.Array) -> jax.Array:
        scale = scaled(self.weight("scale", jnp.float32), self.multiplier)
        if self.cfg.norm == "layer":
            bias = scaled(self.weight("bias", jnp.float32), self.multiplier)
            return layer_norm(x_BSD, scale, bias, self.cfg.norm_eps)
        return rms_norm(x_BSD, scale, self.cfg.norm_eps)


class Attention(Declared):
    @nn.compact
    def __call__(
        self, x_BSD: jax.Array, stored: tuple[jax.Array, jax.Array] | None, sight: Sight
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array] | None]:
        """Attention's output, and beside a cache the new keys and values."""
        options, eps = self.cfg.attention, self.cfg.norm_eps
        q_BSHK = linear(x_BSD, self.weight("w_q"))
        k_BSGK = linear(x_BSD, self.weight("w_k"))
        v_BSGK = linear(x_BSD, self.weight("w_v"))
        if options.qk_norm:
            q_BSHK = rms_norm(q_BSHK, self.weight("q_scale", jnp.float32), eps)
            k_BSGK = rms_norm(k_BSGK, self.weight("k_scale", jnp.float32), eps)
        q_BSHK = constrain(rope.rotate(q_BSHK, sight.turn), "batch", "sequence", "heads", "head_dim")
        k_BSGK = constrain(rope.rotate(k_BSGK, sight.turn), "batch", "sequence", "kv_heads", "head_dim")
        v_BSGK = constrain(v_BSGK, "batch", "sequence", "kv_heads", "head_dim")
        rule = Rule(window=options.window, softcap=options.softcap, scale=options.head_dim**-0.5)
        if stored is None:
            new = None
            out_BSHK = over_devices(q_BSHK, k_BSGK, v_BSGK, sight.segments_BS, Local(rule, self.cfg.kernels))
        else:
            assert sight.positions_BS is not None
            new = (k_BSGK, v_BSGK)
            k_BTGK, v_BTGK = (
                caches.write(old, fresh, sight.positions_BS) for old, fresh in zip(stored, new, strict=True)
            )
            slots_BT = jnp.broadcast_to(jnp.arange(k_BTGK.shape[1], dtype=jnp.int32)[None], k_BTGK.shape[:2])
            out_BSHK = attend(
                q_BSHK, k_BTGK.astype(self.dtype), v_BTGK.astype(self.dtype),
                q_positions_BS=jnp.maximum(sight.positions_BS, 0), k_positions_BT=slots_BT,
                **dataclasses.asdict(rule),
            )
        out_BSHK = constrain(out_BSHK, "batch", "sequence", "heads", "head_dim")
        return linear(out_BSHK, self.weight("w_o"), contract=2), new


class MLP(Declared):
    @nn.compact
    def __call__(self, x_BSD: jax.Array) -> jax.Array:
        w_gate, w_up, w_down = (self.weight(name) for name in ("w_gate", "w_up", "w_down"))
        return gated_mlp(x_BSD, w_gate, w_up, w_down, self.cfg.activation)


class MoE(Declared):
    @nn.compact
    def __call__(self, x_BSD: jax.Array, valid_BS: jax.Array | None) -> tuple[jax.Array, moe.RouterStats]:
        options = self.cfg.moe
        assert options is not None and self.cfg.kernels != "auto"
        # The router is whole on every device: each routes its own tokens to all experts.
        w_router, bias = constrain(self.stored("w_router"), None, None), constrain(self.stored("router_bias"), None)
        routing = moe.route(x_BSD, w_router, bias, options)
        # Cast, and gathered where they are used.
        w_gate, w_up, w_down = (self.stored(name).astype(self.dtype) for name in ("w_gate", "w_up", "w_down"))
        out_BSD = moe.experts(
            x_BSD, routing, w_gate, w_up, w_down, activation=self.cfg.activation, kernels=self.cfg.kernels
        )
        if options.shared_experts:
            shared = MLP(cfg=self.cfg, dtype=self.dtype, root=f"{self.root}/shared", name="shared")
            more_BSD = shared(constrain(x_BSD, "batch", "sequence", "embed"))
            out_BSD += constrain(more_BSD, "batch", "residual_sequence", "embed")
        return out_BSD, moe.router_stats(routing, valid_BS, options)


class Block(Declared):
    """One layer; `mixture` chooses experts over a plain MLP."""

    mixture: bool

    @nn.compact
    def __call__(
        self, x_BSD: jax.Array, stored: tuple[jax.Array, jax.Array] | None, sight: Sight
    ) -> tuple[jax.Array, tuple[Any, moe.RouterStats | None]]:
        def part(module: type[Declared], name: str) -> Any:
            return module(cfg=self.cfg, dtype=self.dtype, root=f"{self.root}/{name}", name=name)

        share = parametrization.residual(self.cfg)
        x_BSD = remat.layer_input(x_BSD)
        # Where heads and mlp are shared out, so are the tokens between: each sum over them ends in a scatter.
        normed_BSD = constrain(part(Norm, "attention_norm")(x_BSD), "batch", "sequence", "embed")
        out_BSD, new = part(Attention, "attention")(normed_BSD, stored, sight)
        x_BSD = x_BSD + constrain(scaled(out_BSD, share), "batch", "residual_sequence", "embed")
        normed_BSD = part(Norm, "mlp_norm")(x_BSD)
        if self.mixture:  # each token is routed where it is
            out_BSD, stats = part(MoE, "moe")(normed_BSD, sight.valid_BS())
        else:
            out_BSD, stats = part(MLP, "mlp")(constrain(normed_BSD, "batch", "sequence", "embed")), None
        return x_BSD + constrain(scaled(out_BSD, share), "batch", "residual_sequence", "embed"), (new, stats)


class Embed(Declared):
    @nn.compact
    def __call__(self, tokens_BS: jax.Array) -> jax.Array:
        layout = spread()
        if layout is not None and embedding.fits(layout, tokens_BS.shape):
            return embedding.lookup(self.stored("w_embed"), tokens_BS, layout, self.dtype)
        # Rows are gathered before the cast: a table of 100k rows is not copied for a few of them.
        return self.weight("w_embed", jnp.float32)[tokens_BS].astype(self.dtype)


class Head(Declared):
    """Holds the output matrix; `head` and the loss read it from the tree."""

    @nn.compact
    def __call__(self) -> None:
        self.stored("w_head")
