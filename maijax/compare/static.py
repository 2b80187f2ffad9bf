"""Experiments side by side, by arithmetic on their values and by published laws: nothing is run or compiled. No jax."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from maijax import overrides, plain, provenance, scaling, words
from maijax.compare.meaning import Difference, differences
from maijax.config import Experiment
from maijax.hardware import GiB, Topology
from maijax.plan import checks, search
from maijax.plan.arithmetic import Estimate, estimate

Kind = Literal["whole", "count", "number", "loss", "bytes", "gib", "seconds", "days", "dollars", "share", "text"]

_SAY: dict[Kind, Callable[[Any], str]] = {
    "whole": lambda v: f"{v:,}", "count": words.count, "number": lambda v: f"{v:.3g}", "loss": lambda v: f"{v:.3f}",
    "bytes": words.size, "gib": lambda v: f"{v / GiB:.3g} GiB", "seconds": words.duration,
    "days": lambda v: words.duration(v * 86_400), "dollars": lambda v: f"${words.count(v)}",
    "share": lambda v: f"{v:.1%}", "text": str,
}
# Looked at even where they are the same and no rule moves them.
_DIALS = ("model.parametrization.name", "optim.name", "optim.lr", "optim.schedule", "optim.warmup",
          "optim.weight_decay", "optim.b2", "train.batch_size", "train.seq_len", "train.steps")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
    """One fact of every experiment."""

    what: str
    values: tuple[Any, ...]  # None: not known, or not meant for this one
    kind: Kind
    note: str = ""  # where it comes from
    outside: tuple[bool, ...] = ()  # which values a law gives beyond the sizes that it was fitted to

    @property
    def same(self) -> bool:
        """Whether it tells the experiments not apart."""
        return all(value == self.values[0] for value in self.values)

    def cells(self) -> list[str]:
        """The values as people read them; those outside a law's range marked with an asterisk."""
        marks = self.outside or (False,) * len(self.values)
        return ["-" if value is None else _SAY[self.kind](value) + "*" * mark
                for value, mark in zip(self.values, marks, strict=True)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
    """Facts that are read together."""

    title: str
    lines: tuple[Line, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """Everything that values alone can tell of two or more experiments."""

    experiments: tuple[Experiment, ...]
    groups: tuple[Group, ...]
    differences: tuple[Difference, ...]
    step_seconds: tuple[float | None, ...] = ()  # planned, if a topology was given


def compare(
    experiments: Sequence[Experiment], topology: Topology | None = None, *,
    origins: Sequence[Mapping[str, str] | None] | None = None,
) -> Comparison:
    """Side by side; with a topology, what each would take on it by the planner's arithmetic.

    `origins` are those that runs recorded of their values; None for an experiment, whose own are found.
    """
    written = [found or provenance.explain(one) for one, found in
               zip(experiments, origins or [None] * len(experiments), strict=True)]
    groups = [_size(experiments), _budget(experiments), _laws(experiments), _dials(experiments, written)]
    steps: tuple[float | None, ...] = ()
    if topology is not None:
        plans = [planned(one, topology) for one in experiments]
        groups.append(_plans(plans, topology))
        steps = tuple(None if isinstance(p, str) else p[0].step_seconds for p in plans)
    return Comparison(
        experiments=tuple(experiments), groups=tuple(groups), differences=tuple(differences(experiments)),
        step_seconds=steps,
    )


def active(experiment: Experiment) -> int:
    """Parameters that touch one token."""
    return scaling.parameters(experiment.model).active


def expected_loss(experiment: Experiment, tokens: float | None = None) -> float | None:
    """By the Epoch refit, of a dense model of the active size, at the end or after so many tokens.

    None where it is no better than guessing among the vocabulary's tokens: there the law does not hold.
    """
    found = scaling.chinchilla_loss(active(experiment), experiment.tokens if tokens is None else tokens)
    return found if found < math.log(experiment.model.vocab_size) else None


def planned(experiment: Experiment, topology: Topology) -> tuple[Estimate, str] | str:
    """(what it takes, its layout) on the experiment's own mesh, else on the fastest that fits; or why it cannot run."""
    made = None
    if not (problems := checks.problems(experiment, topology)):
        made = estimate(experiment, topology)
        if made.fits:
            return made, _layout(made)
    found = search.search(experiment, topology, best=1)
    if found.best:
        return found.best[0].estimate, f"found: {found.best[0].text}"
    return (made, _layout(made)) if made is not None else problems[0]


def _size(experiments: Sequence[Experiment]) -> Group:
    models = [one.model for one in experiments]
    counted = [scaling.parameters(model) for model in models]
    return Group(title="size", lines=(
        _line("parameters", [c.total for c in counted], "whole", "without the vocabulary's padding"),
        _line("active", [c.active for c in counted], "whole", "touch one token"),
        _line("embedding", [c.embedding for c in counted], "whole", "input table, and head unless tied"),
        _line("layers x width", [f"{m.num_layers} x {m.d_model}" for m in models], "text"),
        _line("FLOPs per token", [_per_token(one) for one in experiments], "count",
              "forward and backward, causal, no remat"),
        _line("state", [scaling.state_bytes(one.model, one.optim) for one in experiments], "bytes",
              "weights, gradients, optimizer, in float32"),
        _line("activations of a sequence", [scaling.activation_bytes(one, 1) for one in experiments], "bytes",
              "kept for its backward pass; within a factor of two"),
    ))


def _budget(experiments: Sequence[Experiment]) -> Group:
    return Group(title="budget", lines=(
        _line("tokens", [one.tokens for one in experiments], "count", "steps x batch_size x seq_len"),
        _line("tokens per parameter", [scaling.tokens_per_parameter(one) for one in experiments], "number",
              "active ones"),
        _line("tokens per step", [one.train.batch_size * one.train.seq_len for one in experiments], "count"),
        _line("training FLOPs", [scaling.train_flops(one) for one in experiments], "number"),
    ))


def _laws(experiments: Sequence[Experiment]) -> Group:
    sizes = [active(one) for one in experiments]
    best = [scaling.compute_optimal(scaling.train_flops(one)) for one in experiments]
    ends = [expected_loss(one) for one in experiments]
    low, high = scaling.EPOCH_RANGE
    beyond = [not low <= n <= high for n in sizes]
    beyond_best = [not low <= n <= high for n, _ in best]
    step_law = [n > 1e9 or one.tokens > 1e11 for n, one in zip(sizes, experiments, strict=True)]
    refit = "Epoch refit (arXiv 2404.10102)"
    return Group(title="by law", lines=(
        _line("compute-optimal tokens", [scaling.chinchilla_tokens(one.model) for one in experiments], "count",
              "20 per active parameter (arXiv 2203.15556)"),
        _line("best size for the FLOPs", [n for n, _ in best], "count", refit, beyond_best),
        _line("best tokens for the FLOPs", [d for _, d in best], "count", refit, beyond_best),
        _line("loss at the end", ends, "loss",
              f"nats per token of web text, active size; -: no better than guessing; {refit}", beyond),
        _line("loss at the best size", [None if end is None else scaling.chinchilla_loss(*pair)
                                        for end, pair in zip(ends, best, strict=True)], "loss",
              f"for the same FLOPs; {refit}", beyond_best),
        _line("peak rate of AdamW", [scaling.step_law_lr(n, one.tokens) for n, one in
                                     zip(sizes, experiments, strict=True)], "number",
              "Step Law 1.79 N^-0.713 D^0.307 (arXiv 2503.04715)", step_law),
        _line("tokens per step", [scaling.step_law_batch(one.tokens) for one in experiments], "count",
              "Step Law 0.58 D^0.571 (arXiv 2503.04715)", step_law),
    ))


def _dials(experiments: Sequence[Experiment], origins: Sequence[Mapping[str, str]]) -> Group:
    """The hyperparameters, and what moves each: a rule with its source, or where its value was written."""
    flat = [plain.flatten(one) for one in experiments]
    ruled = [path for one in experiments for path, _ in one.rules if any(path in values for values in flat)]
    lines = []
    for path in [one for one in dict.fromkeys([*_DIALS, *ruled]) if any(one in values for values in flat)]:
        from_ = dict.fromkeys(_origin(where.get(path, "")) for where in origins)
        lines.append(_line(path, [overrides.show(values[path]) if path in values else None for values in flat],
                           "text", "; ".join(filter(None, from_))))
    return Group(title="hyperparameters, and what moves each", lines=tuple(lines))


def _plans(plans: Sequence[tuple[Estimate, str] | str], topology: Topology) -> Group:
    made = [None if isinstance(p, str) else p for p in plans]
    refused = [p if isinstance(p, str) else None for p in plans]

    def line(what: str, take: Callable[[Estimate], Any], kind: Kind, note: str = "") -> Line:
        return _line(what, [None if p is None else take(p[0]) for p in made], kind, note)

    slices = f" --slices {topology.slices}" if topology.slices > 1 else ""
    lines = [
        _line("layout", [p if isinstance(p, str) else p[1] for p in plans], "text",
              "of the mesh, or found; by arithmetic, NOT compiled, which may fail; this compiles it: "
              f"maijax plan NAME --topology {topology.text}{slices} --search"),
        line("peak memory", lambda e: e.peak_bytes, "gib",
             f"of {topology.chip.device_hbm / GiB:.3g} GiB of a device"),
        line("fits", lambda e: "yes" if e.fits else "no", "text"),
        line("step", lambda e: e.step_seconds, "seconds"),
        line("tokens/s of a chip", lambda e: e.tokens_per_chip, "count"),
        line("MFU", lambda e: e.mfu, "share", "6N and causal attention"),
        line("run", lambda e: e.days, "days", "without stops"),
        line("cost", lambda e: e.cost, "dollars", f"price of {topology.chip.priced}"),
    ]
    title = f"plan on {topology.title}, {words.plural(topology.chips, 'chip')} (model, not compiled)"
    return Group(title=title, lines=tuple(lines[:1] if all(refused) else lines))


def _line(what: str, values: Sequence[Any], kind: Kind, note: str = "", outside: Sequence[bool] = ()) -> Line:
    return Line(what=what, values=tuple(values), kind=kind, note=note, outside=tuple(outside))


def _per_token(experiment: Experiment) -> float:
    return scaling.train_flops_per_token(experiment.model, experiment.train.seq_len)


def _origin(origin: str) -> str:
    """The rule itself, or where the value was written; the class's default is no news."""
    return "" if origin == provenance.DEFAULT else origin.removeprefix("rule: ")


def _layout(made: Estimate) -> str:
    return ", ".join(f"{axis} {ways}" for axis, ways in made.mesh.items() if ways > 1) or "one device"
