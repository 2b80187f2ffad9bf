"""One training step: (state, batch) -> (state, metrics), the same function for every size and mesh."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from maijax.config import Experiment, ModelConfig, TrainConfig
from maijax.models import decoder, moe
from maijax.optim import skip
from maijax.optim.schedules import schedule
from maijax.parallel import sharding
from maijax.parallel.sharding import Layout
from maijax.train import state as states
from maijax.train.loss import cross_entropy, logit_room
from maijax.train.state import State

Batch = dict[str, Any]  # tokens targets segments positions weights, each [batch, seq]
Metrics = dict[str, jax.Array]


def loss_and_metrics(
    params: Any, batch: Batch, model: ModelConfig, train: TrainConfig, *, weight_sum: jax.Array, share: float = 1.0
) -> tuple[jax.Array, dict[str, Any]]:
    """Loss of a (micro-)batch: its part of the mean over `weight_sum` target tokens, in nats.

    `share` is the part of the step's sequences that are here, by which the mixture's balance loss counts.
    """
    hidden_BSD, aux = decoder.hidden(params, model, batch["tokens"], batch["segments"], batch["positions"])
    head, transposed = decoder.head(params, model)
    found = cross_entropy(
        hidden_BSD,
        head,
        batch["targets"],
        batch["weights"],
        vocab_size=model.vocab_size,
        head_is_VD=transposed,
        z_loss=train.z_loss,
        softcap=model.logit_softcap,
        logit_bytes=logit_room(model),
    )
    total = found.loss_sum / weight_sum
    metrics = {"loss": found.nll_sum / weight_sum, "z_loss": found.z_sum / weight_sum}
    if model.moe is not None:
        balance = model.moe.balance_weight * share * aux.balance_loss
        total = total + balance
        metrics |= {"balance_loss": balance, "expert_load": share * aux.expert_load}
    return total, metrics


def gradients(
    params: Any, batch: Batch, model: ModelConfig, train: TrainConfig
) -> tuple[Any, dict[str, Any]]:
    """Gradients and metrics of a step's batch, in `train.accumulation` micro-batches of equal size.

    Every token weighs the same however the batch is split: the mean is over the whole step's targets.
    """
    weight_sum = jnp.maximum(jnp.sum(batch["weights"]), 1.0)
    parts = train.accumulation
    grad = jax.grad(loss_and_metrics, has_aux=True)
    if parts == 1:
        return grad(params, batch, model, train, weight_sum=weight_sum)
    # Rows are dealt out in turn, so that each device keeps its own rows in every micro-batch.
    split = jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), batch)

    def one(total: Any, micro: Batch) -> tuple[Any, None]:
        found = grad(params, micro, model, train, weight_sum=weight_sum, share=1 / parts)
        return jax.tree.map(jnp.add, total, found), None

    first = jax.tree.map(lambda x: x[0], split)
    shapes = jax.eval_shape(lambda m: grad(params, m, model, train, weight_sum=weight_sum), first)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    return jax.lax.scan(one, zeros, split)[0]


def train_step(
    state: State, batch: Batch, experiment: Experiment, tx: optax.GradientTransformationExtraArgs
) -> tuple[State, Metrics]:
    """One step: gradients, guard, update, router bias. A skipped step changes nothing but the counters."""
    grads, metrics = gradients(state.params, batch, experiment.model, experiment.train)
    opt_state: Any
    updates, opt_state = tx.update(grads, state.opt_state, state.params, loss=metrics["loss"])
    params: Any = optax.apply_updates(state.params, updates)
    metrics |= skip.read(opt_state)
    load = metrics.pop("expert_load", None)
    if load is not None and experiment.model.moe is not None:
        speed = jnp.where(metrics["skipped_in_row"] > 0, 0.0, experiment.model.moe.bias_speed)
        mixture = params["layers"]["moe"]
        mixture = mixture | {"router_bias": moe.update_bias(mixture["router_bias"], load, speed)}
        params = params | {"layers": params["layers"] | {"moe": mixture}}
        metrics["expert_load_max"] = jnp.max(load) * load.shape[-1]  # 1: even
    made = jnp.maximum(state.step - metrics["skipped"], 0)  # a skipped step does not move the schedule
    metrics["lr"] = jnp.asarray(schedule(experiment.optim, experiment.train.steps)(made), jnp.float32)
    return State(step=state.step + 1, params=params, opt_state=opt_state), metrics


def compile_step(
    experiment: Experiment, tx: optax.GradientTransformationExtraArgs, layout: Layout
) -> Callable[[State, Batch], tuple[State, Metrics]]:
    """The jitted step for a mesh: state donated, laid out as `state.shardings` says, metrics replicated."""
    where = jax.tree.map(lambda s: s.sharding, states.abstract(experiment.model, tx, layout))
    rows = layout.batch((experiment.train.batch_size, experiment.train.seq_len))

    def step(state: State, batch: Batch) -> tuple[State, Metrics]:
        with sharding.use(layout):
            return train_step(state, batch, experiment, tx)

    return jax.jit(
        step, donate_argnums=0, in_shardings=(where, rows), out_shardings=(where, layout.replicated())
    )
