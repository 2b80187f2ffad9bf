"""Every weight of a model, declared once, by letters: no jax, so that counting 500B takes no time.

A declaration gives shape, logical axes, initial distribution, decay, and which side of the matrix is read
and which is written (Muon and muP need to know). The Linen modules create exactly these, the optimizer
masks by them, the mesh shards by them, `show` prints them, and the golden texts pin them.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Literal

from maijax import dims
from maijax.config import ModelConfig

Group = Literal["embed", "hidden", "head", "norm", "router"]
Role = Literal["input", "hidden", "output", "vector"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weight:
    """One array: `stack` dimensions hold independent matrices, `reads` is contracted, `writes` comes out."""

    path: str  # "layers/attention/w_q", a key of the parameter tree
    stack: str = ""
    reads: str = ""
    writes: str
    sizes: tuple[int, ...]  # in the order of `letters`
    group: Group = "hidden"
    init: Literal["normal", "ones", "zeros"] = "normal"
    std: float = 0.0  # of the normal distribution
    decay: bool = True
    trained: bool = True  # False: moved by a rule of its own, not by the optimizer

    @property
    def letters(self) -> str:
        return self.stack + self.reads + self.writes

    @property
    def logical_axes(self) -> tuple[str, ...]:
        return tuple(dims.LOGICAL_AXES[letter] for letter in self.letters)

    @property
    def role(self) -> Role:
        """Its class in muP, by which sides grow with the width. Source: Yang et al., arXiv 2203.03466, table 3."""
        reads, writes = (not dims.WIDE.isdisjoint(side) for side in (self.reads, self.writes))
        if not self.reads:
            return "vector"
        return "output" if reads and not writes else "hidden" if reads else "input"

    @property
    def name(self) -> str:
        return self.path.rsplit("/", 1)[-1]

    @property
    def size(self) -> int:
        """Stored numbers, vocabulary padding included."""
        return math.prod(self.sizes)


@functools.lru_cache(maxsize=64)  # a search over layouts asks thousands of times
def declare(model: ModelConfig) -> tuple[Weight, ...]:
    """All weights of a model in tree order: embed, (dense_layers,) layers, final_norm, head."""
    width = dims.sizes(model)

    def weight(path: str, *, stack: str = "", reads: str = "", writes: str, depth: int = 0, **other) -> Weight:
        size = width | {"L": depth}
        letters = stack + reads + writes
        fan_in = math.prod(size[letter] for letter in reads)
        other.setdefault("std", fan_in**-0.5)
        shape = tuple(size[letter] for letter in letters)
        return Weight(path=path, stack=stack, reads=reads, writes=writes, sizes=shape, **other)

    def norm(path: str, letters: str, *, stack: str = "", depth: int = 0) -> list[Weight]:
        common = {"stack": stack, "writes": letters, "depth": depth, "group": "norm", "decay": False, "std": 0.0}
        scale = weight(f"{path}/scale", init="ones", **common)
        return [scale, weight(f"{path}/bias", init="zeros", **common)] if model.norm == "layer" else [scale]

    # The base's width and depth decide what a parametrisation keeps as the model grows.
    wider, deeper = dims.width_ratio(model), dims.depth_ratio(model)
    base_width = model.d_model / wider
    # Residual outputs start smaller, so that the stream's variance does not grow with depth (GPT-2).
    shrink = (2 * (model.num_layers / deeper)) ** -0.5

    def mlp(path: str, letter: str, stack: str, depth: int) -> list[Weight]:
        out_std = shrink * width[letter] ** -0.5
        return [
            weight(f"{path}/w_gate", stack=stack, reads="D", writes=letter, depth=depth),
            weight(f"{path}/w_up", stack=stack, reads="D", writes=letter, depth=depth),
            weight(f"{path}/w_down", stack=stack, reads=letter, writes="D", depth=depth, std=out_std),
        ]

    def layer(root: str, depth: int, *, mixture: bool) -> list[Weight]:
        attention, moe = model.attention, model.moe
        one = {"stack": "L", "depth": depth}
        out_std = shrink * (attention.num_heads * attention.head_dim) ** -0.5
        found = norm(f"{root}/attention_norm", "D", stack="L", depth=depth)
        found += [
            weight(f"{root}/attention/w_q", reads="D", writes="HK", **one),
            weight(f"{root}/attention/w_k", reads="D", writes="GK", **one),
            weight(f"{root}/attention/w_v", reads="D", writes="GK", **one),
            weight(f"{root}/attention/w_o", reads="HK", writes="D", std=out_std, **one),
        ]
        if attention.qk_norm:
            scale = {"writes": "K", "group": "norm", "init": "ones", "decay": False, "std": 0.0, **one}
            found += [weight(f"{root}/attention/{name}", **scale) for name in ("q_scale", "k_scale")]
        found += norm(f"{root}/mlp_norm", "D", stack="L", depth=depth)
        if not mixture or moe is None:
            return found + mlp(f"{root}/mlp", "F", "L", depth)
        router_std = (model.d_model * wider) ** -0.5  # muP: a readout without a multiplier of its own
        found.append(weight(f"{root}/moe/w_router", reads="D", writes="E", group="router", std=router_std, **one))
        found.append(
            weight(f"{root}/moe/router_bias", writes="E", group="router", init="zeros", decay=False, std=0.0,
                   trained=False, **one)
        )
        found += mlp(f"{root}/moe", "M", "LE", depth)
        if moe.shared_experts:
            found += mlp(f"{root}/moe/shared", "U", "L", depth)
        return found

    found = [weight("embed/w_embed", reads="V", writes="D", group="embed", std=base_width**-0.5)]
    first_dense = model.moe.first_dense if model.moe else 0
    if first_dense:
        found += layer("dense_layers", first_dense, mixture=False)
    found += layer("layers", model.num_layers - first_dense, mixture=model.moe is not None)
    found += norm("final_norm", "D")
    if not model.tied_head:
        found.append(weight("head/w_head", reads="D", writes="V", group="head", std=base_width**-0.5))
    return tuple(found)


def count(model: ModelConfig) -> int:
    """Parameters as the field counts them: the vocabulary's padding left out, the router's bias included."""
    padding = (model.padded_vocab - model.vocab_size) * model.d_model * (1 if model.tied_head else 2)
    return sum(w.size for w in declare(model)) - padding


def count_active(model: ModelConfig) -> int:
    """Parameters that touch one token: of the routed experts only top_k."""
    if model.moe is None:
        return count(model)
    routed = sum(w.size for w in declare(model) if w.stack == "LE")
    return count(model) - routed + routed * model.moe.top_k // model.moe.num_experts
