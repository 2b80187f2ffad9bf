"""Laws of scale beside those of `scaling`: what others would choose for a size and a budget. No jax.

N active parameters, D training tokens. All were fitted to decoders of web text under AdamW; `advice` says what each
makes of an experiment, for a person to judge, and changes nothing.
"""

from __future__ import annotations

import dataclasses
import math

from maijax import parametrization, scaling, weights
from maijax.config import Experiment, ModelConfig

SMALLEST_FITTED = 1e7  # parameters; Chinchilla's smallest models have 44M, and far below the law says nothing
DEEPSEEK = "DeepSeek LLM, arXiv 2401.02954, equations 1 and 4"
OLMO = "OLMo-core's ladder, olmo_core/model_ladder"
POWER_LINES = "Power Lines, arXiv 2505.13738"
DATA_CONSTRAINED = "Muennighoff et al., arXiv 2305.16264, and huggingface/datablations"


def deepseek_flops_per_token(model: ModelConfig, seq_len: int) -> float:
    """Non-embedding training FLOPs per token, M = 72 L d^2 + 12 L d T. Source: arXiv 2401.02954, equation 2."""
    return 72 * model.num_layers * model.d_model**2 + 12 * model.num_layers * model.d_model * seq_len


def deepseek_lr(flops: float) -> float:
    """Peak AdamW rate, 0.3118 C^-0.1250, for C = M D. Source: arXiv 2401.02954, equation 1."""
    return 0.3118 * flops**-0.1250


def deepseek_batch(flops: float) -> float:
    """Batch in tokens, 0.2920 C^0.3271, for C = M D. Source: arXiv 2401.02954, equation 1."""
    return 0.2920 * flops**0.3271


def deepseek_tokens(flops: float) -> float:
    """Compute-optimal tokens, 5.8316 C^0.4757, for C = M D. Source: arXiv 2401.02954, equation 4."""
    return 5.8316 * flops**0.4757


def olmo_lr(params: float) -> float:
    """Peak AdamW rate, 0.0047 (N / 108M)^(-1/3) / 2. Source: OLMo-core's ladder."""
    return 0.0047 * (params / 108e6) ** (-1 / 3) / 2


def olmo_batch(params: float) -> float:
    """Batch in tokens, 2048 x 160 (N / 108M)^(2/3). Source: OLMo-core's ladder."""
    return 2048 * 160 * (params / 108e6) ** (2 / 3)


def olmo_b2(batch_tokens: float) -> float:
    """Adam's b2: 0.95 from batches of 524,288 tokens on, 0.99 below. Source: OLMo-core's ladder."""
    return 0.95 if batch_tokens >= 524_288 else 0.99


def optimal_batch(tokens: float) -> float:
    """Batch in tokens of the lowest loss, 0.0306 D^0.383 sequences of 2,048. Source: arXiv 2505.13738."""
    return 2048 * 0.0306 * tokens**0.383


def critical_batch(tokens: float) -> float:
    """Batch in tokens beyond which more devices hardly save steps, 0.0471 D^0.462 sequences of 2,048.

    Source: arXiv 2505.13738; that it grows with tokens and not with parameters: Zhang et al., arXiv 2410.21676.
    """
    return 2048 * 0.0471 * tokens**0.462


def timescale(params: float, tokens: float) -> float:
    """AdamW's best memory as a share of the run, tau = B / (lr decay D) = 1.084 (D / N)^-0.527.

    Source: arXiv 2505.13738.
    """
    return 1.084 * (tokens / params) ** -0.527


def weight_decay(params: float, tokens: float, *, lr: float, batch_tokens: float) -> float:
    """What gives `timescale` at this rate and batch, B / (lr tau D). Source: arXiv 2505.13738."""
    return batch_tokens / (lr * timescale(params, tokens) * tokens)


def effective_tokens(tokens: float, unique: float) -> float:
    """Fresh tokens that `tokens`, several passes over `unique` ones, are worth: U + 15.3878 U (1 - e^(-R / 15.3878)).

    R = passes - 1. Four passes are nearly as good as fresh text; what is left to gain halves about every 16.
    Source: Muennighoff et al., arXiv 2305.16264, equation 5; the constant as in huggingface/datablations.
    """
    if tokens <= unique:
        return tokens
    repeats = tokens / unique - 1
    return unique + unique * 15.3878 * (1 - math.exp(-repeats / 15.3878))


def mixture_lr(active: float, experts: int) -> float:
    """Peak AdamW rate of a mixture of E experts, exp(8.39 - 0.81 ln N - 0.25 ln E).

    Source: Ludziejewski et al., arXiv 2502.05172.
    """
    return math.exp(8.39 - 0.81 * math.log(active) - 0.25 * math.log(experts))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Advice:
    """What one law would choose for one value of an experiment."""

    path: str  # of the value, "optim.lr"; or "tokens", "loss", and batches as "batch tokens"
    now: float | None  # what the experiment has, in the same unit; None: nothing to compare
    value: float
    law: str  # as a formula
    source: str


