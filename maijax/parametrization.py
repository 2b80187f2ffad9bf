"""Parametrisations: what moves with width and depth so that one size's hyperparameters serve another. No jax.

With m = d_model / base_width and l = num_layers / base_depth, relative to the standard parametrisation:

| what | mup | completep |
| --- | --- | --- |
| std of embedding and head | that of the base: base_width^-0.5 | as mup |
| std of hidden matrices | fan_in^-0.5, as standard; w_o and w_down x (2 layers)^-0.5 | x (2 base_depth)^-0.5 |
| logits | x 1/m | as mup |
| residual branches | x 1 | x 1/l |
| rate of hidden matrices: adamw, lion, adafactor | x 1/m | x 1/m |
| rate of hidden matrices: muon | x m^-0.5 | x m^-0.5 |
| rate of embedding, head, norms | x 1 | x 1 |
| weight decay of what has a rate multiplier | over it, so that lr x decay stays | as mup |
| Adam's eps | x 1/m | x 1/m, in the layers also x 1/l |
| attention scores | head_dim^-0.5 | head_dim^-0.5 |

A mixture's router reads the width and writes a number that does not grow: a readout, by table 3 of muP with std m^-0.5
of the standard one, rate over m, and no multiplier. One number stands for all widths: heads, kv_heads, d_ff and the
experts' d_ff are meant to move with d_model, and head_dim to stay, for which head_dim^-0.5 is a constant as muP's
1 / head_dim is.

Muon here is scaled to AdamW's size, 0.2 sqrt(max(reads, writes)); the spectral condition asks for
sqrt(writes / reads), which is m^-0.5 less at m times the width. Lion's and Adafactor's updates have entries of a size
that does not depend on the width, as AdamW's, and follow its rule; for Adafactor this is our own reading.

Sources: muP: Yang et al., arXiv 2203.03466, tables 3 and 8; EleutherAI/nanoGPT-mup, table of its README. CompleteP:
Dey et al., arXiv 2505.01618, table 1 with alpha 1, and its code for decay and eps (eps by layer: equation 40). Spectral
condition: Yang, Simon and Bernstein, arXiv 2310.17813; Muon beside a 1/l residual: arXiv 2603.28743. Mixtures:
Malasnicki et al., arXiv 2508.09752.
"""

from __future__ import annotations

import dataclasses

from maijax.config import ModelConfig
from maijax.dims import depth_ratio, width_ratio
from maijax.weights import Weight


@dataclasses.dataclass(frozen=True, kw_only=True)
class Multipliers:
    """What a weight's learning rate, weight decay and Adam eps are multiplied by; its std is in its declaration."""

    lr: float = 1.0
    decay: float = 1.0
    eps: float = 1.0


def multipliers(weight: Weight, model: ModelConfig, optimizer: str) -> Multipliers:
    """Those of one weight under `OptimConfig.name`; all 1 at the base's size, and in the standard parametrisation."""
    wider, deeper = width_ratio(model), depth_ratio(model)
    lr = 1.0
    if weight.role == "hidden":
        lr = wider**-0.5 if optimizer == "muon" else 1 / wider
    elif weight.group == "router":
        lr = 1 / wider
    adam = optimizer == "adamw" or (optimizer == "muon" and weight.role != "hidden")
    eps = 1 / wider / (deeper if weight.stack.startswith("L") else 1.0) if adam else 1.0
    return Multipliers(lr=lr, decay=1 / lr, eps=eps)


def residual(model: ModelConfig) -> float:
    """What each branch is multiplied by before it joins the residual stream."""
    return 1 / depth_ratio(model)


def output(model: ModelConfig) -> float:
    """What logits are multiplied by."""
    return 1 / width_ratio(model)
