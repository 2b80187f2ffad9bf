"""Arithmetic of scale, from values alone: parameters, FLOPs, bytes, tokens, and the ladder's laws."""

from __future__ import annotations

import dataclasses
import math

from maijax import weights
from maijax.config import Experiment, ModelConfig, OptimConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parameters:
    """Counts without the vocabulary's padding."""

    total: int
    active: int  # those that touch one token
    embedding: int  # input table, and the head unless tied


def parameters(model: ModelConfig) -> Parameters:
    tables = 1 if model.tied_head else 2
    return Parameters(
        total=weights.count(model),
        active=weights.count_active(model),
        embedding=tables * model.vocab_size * model.d_model,
    )


def matmul_parameters(model: ModelConfig) -> int:
    """Active parameters less the input table, which is looked up, and the final norm (PaLM, appendix B)."""
    final_norm = sum(w.size for w in weights.declare(model) if w.path.startswith("final_norm/"))
    looked_up = 0 if model.tied_head else model.vocab_size * model.d_model
    return weights.count_active(model) - final_norm - looked_up


def train_flops_per_token(model: ModelConfig, seq_len: int | None = None) -> float:
    """Forward and backward FLOPs of one token, mean over a full sequence; no rematerialisation counted.

    6 per matmul parameter, and 12 per head channel, layer and visible key: half the sequence under the causal
    mask, less under a window. Source: PaLM, arXiv 2204.02311, appendix B, with the mask counted.
    """
    length = model.context if seq_len is None else seq_len
    window = min(model.attention.window or length, length)
    keys = window - window**2 / (2 * length)
    channels = model.num_layers * model.attention.num_heads * model.attention.head_dim
    return 6 * matmul_parameters(model) + 12 * channels * keys


def train_flops(experiment: Experiment) -> float:
    """Of the whole run."""
    return experiment.tokens * train_flops_per_token(experiment.model, experiment.train.seq_len)


def state_bytes(model: ModelConfig, optim: OptimConfig) -> int:
    """Bytes that weights, gradients and optimizer state take, all float32, vocabulary padding included."""
    return sum(weight_state_bytes(w, optim) for w in weights.declare(model))


def weight_state_bytes(weight: weights.Weight, optim: OptimConfig) -> int:
    """As `state_bytes`, of one array."""
    return 4 * (2 * weight.size + _slots(weight, optim.name))


def activation_bytes(experiment: Experiment, rows: int) -> int:
    """Roughly what a step keeps for its backward pass, for so many sequences at once; within a factor of two.

    Per token and layer what the matmuls read and write and the attention scores, or what remat keeps of it and one
    layer in full; then the float32 logits and their gradient. Own estimate.
    """
    model, length = experiment.model, experiment.train.seq_len
    attention, moe = model.attention, model.moe
    hidden = model.d_ff if moe is None else (moe.top_k + moe.shared_experts) * moe.d_ff
    heads = attention.num_heads * (2 * attention.head_dim + length) + 2 * attention.kv_heads * attention.head_dim
    layer = 6 * model.d_model + heads + 4 * hidden
    attended = attention.num_heads * attention.head_dim
    each = {
        "none": layer, "dots": layer - attention.num_heads * length, "full": model.d_model, "offload": model.d_model,
        "attention": model.d_model + attended,
    }[model.remat]
    kept = model.num_layers * each + (layer if model.remat != "none" else 0)
    width = 2 if model.dtype == "bfloat16" else 4
    return rows * length * (width * kept + 8 * model.padded_vocab)


def _slots(weight: weights.Weight, optimizer: str) -> int:
    """Numbers that the optimizer keeps for one array."""
    if not weight.trained:
        return 0
    if optimizer == "lion" or (optimizer == "muon" and weight.group == "hidden" and weight.reads):
        return weight.size
    if optimizer == "adafactor":  # a row and a column of second moments for each matrix
        stack, reads = len(weight.stack), len(weight.stack + weight.reads)
        rows, columns = math.prod(weight.sizes[stack:reads]), math.prod(weight.sizes[reads:])
        return math.prod(weight.sizes[:stack]) * (rows + columns)
    return 2 * weight.size


