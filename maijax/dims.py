"""The legend: one letter per dimension, spelled the same in names, einsums and weight declarations."""

from __future__ import annotations

from maijax.config import ModelConfig

# letter -> logical axis. Activations also use B (batch), S and T (query and key position), N (tokens, flat).
LOGICAL_AXES = {
    "L": "layers",
    "D": "embed",
    "V": "vocab",
    "H": "heads",
    "G": "kv_heads",
    "K": "head_dim",
    "F": "mlp",
    "E": "expert",
    "M": "mlp",  # width of one expert
    "U": "mlp",  # width of the shared experts together
}
WIDE = frozenset("DHGFMU")  # sizes that grow with the model's width; head_dim stays, and more heads make the width


def sizes(model: ModelConfig) -> dict[str, int]:
    """Size of each letter but L, which depends on the stack; V is the padded vocabulary."""
    attention, moe = model.attention, model.moe
    found = {
        "D": model.d_model,
        "V": model.padded_vocab,
        "H": attention.num_heads,
        "G": attention.kv_heads,
        "K": attention.head_dim,
        "F": model.d_ff,
    }
    if moe is not None:
        found |= {"E": moe.num_experts, "M": moe.d_ff, "U": moe.shared_experts * moe.d_ff}
    return found


def width_ratio(model: ModelConfig) -> float:
    """d_model over that of the parametrisation's base; 1 for the standard one."""
    how = model.parametrization
    return 1.0 if how.name == "standard" or how.base_width is None else model.d_model / how.base_width


def depth_ratio(model: ModelConfig) -> float:
    """Layers over those of the base where the parametrisation minds depth (completep); else 1."""
    how = model.parametrization
    return 1.0 if how.name != "completep" or how.base_depth is None else model.num_layers / how.base_depth
