"""Weights of a transformers model as our parameter tree; for parity tests."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from maijax.config import ModelConfig
from maijax.models import decoder


def from_hf(state: dict[str, Any], cfg: ModelConfig, *, one_plus_norm: bool = False) -> Any:
    """Our tree from a Phi-3, Llama, Qwen3 or Gemma 2 state dict of torch tensors.

    `one_plus_norm`: Gemma stores a norm's scale as its distance from 1.
    """
    arrays = {name: tensor.detach().float().numpy() for name, tensor in state.items()}
    attention, shift = cfg.attention, 1.0 if one_plus_norm else 0.0
    heads, groups, size = attention.num_heads, attention.kv_heads, attention.head_dim

    def layer(i: int) -> dict[str, Any]:
        def get(name: str) -> np.ndarray:
            return arrays[f"model.layers.{i}.{name}.weight"]

        if "model.layers.0.self_attn.qkv_proj.weight" in arrays:
            q, k, v = np.split(get("self_attn.qkv_proj"), [heads * size, (heads + groups) * size])
            gate, up = np.split(get("mlp.gate_up_proj"), 2)
        else:
            q, k, v = (get(f"self_attn.{x}_proj") for x in "qkv")
            gate, up = get("mlp.gate_proj"), get("mlp.up_proj")
        before_mlp = "pre_feedforward_layernorm" if one_plus_norm else "post_attention_layernorm"
        found: dict[str, Any] = {
            "attention_norm": {"scale": get("input_layernorm") + shift},
            "attention": {
                "w_q": q.T.reshape(-1, heads, size),
                "w_k": k.T.reshape(-1, groups, size),
                "w_v": v.T.reshape(-1, groups, size),
                "w_o": get("self_attn.o_proj").T.reshape(heads, size, -1),
            },
            "mlp_norm": {"scale": get(before_mlp) + shift},
            "mlp": {"w_gate": gate.T, "w_up": up.T, "w_down": get("mlp.down_proj").T},
        }
        if attention.qk_norm:
            found["attention"] |= {"q_scale": get("self_attn.q_norm"), "k_scale": get("self_attn.k_norm")}
        return found

    def pad(rows_VD: np.ndarray) -> np.ndarray:
        # Padding must be masked whatever it holds.
        return np.pad(rows_VD, ((0, cfg.padded_vocab - cfg.vocab_size), (0, 0)), constant_values=7.0)

    tree: dict[str, Any] = {
        "embed": {"w_embed": pad(arrays["model.embed_tokens.weight"])},
        "layers": jax.tree.map(lambda *x: np.stack(x), *(layer(i) for i in range(cfg.num_layers))),
        "final_norm": {"scale": arrays["model.norm.weight"] + shift},
    }
    if not cfg.tied_head:
        tree["head"] = {"w_head": pad(arrays["lm_head.weight"]).T}
    params = jax.tree.map(jnp.asarray, tree)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, decoder.abstract(cfg))
    return params
