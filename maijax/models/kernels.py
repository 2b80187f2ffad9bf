"""Attention on one device by the platform's kernels, and by plain XLA where they do not apply.

"tpu": splash attention (Pallas). "gpu": cuDNN's flash attention. "xla": `attend`, which goes by blocks or by tiles.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from maijax.models import flash
from maijax.models.attention import attend
from maijax.models.flash import Part, Rule
from maijax.parallel.remat import ATTENTION

# Tokens of a block, of queries or of keys; splash asks for multiples of a register's 128 lanes.
_SPLASH_BLOCKS = (512, 256, 128)
# cuDNN takes segments as a bias of S x S numbers a row only; beyond this, tiles need less memory.
_LONGEST_BIAS = 8192
_CUDNN_HEAD_DIM = 128


@dataclasses.dataclass(frozen=True)
class Local:
    """Attention on one device, as `maijax.parallel.attention` asks for it. Hashable."""

    rule: Rule
    kernels: str  # "xla", "tpu" or "gpu"

    def whole(
        self, q_BSHK: jax.Array, k_BSGK: jax.Array, v_BSGK: jax.Array, segments_BS: jax.Array | None
    ) -> jax.Array:
        """Of whole rows, o_BSHK."""
        segments = (segments_BS, segments_BS)
        if self.kernels == "tpu" and splash_applies(q_BSHK, k_BSGK):
            pieces, device = np.zeros((1, 1), np.int32), jnp.int32(0)
            return splash_attention(q_BSHK, k_BSGK, v_BSGK, *segments, self.rule, pieces, device)
        if self.kernels == "gpu" and cudnn_applies(q_BSHK, segments_BS, self.rule):
            try:
                return cudnn_attention(q_BSHK, k_BSGK, v_BSGK, segments_BS, self.rule)
            except RuntimeError as error:  # compiled for a GPU that is not here, nor its library
                if "cuDNN not found" not in str(error) or jax.default_backend() == "gpu":
                    raise
        given = dataclasses.asdict(self.rule)
        return attend(q_BSHK, k_BSGK, v_BSGK, q_segments_BS=segments_BS, k_segments_BT=segments_BS, **given)

    def share(
        self,
        q_BSHK: jax.Array,
        k_BTGK: jax.Array,
        v_BTGK: jax.Array,
        q_segments_BS: jax.Array | None,
        k_segments_BT: jax.Array | None,
        pieces: np.ndarray,
        device: jax.Array,
    ) -> jax.Array:
        """Of the queries in pieces `pieces[device]` of rows to all keys, o_BSHK."""
        given = (q_BSHK, k_BTGK, v_BTGK, q_segments_BS, k_segments_BT)
        if self.kernels == "tpu" and splash_applies(q_BSHK, k_BTGK):
            return splash_attention(*given, self.rule, pieces, device)
        length = q_BSHK.shape[1] // pieces.shape[1]
        return flash.flash(*given, jnp.asarray(pieces, jnp.int32)[device] * length, self.rule)

    def look(self, q: jax.Array, q_at: Any, kv: tuple[jax.Array, jax.Array], kv_at: Any) -> flash.Look:
        return flash.look(Part((q,), *q_at), Part(kv, *kv_at), self.rule)

    def merge(self, one: flash.Look, other: flash.Look) -> flash.Look:
        return flash.merge(one, other)

    def look_back(
        self, q: jax.Array, q_at: Any, kv: tuple[jax.Array, jax.Array], kv_at: Any, whole: flash.Whole
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        dq, dk, dv = flash.look_back(Part((q,), *q_at), Part(kv, *kv_at), *whole, self.rule)
        return dq, (dk, dv)


def _splash_block(tokens: int) -> int | None:
    return next((size for size in _SPLASH_BLOCKS if tokens % size == 0), None)


def splash_applies(q_BSHK: jax.Array, k_BTGK: jax.Array) -> bool:
    """Whether both lengths divide into splash's blocks."""
    return _splash_block(q_BSHK.shape[1]) is not None and _splash_block(k_BTGK.shape[1]) is not None


