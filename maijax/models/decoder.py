"""The decoder-only transformer, and what the other rooms call of it.

Weights are created exactly as `maijax.weights` declares them, layers stacked along a leading L, whether the
layers then run as a loop or written out. Residual stream: x + attention(norm(x)), x + mlp(norm(x)), then a
final norm.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from maijax.config import ModelConfig
from maijax.models import cache as caches
from maijax.models import rope
from maijax.models.blocks import Block, Embed, Head, Norm, Sight
from maijax.models.cache import Cache
from maijax.models.initial import sample
from maijax.parallel import order, pipeline, remat
from maijax.parallel.sharding import constrain, rows_over_stages, tree
from maijax.parametrization import output
from maijax.weights import Weight, declare

Params = Any  # nested dict by weight path

UNROLL_ON_CPU = 16  # layers; up to here unrolling pays for its compile time (about 15% of a CPU step)


class Aux(NamedTuple):
    """What mixtures report beside the hidden states; zero and empty for dense models."""

    balance_loss: jax.Array  # sum over mixture layers of eq. 17 without its weight, mean over rows
    expert_load: jax.Array  # [L_moe, E] share of all (position, choice) pairs


class Decoder(nn.Module):
    """Tokens to hidden states after the final norm. `dtype` computes; `unroll` writes the layers out."""

    cfg: ModelConfig  # resolved
    dtype: Any
    unroll: bool

    def stack(self, name: str, depth: int, *, mixture: bool) -> nn.Module:
        block = Block
        if self.cfg.remat != "none":
            # A loop's body is its own fence; written out, common subexpressions would undo the recomputation.
            block = nn.remat(block, policy=remat.POLICIES[self.cfg.remat], prevent_cse=self.unroll)
        axes: Any = (0, nn.broadcast)  # a layer's own slice of the cache; the same sight for all
        scanned = nn.scan(
            block, variable_axes={"params": 0, "intermediates": 0}, split_rngs={"params": True}, in_axes=axes,
            length=depth, unroll=depth if self.unroll else 1,
        )
        return scanned(cfg=self.cfg, dtype=self.dtype, root=name, mixture=mixture, name=name)

    def piped(self, name: str, depth: int, x_BSD: jax.Array, sight: Sight, *, mixture: bool) -> tuple[jax.Array, Any]:
        """The stack of that name over the stages of the mesh; a few layers before the mixtures are not worth it."""
        block = Block(cfg=self.cfg, dtype=self.dtype, root=name, mixture=mixture, parent=None)

        def layer(weights: Params, x_BSD: jax.Array, sight: Sight) -> tuple[jax.Array, Any]:
            x_BSD, (_, stats) = block.apply({"params": weights}, x_BSD, None, sight)
            return x_BSD, stats

        def tied(weights: Params, x_BSD: jax.Array, sight: Sight) -> tuple[jax.Array, Any]:
            # Else what needs weights alone, to gather them, would be done before the loop, and kept for all layers.
            weights, x_BSD = jax.lax.optimization_barrier((weights, x_BSD))
            return layer(weights, x_BSD, sight)

        one = layer
        if self.cfg.remat != "none":
            one = jax.checkpoint(tied, policy=remat.POLICIES[self.cfg.remat], prevent_cse=False)
        weights = self.variables["params"][name]
        if name == "dense_layers":
            with rows_over_stages(x_BSD.shape[0]):
                return jax.lax.scan(lambda x, w: one(w, x, sight), x_BSD, weights)
        declared = tree({w.path: w for w in declare(self.cfg)})[name]
        return pipeline.run(one, weights, declared, x_BSD, sight, depth=depth, dtype=self.dtype)

    @nn.compact
    def __call__(
        self,
        tokens_BS: jax.Array,
        segments_BS: jax.Array | None,
        positions_BS: jax.Array,
        cache: Cache | None = None,
    ) -> tuple[jax.Array, Aux, Cache | None]:
        cfg = self.cfg
        turn = rope.rotation(
            cfg.attention.rope,
            jnp.maximum(positions_BS, 0),
            head_dim=cfg.attention.head_dim,
            context=cfg.context,
            total=tokens_BS.shape[1] if cache is None else cache.total_B,
        )
        sight = Sight(turn, segments_BS, None if cache is None else positions_BS)
        x_BSD = Embed(cfg=cfg, dtype=self.dtype, root="embed", name="embed")(tokens_BS)
        x_BSD = constrain(x_BSD, "batch", "residual_sequence", "embed")

        first_dense = cfg.moe.first_dense if cfg.moe else 0
        stacks = [("dense_layers", 0, first_dense, False)] if first_dense else []
        stacks.append(("layers", first_dense, cfg.num_layers, cfg.moe is not None))
        fresh, stats = [], None
        for name, start, stop, mixture in stacks:
            if cache is None and pipeline.stages() > 1:
                x_BSD, stats = self.piped(name, stop - start, x_BSD, sight, mixture=mixture)
                continue
            stored = None if cache is None else (cache.k_LBTGK[start:stop], cache.v_LBTGK[start:stop])
            stack = self.stack(name, stop - start, mixture=mixture)
            x_BSD, (new, stats) = stack(x_BSD, stored, sight)  # pyright: ignore[reportCallIssue]
            fresh.append(new)

        # The logits' multiplier, where it costs least: on the norm's scale.
        norm = Norm(cfg=cfg, dtype=self.dtype, root="final_norm", name="final_norm", multiplier=output(cfg))
        x_BSD = norm(x_BSD)
        if not cfg.tied_head:
            Head(cfg=cfg, dtype=self.dtype, root="head", name="head")()
        aux = Aux(jnp.zeros(()), jnp.zeros((0, 0)))
        if stats is not None:
            aux = Aux(jnp.sum(stats.balance_loss), stats.load_E)
        if cache is not None:
            k_LBSGK, v_LBSGK = (jnp.concatenate(parts) for parts in zip(*fresh, strict=True))
            cache = caches.extend(cache, k_LBSGK, v_LBSGK, positions_BS)
        return x_BSD, aux, cache


def resolve(cfg: ModelConfig, platform: str) -> ModelConfig:
    """The same model with every "auto" decided for a platform ("cpu", "gpu", "tpu")."""
    on_cpu = platform == "cpu"
    dtype, layers = cfg.dtype, cfg.layers
    if dtype == "auto":
        dtype = "float32" if on_cpu else "bfloat16"
    if layers == "auto":
        layers = "unroll" if on_cpu and cfg.num_layers <= UNROLL_ON_CPU else "scan"
    kernels = cfg.kernels
    if kernels == "auto":
        kernels = {"tpu": "tpu", "gpu": "gpu", "cuda": "gpu"}.get(platform, "xla")
    return dataclasses.replace(cfg, dtype=dtype, layers=layers, kernels=kernels)


def compute_dtype(cfg: ModelConfig) -> Any:
    """The jnp dtype of the activations on this process's backend."""
    return jnp.dtype(resolve(cfg, jax.default_backend()).dtype)


