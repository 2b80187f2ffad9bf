"""The coordinate check: do activations keep their size while the model grows in width and in depth?

A shrunk copy of the model (same norm, activation, grouping of heads, head, mixture) takes a few large steps on one
batch of random tokens, at several widths and depths; the mean absolute activation, against the size, is a straight
line in logarithms. Where its slope is near 0, what was tuned at one size acts alike at another.

How many kinds of token there are matters, since they are what can be learnt in so few steps. Over width there are
sixteen, fewer than the smallest width, so that it has the same rank at every width: of 512 kinds a wider model learns
more at once, most of all under Muon, which lengthens every direction alike (slopes under muP +0.25 to +0.4, after a
single step +0.09). Over depth there are 512: of sixteen, attention averages so many alike that what it adds still
grows between 8 and 16 layers (+0.4 under CompleteP and AdamW), though not without end.

Depths reach 64, since what CompleteP promises is a limit: under AdamW what attention adds to phi_test grows by 19% from
2 to 4 layers and by 14% from there to 16, and shrinks by 7% from there to 64. The layers are one loop, so that a deeper
program takes no longer to compile.

Source: Yang et al., arXiv 2203.03466, appendix D.1, and microsoft/mup, which also repeats one batch; over depth: Dey
et al., arXiv 2505.01618, figure 7. The bounds are ours: a readout that starts at random may shrink as width^-1/2.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from maijax import optim
from maijax.config import Experiment, ModelConfig, OptimConfig, ParametrizationConfig
from maijax.models import blocks, decoder

BOUNDS = (-0.75, 0.15)  # of the slope, log2 of mean |x| against log2 of the size
CONTROL = 1.0  # the standard parametrisation's residual stream over width must grow faster, or nothing was tested
WIDTHS, DEPTHS = (64, 128, 256, 512), (2, 4, 8, 16, 32, 64)
QUANTITIES = ("residual stream", "attention out", "mlp out", "logits")
STEPS, SEEDS, ROWS, LENGTH = 5, 2, 4, 64
KINDS = {"width": 16, "depth": 512}  # of token
MOST_HEAD_DIM, MOST_EXPERTS = 32, 8
# Large on purpose: many times what anybody would train with. Muon's unit is 0.2 of AdamW's.
RATES = {"adamw": 1e-2, "adafactor": 1e-2, "lion": 1e-2, "muon": 0.1}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
    """One quantity over the sizes of one axis."""

    parametrization: str
    axis: str  # "width" or "depth"
    quantity: str
    sizes: tuple[int, ...]
    values: tuple[float, ...]  # mean |x|, over all steps after the first update and over seeds
    judged: bool  # a parametrisation promises nothing over some axes, the standard one over none

    @property
    def slope(self) -> float:
        """Of log2 value against log2 size; infinite where training diverged."""
        if not all(math.isfinite(v) and v > 0 for v in self.values):
            return math.inf
        return float(np.polyfit(np.log2(self.sizes), np.log2(self.values), 1)[0])

    @property
    def holds(self) -> bool:
        return BOUNDS[0] <= self.slope <= BOUNDS[1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """Every line, those of the parametrisation in question first."""

    name: str  # of the experiment
    optimizer: str
    parametrization: str
    lines: tuple[Line, ...]

    @property
    def control(self) -> float:
        """Slope of the standard parametrisation's residual stream over width."""
        return next(
            line.slope for line in self.lines
            if (line.parametrization, line.axis, line.quantity) == ("standard", "width", QUANTITIES[0])
        )

    @property
    def passed(self) -> bool:
        return self.control > CONTROL and all(line.holds for line in self.lines if line.judged)


def check(
    experiment: Experiment, *, widths: tuple[int, ...] = WIDTHS, depths: tuple[int, ...] = DEPTHS,
    tell: Callable[[int, int, str], None] = lambda done, total, text: None,
) -> Report:
    """Trains every size in the experiment's parametrisation and in the standard one; the smallest is the base.

    An experiment in the standard parametrisation is checked in "completep". `tell` hears how far it is:
    (done, total, what is next).
    """
    asked = experiment.model.parametrization.name
    asked = "completep" if asked == "standard" else asked
    base = (widths[0], depths[0])
    grid = {"width": [(w, base[1]) for w in widths], "depth": [(base[0], d) for d in depths]}
    wanted = [(how, axis, at) for how in (asked, "standard") for axis in grid for at in grid[axis]]
    found: dict[tuple[str, str, tuple[int, int]], dict[str, float]] = {}
    for i, (how, axis, at) in enumerate(wanted):
        tell(i, len(wanted), f"{how}, width {at[0]}, {at[1]} layers")
        if at == base and how != asked:  # at the base every parametrisation is the same program
            found[how, axis, at] = found[asked, axis, at]
            continue
        model = shrunk(experiment.model, how, *at, base=base, kinds=KINDS[axis])
        found[how, axis, at] = measure(model, experiment.optim)
    tell(len(wanted), len(wanted), "done")
    promised = {"mup": ("width",), "completep": ("width", "depth"), "standard": ()}
    lines = [
        Line(
            parametrization=how, axis=axis, quantity=quantity, sizes=widths if axis == "width" else depths,
            values=tuple(found[how, axis, at][quantity] for at in places), judged=axis in promised[how],
        )
        for how in (asked, "standard") for axis, places in grid.items() for quantity in QUANTITIES
    ]
    return Report(
        name=experiment.name, optimizer=experiment.optim.name, parametrization=asked, lines=tuple(lines)
    )