def advice(experiment: Experiment, *, unique_tokens: float | None = None) -> tuple[Advice, ...]:
    """Every law's choice for an experiment, grouped by path; rate and decay are those of its hidden matrices.

    `unique_tokens`, of the corpus, adds what passing over it several times is worth.
    """
    model, train, optim = experiment.model, experiment.train, experiment.optim
    active, tokens = weights.count_active(model), float(experiment.tokens)
    batch = float(train.batch_size * train.seq_len)
    flops = deepseek_flops_per_token(model, train.seq_len) * tokens
    # Laws speak of one rate for all weights: that of the hidden matrices is nearest to it.
    hidden = next(w for w in weights.declare(model) if w.role == "hidden")
    scaled = parametrization.multipliers(hidden, model, optim.name)
    lr, own_decay = optim.lr * scaled.lr, optim.weight_decay * scaled.decay
    found: list[Advice] = []

    def add(path: str, now: float | None, value: float, law: str, source: str) -> None:
        found.append(Advice(path=path, now=now, value=value, law=law, source=source))

    step_law = "Step Law, arXiv 2503.04715"
    add("optim.lr", lr, scaling.step_law_lr(active, tokens), "1.79 N^-0.713 D^0.307", step_law)
    add("optim.lr", lr, deepseek_lr(flops), "0.3118 C^-0.125, C = M D", DEEPSEEK)
    add("optim.lr", lr, olmo_lr(active), "0.0047 (N / 108M)^-1/3 / 2", OLMO)
    if model.moe is not None:
        law = "exp(8.39 - 0.81 ln N - 0.25 ln E)"
        add("optim.lr", lr, mixture_lr(active, model.moe.num_experts), law, "arXiv 2502.05172")
    add("batch tokens", batch, scaling.step_law_batch(tokens), "0.58 D^0.571", step_law)
    add("batch tokens", batch, deepseek_batch(flops), "0.292 C^0.3271, C = M D", DEEPSEEK)
    add("batch tokens", batch, olmo_batch(active), "2048 x 160 (N / 108M)^2/3", OLMO)
    add("batch tokens", batch, optimal_batch(tokens), "0.0306 D^0.383 x 2048, lowest loss", POWER_LINES)
    add("batch tokens", batch, critical_batch(tokens), "0.0471 D^0.462 x 2048, the most that pays", POWER_LINES)
    decay = weight_decay(active, tokens, lr=lr, batch_tokens=batch)
    add("optim.weight_decay", own_decay, decay, "B / (lr tau D), tau = 1.084 (D / N)^-0.527", POWER_LINES)
    add("optim.b2", optim.b2, olmo_b2(batch), "0.95 from batches of 524,288 tokens on, else 0.99", OLMO)
    add("optim.warmup", float(optim.warmup), active / batch, "N tokens", OLMO)
    add("tokens", tokens, float(scaling.chinchilla_tokens(model)), "20 N", "Chinchilla, arXiv 2203.15556")
    add("tokens", tokens, deepseek_tokens(flops), "5.8316 C^0.4757 at this run's C", DEEPSEEK)
    if unique_tokens is not None:
        worth = effective_tokens(tokens, unique_tokens)
        add("tokens", tokens, worth, "what the repeats are worth: U + U 15.39 (1 - e^(-R / 15.39))", DATA_CONSTRAINED)
    law = "1.8172 + 482.01 N^-0.3478 + 2085.43 D^-0.3658"
    if active > SMALLEST_FITTED:
        add("loss", None, scaling.chinchilla_loss(active, tokens), law, "Epoch's refit of Chinchilla, arXiv 2404.10102")
    return tuple(found)


def moved(experiment: Experiment) -> tuple[tuple[str, float], ...]:
    """(what, its multiplier) of an experiment's parametrisation, leaving out what it leaves alone."""
    model, optimizer = experiment.model, experiment.optim.name
    found: dict[str, float] = {}
    for weight in weights.declare(model):
        if not weight.trained:
            continue
        scaled = parametrization.multipliers(weight, model, optimizer)
        where = f"{weight.group}{' in the layers' if weight.group == 'norm' and weight.stack else ''}"
        found[f"learning rate, {where}"] = scaled.lr
        if weight.decay:
            found[f"weight decay, {where}"] = scaled.decay
        found[f"Adam's eps, {where}"] = scaled.eps
    found |= {"residual branches": parametrization.residual(model), "logits": parametrization.output(model)}
    return tuple((what, value) for what, value in sorted(found.items()) if value != 1)
