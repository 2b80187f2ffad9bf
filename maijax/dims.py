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
