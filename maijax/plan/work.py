"""What one token costs in each part of the model: products, what remat runs again, memory traffic beside them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from maijax.config import ModelConfig

# Parts whose forward pass is run again before the backward pass. A layer's last product is not needed to go back
# through it, so "full" leaves out `down` and, of a mixture, `experts_down`; grouped products are not among the dots
# that "dots" keeps.
_FULL = frozenset({"qkv", "scores", "out", "router", "gate_up", "experts"})
RERUN: Mapping[str, frozenset[str]] = {
    "none": frozenset(),
    "dots": frozenset({"experts"}),
    "attention": _FULL - {"scores"},
    "full": _FULL,
    "offload": _FULL,
}
GROUPED = frozenset({"experts", "experts_down"})
# Attention kernels keep row sums, not scores: going back they multiply q k^T once more, 5 products for 2.
_SCORES_BACKWARD = 2.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """One kind of product, summed over layers; FLOPs of one token, mean over a full sequence, 2 per multiplication."""

    name: str
    forward: float
    rerun: bool  # run again in the backward pass
    share: str = "layers"  # what shares it out: "layers" of the pipeline, or all devices ("batch")
    waste: float = 0.5  # of a tile of rows that each group of a grouped product leaves empty, or multiplies twice

    @property
    def backward(self) -> float:
        return self.forward * (_SCORES_BACKWARD if self.name == "scores" else 2.0)

    @property
    def executed(self) -> float:
        """Forward, again where rerun, and backward."""
        return self.forward * (2 if self.rerun else 1) + self.backward

    @property
    def useful(self) -> float:
        """As MFU counts: forward, and twice as much backward."""
        return 3 * self.forward


def visible_keys(model: ModelConfig, seq_len: int) -> float:
    """Keys that a token sees, mean over a sequence, with the causal mask and the window."""
    window = min(model.attention.window or seq_len, seq_len)
    return window - window**2 / (2 * seq_len)


def parts(model: ModelConfig, seq_len: int, rerun: frozenset[str] | None = None) -> tuple[Part, ...]:
    """The model's products; `rerun` says which parts run again (default: as `model.remat` says)."""
    again = RERUN[model.remat] if rerun is None else rerun
    attention, moe, width = model.attention, model.moe, model.d_model
    heads, kv = attention.num_heads * attention.head_dim, attention.kv_heads * attention.head_dim
    mixtures = model.num_layers - moe.first_dense if moe else 0
    hidden = model.d_ff * (model.num_layers - mixtures) + (moe.shared_experts * moe.d_ff * mixtures if moe else 0)
    sizes = {
        "qkv": 2 * width * (heads + 2 * kv) * model.num_layers,
        "scores": 4 * heads * visible_keys(model, seq_len) * model.num_layers,
        "out": 2 * heads * width * model.num_layers,
        "gate_up": 4 * width * hidden,
        "down": 2 * width * hidden,
    }
    if moe:
        sizes["router"] = 2 * width * moe.num_experts * mixtures
        sizes["experts"] = 4 * width * moe.d_ff * moe.top_k * mixtures
        sizes["experts_down"] = 2 * width * moe.d_ff * moe.top_k * mixtures
    found = [Part(name=name, forward=float(size), rerun=name in again) for name, size in sizes.items()]
    head = Part(name="head", forward=2.0 * width * model.padded_vocab, rerun=False, share="batch")
    return (*found, head)


def elementwise_bytes(model: ModelConfig, rerun: bool, width: int = 2, slots: float = 1.0) -> float:
    """Bytes that one token moves to and from memory between the products, forward and backward, all layers.

    Per layer: two norms (read, write), two residual sums (read two, write), rotation of queries and keys, the gated
    product; of a mixture also the rows' way to the experts' order, with `slots` places for each, and back, and their
    sum. Backward twice that. Of the head: float32 logits written, read for the sum and for the gradient, and the
    gradient in 2 bytes.
    """
    attention, moe, size = model.attention, model.moe, model.d_model
    heads = (attention.num_heads + attention.kv_heads) * attention.head_dim
    mixtures = model.num_layers - moe.first_dense if moe else 0
    numbers = model.num_layers * (10 * size + 2 * heads) + (model.num_layers - mixtures) * 3 * model.d_ff
    if moe:
        rows = (4 + slots) * moe.top_k * size + 3 * (slots * moe.top_k + moe.shared_experts) * moe.d_ff
        numbers += mixtures * rows
    return width * numbers * (4 if rerun else 3) + 16 * model.padded_vocab