def shrunk(
    model: ModelConfig, how: Any, width: int, depth: int, *, base: tuple[int, int], kinds: int
) -> ModelConfig:
    """The model's structure at another size: ratios kept; heads of a power of two, at most 32, so that heads vary."""
    attention, moe = model.attention, model.moe
    head_dim = 1 << min(attention.head_dim, MOST_HEAD_DIM).bit_length() - 1  # divides every width
    heads = width // head_dim
    group = math.gcd(attention.num_heads // attention.kv_heads, base[0] // head_dim)  # the smallest keeps it, too
    rope = dataclasses.replace(attention.rope, original_context=None, short_factor=(), long_factor=())

    def like(wide: int) -> int:
        """So many times the width, to a multiple of 8."""
        return max(8, round(wide / model.d_model * width / 8) * 8)

    if moe is not None:
        experts = min(moe.num_experts, MOST_EXPERTS)
        moe = dataclasses.replace(
            moe, num_experts=experts, top_k=min(moe.top_k, max(1, experts // 4)), d_ff=like(moe.d_ff),
            first_dense=min(moe.first_dense, 1),
        )
    return dataclasses.replace(
        model, num_layers=depth, d_model=width, d_ff=like(model.d_ff), vocab_size=kinds, context=LENGTH, moe=moe,
        attention=dataclasses.replace(
            attention, num_heads=heads, kv_heads=heads // group, head_dim=head_dim, window=None, rope=rope
        ),
        parametrization=ParametrizationConfig(name=how, base_width=base[0], base_depth=base[1]),
        dtype="float32", layers="scan", remat="none", kernels="xla",
    )


def measure(model: ModelConfig, config: OptimConfig) -> dict[str, float]:
    """Quantity -> mean |x| after each of STEPS steps, mean over these and SEEDS seeds; infinite where it diverged.

    Not the last step alone: at such rates logits swing from step to step, by a third at the smallest width.
    """
    rate = RATES[config.name]
    config = dataclasses.replace(
        config, lr=rate, adam_lr=rate, schedule="constant", warmup=0, weight_decay=0.0, spike_sigmas=None
    )
    tx = optim.build(config, model, STEPS)
    tokens_BS = jnp.asarray(np.random.default_rng(0).integers(0, model.vocab_size, (ROWS, LENGTH + 1), dtype=np.int32))

    @jax.jit
    def last(seed: jax.Array) -> dict[str, jax.Array]:
        params = decoder.init(model, jax.random.key(seed))

        def step(carry: Any, _: None) -> tuple[Any, Any]:
            params, state = carry
            grads, seen = jax.grad(_loss, has_aux=True)(params, model, tokens_BS)
            updates, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), seen

        # One step more, for what is seen on its way in: a second forward pass would be compiled for it.
        return jax.lax.scan(step, (params, tx.init(params)), None, length=STEPS + 1)[1]

    found = [jax.device_get(last(jnp.asarray(seed, jnp.uint32))) for seed in range(SEEDS)]
    means = {quantity: float(np.mean([one[quantity][1:] for one in found])) for quantity in QUANTITIES}
    return {quantity: value if math.isfinite(value) else math.inf for quantity, value in means.items()}


def _loss(params: Any, model: ModelConfig, tokens_BS: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Mean cross-entropy, and the mean |x| of each quantity on the way."""
    inputs_BS, targets_BS = tokens_BS[:, :-1], tokens_BS[:, 1:]
    positions_BS = jnp.broadcast_to(jnp.arange(inputs_BS.shape[1]), inputs_BS.shape)
    watched = (blocks.Block, blocks.Attention, blocks.MLP, blocks.MoE)
    (hidden_BSD, _, _), caught = decoder.build(model).apply(
        {"params": params}, inputs_BS, None, positions_BS, None,
        capture_intermediates=lambda module, _: isinstance(module, watched), mutable=["intermediates"],
    )
    logits_BSV = decoder.project(params, model, hidden_BSD)
    nll_BS = optax.softmax_cross_entropy_with_integer_labels(logits_BSV, targets_BS)
    outputs = dict(_outputs(caught["intermediates"]["layers"]))
    stream_LBSD, attention_LBSD, mlp_LBSD = outputs["layer"], outputs["attention"], outputs["mlp"]
    seen = (stream_LBSD[-1], attention_LBSD, mlp_LBSD, logits_BSV)
    return jnp.mean(nll_BS), {name: jnp.mean(jnp.abs(x)) for name, x in zip(QUANTITIES, seen, strict=True)}


def _outputs(layers: Any) -> Iterator[tuple[str, jax.Array]]:
    """(part, what it returned first), [L, B, S, D], of a stack of layers; before the residual multiplier."""
    yield "layer", layers["__call__"][0][0]
    yield "attention", layers["attention"]["__call__"][0][0]
    yield "mlp", layers["mlp"]["__call__"][0] if "mlp" in layers else layers["moe"]["__call__"][0][0]
