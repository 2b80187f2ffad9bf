"""From an `OptimConfig` and the declared weights to one Optax transformation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util

from maijax import parametrization
from maijax.config import ModelConfig, OptimConfig
from maijax.optim import matrices
from maijax.optim.adafactor import scale_by_adafactor
from maijax.optim.adam import scale_by_adam
from maijax.optim.matrices import Tree
from maijax.optim.muon import scale_by_muon
from maijax.optim.schedules import Schedule, schedule
from maijax.weights import Weight, declare

Declared = Mapping[str, Weight]  # by path


class ChainState(NamedTuple):
    """Updates made so far (int32), and {rule: its state}, whose arrays lie in trees like the parameters'."""

    count: jax.Array
    rules: dict[str, Any]


class Rule(NamedTuple):
    """Which weights move in which direction, how fast."""

    weights: Declared
    direction: optax.GradientTransformation
    rate: Schedule


def build(optim: OptimConfig, model: ModelConfig, steps: int) -> optax.GradientTransformationExtraArgs:
    """The optimizer of a run: clip the global norm, find a direction, add decay, scale by the learning rate.

    | name | reads of OptimConfig, beside lr, schedule, weight_decay, clip_norm | state per weight |
    | --- | --- | --- |
    | adamw | b1, b2, eps | 2 |
    | muon | momentum for the hidden matrices; adam_lr, b1, b2, eps for the rest | 1; 2 for the rest |
    | adafactor | nothing more | a row and a column per matrix |
    | lion | b1, b2 | 1 |

    Decay is decoupled: a weight declared with `decay` shrinks by its lr * weight_decay per step. Weights
    that are not trained get an update of exactly 0 and no state. All state is float32; learning rates follow
    the count in the state. Muon multiplies in `model.dtype`; "auto" counts as float32, so resolve it
    first. `model.parametrization` multiplies each weight's rate, decay and eps, see maijax/parametrization.py.

    `init` and `update` take the parameter tree that `weights.declare(model)` describes; another raises
    ValueError. `update` needs the parameters, and takes `grad_norm` where that is known already.

    Source: decoupled decay: Loshchilov and Hutter, arXiv 1711.05101; clipping: Pascanu et al., 1211.5063.
    """
    declared = {w.path: w for w in declare(model)}
    scaled = {path: parametrization.multipliers(w, model, optim.name) for path, w in declared.items()}
    rules = _rules(optim, model, steps, {p: w for p, w in declared.items() if w.trained})

    def init(params: Tree) -> ChainState:
        flat = {path: p.astype(jnp.float32) for path, p in _flatten(params, declared).items()}
        states = {name: rule.direction.init(_nest(flat, rule.weights)) for name, rule in rules.items()}
        return ChainState(jnp.zeros((), jnp.int32), states)

    def update(
        updates: Tree, state: Any, params: Tree = None, *, grad_norm: Any = None, **extra: Any
    ) -> tuple[Tree, ChainState]:
        del extra
        grads = updates
        if params is None:
            raise ValueError("update needs the parameters: weights decay")
        flat_grads, flat_params = _flatten(grads, declared), _flatten(params, declared)
        factor = 1.0
        if optim.clip_norm is not None:
            norm = global_norm(grads) if grad_norm is None else grad_norm
            factor = jnp.minimum(1.0, optim.clip_norm / jnp.maximum(norm, 1e-30))
        flat_grads = {path: g.astype(jnp.float32) * factor for path, g in flat_grads.items()}
        moves = {path: jnp.zeros_like(p) for path, p in flat_params.items()}
        states = {}
        for name, rule in rules.items():
            own, old = _nest(flat_grads, rule.weights), _nest(flat_params, rule.weights)
            tree, states[name] = rule.direction.update(own, state.rules[name], old)
            found, rate = traverse_util.flatten_dict(tree, sep="/"), rule.rate(state.count)
            for path, weight in rule.weights.items():
                lr, decay = scaled[path].lr, optim.weight_decay * scaled[path].decay
                step = found[path] + decay * flat_params[path] if weight.decay else found[path]
                moves[path] = (-(rate if lr == 1 else lr * rate) * step).astype(flat_params[path].dtype)
        return traverse_util.unflatten_dict(moves, sep="/"), ChainState(state.count + 1, states)

    return optax.GradientTransformationExtraArgs(init, update)


def global_norm(grads: Tree) -> jax.Array:
    """Root of the sum of all squares, float32."""
    return optax.tree.norm(jax.tree.map(lambda g: g.astype(jnp.float32), grads))


def _rules(optim: OptimConfig, model: ModelConfig, steps: int, trained: Declared) -> dict[str, Rule]:
    rate = schedule(optim, steps)

    def adam(chosen: Declared) -> optax.GradientTransformation:
        eps = {p: optim.eps * parametrization.multipliers(w, model, optim.name).eps for p, w in chosen.items()}
        return scale_by_adam(_nest(eps, chosen), b1=optim.b1, b2=optim.b2)

    if optim.name == "adamw":
        return {"adamw": Rule(trained, adam(trained), rate)}
    if optim.name == "lion":
        return {"lion": Rule(trained, optax.scale_by_lion(optim.b1, optim.b2, mu_dtype=jnp.float32), rate)}
    if optim.name == "adafactor":
        return {"adafactor": Rule(trained, scale_by_adafactor(_nest(trained, trained)), rate)}
    hidden = {p: w for p, w in trained.items() if w.group == "hidden" and matrices.is_matrix(w)}
    rest = {p: w for p, w in trained.items() if p not in hidden}
    dtype = jnp.bfloat16 if model.dtype == "bfloat16" else jnp.float32
    muon = scale_by_muon(_nest(hidden, hidden), beta=optim.momentum, dtype=dtype)
    return {
        "muon": Rule(hidden, muon, rate),
        "adamw": Rule(rest, adam(rest), schedule(optim, steps, peak=optim.adam_lr)),
    }


def _flatten(tree: Tree, declared: Declared) -> dict[str, Any]:
    flat = traverse_util.flatten_dict(tree, sep="/")
    if flat.keys() != declared.keys():
        strange = ", ".join(sorted(flat.keys() ^ declared.keys()))
        raise ValueError(f"the tree has not the weights that the model declares; they differ in {strange}")
    return flat


def _nest(flat: Mapping[str, Any], chosen: Declared) -> Tree:
    return traverse_util.unflatten_dict({path: flat[path] for path in chosen}, sep="/")