# E, A, B, alpha, beta of `chinchilla_loss`, and the parameters of the models that it was fitted to.
EPOCH = (1.8172, 482.01, 2085.43, 0.3478, 0.3658)
EPOCH_RANGE = (70e6, 16e9)


def tokens_per_parameter(experiment: Experiment) -> float:
    return experiment.tokens / parameters(experiment.model).active


def chinchilla_tokens(model: ModelConfig) -> int:
    """20 tokens for each active parameter. Source: Hoffmann et al., arXiv 2203.15556, table 3."""
    return 20 * weights.count_active(model)


def chinchilla_loss(params: float, tokens: float) -> float:
    """Nats per token that the fitted law expects of a dense model on web text, for orientation.

    Source: Besiroglu et al. (Epoch), arXiv 2404.10102, the refit of Hoffmann's approach 3.
    """
    e, a, b, alpha, beta = EPOCH
    return e + a / params**alpha + b / tokens**beta


def compute_optimal(flops: float) -> tuple[float, float]:
    """(parameters, tokens) with the lowest `chinchilla_loss` among those that 6 N D FLOPs allow.

    Source: Hoffmann et al., arXiv 2203.15556, equation 4: N = G (C/6)^(b/(a+b)), G = (aA/bB)^(1/(a+b)).
    """
    _, a, b, alpha, beta = EPOCH
    params = (alpha * a / (beta * b)) ** (1 / (alpha + beta)) * (flops / 6) ** (beta / (alpha + beta))
    return params, flops / 6 / params


def step_law_lr(params: float, tokens: float) -> float:
    """Peak AdamW learning rate. Fitted for up to 1e9 parameters and 1e11 tokens; beyond, it extrapolates.

    Source: Step Law, arXiv 2503.04715, equation 1: 1.79 N^-0.713 D^0.307.
    """
    return 1.79 * params**-0.713 * tokens**0.307


def step_law_batch(tokens: float) -> float:
    """Batch size in tokens. Source: Step Law, arXiv 2503.04715, equation 1: 0.58 D^0.571."""
    return 0.58 * tokens**0.571


@dataclasses.dataclass(frozen=True, kw_only=True)
class Budget:
    """What a law makes of a size and a number of tokens; `rules` belongs in `Experiment.rules`."""

    lr: float
    batch_size: int  # sequences
    steps: int
    rules: tuple[tuple[str, str], ...]


def step_law_budget(
    model: ModelConfig, *, tokens: int | None = None, seq_len: int | None = None, max_lr: float = 1.0
) -> Budget:
    """Learning rate, batch and steps by Step Law; tokens default to Chinchilla's, seq_len to the context.

    The batch goes to the nearest power of two in sequences, so that every mesh divides it, and the rate to
    two significant digits, at most max_lr. Both choices are our own.
    """
    length = model.context if seq_len is None else seq_len
    horizon = chinchilla_tokens(model) if tokens is None else tokens
    active = weights.count_active(model)
    batch_size = 2 ** max(0, round(math.log2(step_law_batch(horizon) / length)))
    law = step_law_lr(active, horizon)
    rate = float(f"{min(law, max_lr):.1e}")
    why = "20 tokens per active parameter (arXiv 2203.15556)" if tokens is None else "the horizon chosen"
    capped = f", which gives {law:.1e}; capped" if law > max_lr else ""
    return Budget(
        lr=rate,
        batch_size=batch_size,
        steps=math.ceil(horizon / (batch_size * length)),
        rules=(
            ("optim.lr", f"Step Law 1.79 N^-0.713 D^0.307 (arXiv 2503.04715){capped}"),
            ("train.batch_size", "Step Law 0.58 D^0.571 tokens (arXiv 2503.04715), to a power of two"),
            ("train.steps", f"{horizon:.3g} tokens: {why}"),
        ),
    )


def totals(experiment: Experiment) -> dict[str, float]:
    """What a run folder says beside the values."""
    counts = parameters(experiment.model)
    return {
        "parameters": counts.total,
        "active": counts.active,
        "flops_per_token": train_flops_per_token(experiment.model, experiment.train.seq_len),
        "tokens": experiment.tokens,
    }