def splash_attention(
    q_BSHK: jax.Array,
    k_BTGK: jax.Array,
    v_BTGK: jax.Array,
    q_segments_BS: jax.Array | None,
    k_segments_BT: jax.Array | None,
    rule: Rule,
    pieces: np.ndarray,
    device: jax.Array,
    *,
    interpret: bool = False,
) -> jax.Array:
    """o_BSHK of the queries in `pieces[device]` of each row; `device` may be known only when the program runs.

    The kernel's plan of which blocks to visit is made for all devices, and each takes its own part of it.
    A query must see at least one key, as every token sees itself. ``interpret``: on CPU, for tests.
    """
    # Here and not above: loading Pallas takes half a second, which no other platform has need of.
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    S, T, heads = q_BSHK.shape[1], k_BTGK.shape[1], q_BSHK.shape[2]
    devices, per_device = pieces.shape
    length = S // per_device
    # One class for both: a causal mask is a window without an older end.
    before = None if rule.window is None else rule.window - 1
    mask = splash.LocalMask((devices * S, T), (before, 0), 0)
    mask.q_sequence = (pieces.reshape(-1, 1) * length + np.arange(length)).reshape(-1).astype(np.int32)
    q_block, k_block = _splash_block(S), _splash_block(T)
    assert q_block is not None and k_block is not None
    kernel = splash.make_splash_mha(
        splash.MultiHeadMask([mask] * heads),
        block_sizes=splash.BlockSizes(
            block_q=q_block, block_kv=k_block, block_q_dkv=q_block, block_kv_dkv=k_block, block_q_dq=q_block,
            block_kv_dq=k_block,
        ),
        attn_logits_soft_cap=rule.softcap, head_shards=1, q_seq_shards=devices, residual_checkpoint_name=ATTENTION,
        interpret=interpret,
    )
    kernel = _of_device(kernel, devices, device)
    segments = None
    if q_segments_BS is not None and k_segments_BT is not None:
        segments = splash.SegmentIds(q_segments_BS, k_segments_BT)
    q_BHSK = (q_BSHK * rule.scale).astype(q_BSHK.dtype).swapaxes(1, 2)
    o_BHSK = jax.vmap(kernel)(q_BHSK, k_BTGK.swapaxes(1, 2), v_BTGK.swapaxes(1, 2), segments)
    return o_BHSK.swapaxes(1, 2)


def _of_device(kernel: Any, devices: int, device: jax.Array) -> Any:
    """The splash kernel with the part of its plan that concerns one device's queries."""
    if devices == 1:
        return kernel

    def mine(x: jax.Array) -> jax.Array:
        axis = x.ndim // 2  # [head, query block, key block], or the queries' indices [query]
        size = x.shape[axis] // devices
        return jax.lax.dynamic_slice_in_dim(x, device * size, size, axis)

    return jax.tree.map(mine, kernel)


def cudnn_applies(q_BSHK: jax.Array, segments_BS: jax.Array | None, rule: Rule) -> bool:
    """Whether cuDNN can compute it: half precision, no softcap, and a bias for the segments not too large."""
    S, K = q_BSHK.shape[1], q_BSHK.shape[3]
    half = q_BSHK.dtype in (jnp.bfloat16, jnp.float16)
    short = segments_BS is None or (S <= _LONGEST_BIAS and S % 2 == 0)
    return half and rule.softcap is None and K % 8 == 0 and K <= _CUDNN_HEAD_DIM and short


def cudnn_attention(
    q_BSHK: jax.Array, k_BSGK: jax.Array, v_BSGK: jax.Array, segments_BS: jax.Array | None, rule: Rule,
    *, implementation: Any = "cudnn",
) -> jax.Array:
    """o_BSHK of whole rows. ``implementation``: "xla" is the same formula without cuDNN, for tests."""
    same = None if segments_BS is None else (segments_BS[:, None, :, None] == segments_BS[:, None, None, :])
    return jax.nn.dot_product_attention(
        q_BSHK, k_BSGK, v_BSGK, mask=same, scale=rule.scale, is_causal=True,
        local_window_size=None if rule.window is None else (rule.window - 1, 0), implementation=implementation,
    )