def build(cfg: ModelConfig) -> Decoder:
    """The Linen module for this process's backend."""
    cfg = resolve(cfg, jax.default_backend())
    return Decoder(cfg=cfg, dtype=jnp.dtype(cfg.dtype), unroll=cfg.layers == "unroll")


def init(cfg: ModelConfig, key: jax.Array) -> Params:
    """Fresh float32 weights; each depends on the key and its own path, not on mesh, scan or the rest."""

    def one(weight: Weight) -> jax.Array:
        value = sample(weight, key, weight.sizes)
        if "V" in weight.letters and cfg.padded_vocab > cfg.vocab_size:
            axis = weight.letters.index("V")
            rows = jax.lax.broadcasted_iota(jnp.int32, weight.sizes, axis)
            value = jnp.where(rows < cfg.vocab_size, value, 0.0)
        return value

    return tree({weight.path: one(weight) for weight in declare(cfg)})


def abstract(cfg: ModelConfig) -> Params:
    """The tree of `init` as ShapeDtypeStructs; takes no memory."""
    return tree({w.path: jax.ShapeDtypeStruct(w.sizes, jnp.float32) for w in declare(cfg)})


def restart(segments_BS: jax.Array) -> jax.Array:
    """Positions that count from 0 in each document of a packed row, int32."""
    index_BS = jax.lax.broadcasted_iota(jnp.int32, segments_BS.shape, 1)
    changed_BS = jnp.diff(segments_BS, axis=1, prepend=segments_BS[:, :1]) != 0
    starts_BS = jax.lax.cummax(jnp.where(changed_BS, index_BS, 0), axis=1)
    return index_BS - starts_BS


def _apply(params: Params, cfg: ModelConfig, *inputs: Any) -> Any:
    return build(cfg).apply({"params": params}, *inputs)


def hidden(
    params: Params,
    cfg: ModelConfig,
    tokens_BS: jax.Array,
    segments_BS: jax.Array | None = None,
    positions_BS: jax.Array | None = None,
) -> tuple[jax.Array, Aux]:
    """[B, S, D] states after the final norm, times the parametrisation's output multiplier, in the compute dtype.

    Tokens see earlier tokens of their own segment (1.. in a row; 0 is padding). Positions, for the rotation,
    default to counting from 0 in each segment.
    """
    if positions_BS is None:
        segments = jnp.zeros(tokens_BS.shape, jnp.int32) if segments_BS is None else segments_BS
        positions_BS = restart(segments)
    # Where devices share out a row, its tokens lie in an order that gives all equal work; nobody outside knows.
    dealt = (order.deal(x) for x in (tokens_BS, segments_BS, positions_BS))
    x_BSD, aux, _ = _apply(params, cfg, *dealt, None)
    return order.collect(x_BSD), aux


def head(params: Params, cfg: ModelConfig) -> tuple[jax.Array, bool]:
    """The float32 output matrix, and whether it is the embedding's [V, D] (True) or a head's [D, V]."""
    if cfg.tied_head:
        return params["embed"]["w_embed"], True
    return params["head"]["w_head"], False


def project(params: Params, cfg: ModelConfig, x_BSD: jax.Array) -> jax.Array:
    """Hidden states to float32 logits over the true vocabulary (padding cut off), softcapped if asked."""
    matrix, transposed = head(params, cfg)
    formula = "BSD,VD->BSV" if transposed else "BSD,DV->BSV"
    logits_BSV = jnp.einsum(formula, x_BSD, matrix.astype(x_BSD.dtype), preferred_element_type=jnp.float32)
    logits_BSV = constrain(logits_BSV, "batch", "sequence", "vocab")[..., : cfg.vocab_size]
    if cfg.logit_softcap is not None:
        logits_BSV = cfg.logit_softcap * jnp.tanh(logits_BSV / cfg.logit_softcap)
    return logits_BSV


def logits(
    params: Params,
    cfg: ModelConfig,
    tokens_BS: jax.Array,
    segments_BS: jax.Array | None = None,
    positions_BS: jax.Array | None = None,
) -> jax.Array:
    """[B, S, vocab_size] float32. For evaluation and tests: training never holds all logits at once."""
    return project(params, cfg, hidden(params, cfg, tokens_BS, segments_BS, positions_BS)[0])


def decode(
    params: Params,
    cfg: ModelConfig,
    cache: Cache,
    tokens_BS: jax.Array,
    positions_BS: jax.Array,
    *,
    pick_B: jax.Array | None = None,
) -> tuple[jax.Array, Cache]:
    """Logits of new tokens that also see the cache's, and the cache with the new tokens in it.

    Each row counts its own positions from 0; negative positions mark padding, on either side. `pick_B` names
    one token of each row to project ([B, 1, vocab_size]); default: all.
    """
    x_BSD, _, cache = _apply(params, cfg, tokens_BS, None, positions_BS, cache)
    if pick_B is not None:
        x_BSD = jnp.take_along_axis(x_BSD, pick_B[:, None, None], axis=1)
    return project(params, cfg, x_BSD), cache
