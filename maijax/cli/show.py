"""The verbs that read experiments: list, show, diff. No jax."""

from __future__ import annotations

import argparse
import dataclasses
import fnmatch
import json
import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar

from maijax import laws, overrides, plain, provenance, registry, scaling
from maijax.cli import choose
from maijax.cli.table import count, fit, paragraph, rows, size
from maijax.compare.meaning import MEANINGS, Difference, differences
from maijax.config import Experiment
from maijax.errors import UserError
from maijax.words import plural

T = TypeVar("T")


def list_(args: argparse.Namespace) -> int:
    """Returns 0, or 2 if something registered cannot be made: it is named on stderr, and the others are listed."""
    if args.module:
        registry.load_module(args.module)
    pattern = args.pattern or "*"
    wanted = pattern if set(pattern) & set("*?[") else f"*{pattern}*"
    names = [name for name in registry.names() if fnmatch.fnmatch(name, wanted)]
    sweep_names = [name for name in registry.sweep_names() if fnmatch.fnmatch(name, wanted)]
    if not names and not sweep_names:
        known = ", ".join([*registry.names(), *registry.sweep_names()])
        raise UserError(f"no experiment matches {pattern!r}; there are {known}")
    experiments, faults = _made(names, registry.get)
    sweeps, more = _made(sweep_names, registry.sweep)
    for fault in (*faults, *more):
        print("maijax:", " ".join(fault.split()), file=sys.stderr)
    code = 2 if faults or more else 0
    found = sorted(experiments.items(), key=lambda pair: _totals(pair[1])["parameters"])
    if args.json:
        lines = [{"name": n, "question": _question(n)} | _totals(e) for n, e in found]
        lines += [{"name": n, "question": _question(n), "trials": s.count, "trial": _totals(s.base)}
                  for n, s in sweeps.items()]
        print(json.dumps(lines, indent=1))
        return code
    table = [("name", "parameters (active)", "tokens", "question")]
    for name, experiment in found:
        totals = _totals(experiment)
        active = totals["active_parameters"]
        size_text = count(totals["parameters"]) + (f" ({count(active)})" if experiment.model.moe else "")
        table.append((name, size_text, count(totals["tokens"]), _question(name)))
    for name, sweep in sweeps.items():
        tokens = count(sweep.count * _totals(sweep.base)["tokens"])
        table.append((name, f"sweep, {plural(sweep.count, 'trial')}", tokens, _question(name)))
    rows(table, widths=fit(table, most=(24, 19, 6)))
    return code


def _made(names: list[str], make: Callable[[str], T]) -> tuple[dict[str, T], list[str]]:
    """(what can be made, what is wrong with the others)."""
    found, faults = {}, []
    for name in names:
        try:
            found[name] = make(name)
        except UserError as error:
            faults.append(str(error))
    return found, faults


def show(args: argparse.Namespace) -> int:
    experiment, base = choose.experiment(args)
    entry = registry.entry(args.name)
    origins = provenance.explain(experiment, base)
    values = {path: value for path, value in plain.flatten(experiment).items() if path not in plain.METADATA}
    totals = _totals(experiment)
    if args.json:
        plainly = {
            "name": experiment.name, "file": entry.file, "line": entry.line, "doc": entry.doc,
            "values": {path: {"value": plain.to_plain(v), "from": origins[path]} for path, v in values.items()},
            "totals": totals, "multipliers": dict(laws.moved(experiment)),
            "laws": [dataclasses.asdict(one) for one in laws.advice(experiment)],
        }
        print(json.dumps(plainly, indent=1))
        return 0
    print(f"{experiment.name}  ({_short(entry.file)}:{entry.line})\n")
    paragraph(entry.doc)
    blocks: dict[str, list[tuple[str, str, str]]] = {}
    for path, value in values.items():
        block, _, field = path.partition(".")
        blocks.setdefault(block, []).append((f"  {field}", text(value), origins[path]))
    if moved := laws.moved(experiment):
        how = experiment.model.parametrization.name
        blocks["multipliers"] = [(f"  {what}", f"x {value:.4g}", how) for what, value in moved]
    blocks["totals"] = _totals_text(experiment)
    blocks["laws"] = [
        (f"  {one.path}", _law_value(one), f"{one.law} ({one.source})") for one in laws.advice(experiment)
    ]
    widths = fit([row for table in blocks.values() for row in table], most=(38, 26))
    for block, table in blocks.items():
        print(f"\n{block}")
        rows(table, widths=widths)
    return 0


def diff(args: argparse.Namespace) -> int:
    a, b = (choose.named(name, args.module) for name in (args.a, args.b))
    found = differences([a, b])
    if args.json:
        values = {
            one.path: {"a": _json(one.values[0]), "b": _json(one.values[1]), "meaning": one.meaning,
                       "rules": list(one.reasons), "explained": one.explained}
            for one in found
        }
        print(json.dumps({"a": a.name, "b": b.name, "values": values, "totals": [_totals(a), _totals(b)]}, indent=1))
        return 0
    if not found:
        print(f"{a.name} and {b.name}: every value is the same")
        return 0
    pairs = zip(_totals_text(a), _totals_text(b), strict=True)
    groups = {"totals": [(name, x, y, "") for (name, x, _), (_, y, _) in pairs if x != y]}
    for meaning in MEANINGS:
        groups[meaning] = [
            (f"{'+' if one.explained else ' '} {one.path}", text(one.values[0]), text(one.values[1]), _law(one, a, b))
            for one in found if one.meaning == meaning
        ]
    head = ("", a.name, b.name, "rule")
    widths = fit([head, *(row for table in groups.values() for row in table)], most=(36, 24, 24))
    rows([head], widths=widths)
    for group, table in groups.items():
        if table:
            print(group)
            rows(table, widths=widths)
    explained = sum(one.explained for one in found)
    differ = f"{len(found)} values differ" if len(found) > 1 else "1 value differs"
    print(f"\n{differ}; a scaling rule explains {explained}{', marked +' if explained else ''}")
    return 0


def text(value: Any) -> str:
    """A value as `--set` takes it, with a space where a long list may be broken."""
    shown = overrides.show(value)
    return shown.replace(",", ", ") if isinstance(value, tuple) else shown


def _totals(experiment: Experiment) -> dict[str, Any]:
    counted = scaling.parameters(experiment.model)
    return {
        "parameters": counted.total,
        "active_parameters": counted.active,
        "embedding_parameters": counted.embedding,
        "flops_per_token": scaling.train_flops_per_token(experiment.model, experiment.train.seq_len),
        "tokens": experiment.tokens,
        "tokens_per_parameter": scaling.tokens_per_parameter(experiment),
        "train_flops": scaling.train_flops(experiment),
        "state_bytes": scaling.state_bytes(experiment.model, experiment.optim),
        "chinchilla_tokens": scaling.chinchilla_tokens(experiment.model),
    }


def _totals_text(experiment: Experiment) -> list[tuple[str, str, str]]:
    totals = _totals(experiment)
    return [
        ("  parameters", f"{totals['parameters']:,}", "without the vocabulary's padding"),
        ("  active", f"{totals['active_parameters']:,}", "touch one token"),
        ("  embedding", f"{totals['embedding_parameters']:,}", "input table, and head unless tied"),
        ("  FLOPs per token", f"{totals['flops_per_token']:.4g}", "forward and backward, causal, no remat"),
        ("  tokens", f"{totals['tokens']:,}", "steps x batch_size x seq_len"),
        ("  tokens per parameter", f"{totals['tokens_per_parameter']:.3g}", "active ones"),
        ("  compute-optimal tokens", count(totals["chinchilla_tokens"]), "20 per active parameter (arXiv 2203.15556)"),
        ("  training FLOPs", f"{totals['train_flops']:.3g}", ""),
        ("  state", size(totals["state_bytes"]), "weights, gradients, optimizer, in float32"),
    ]


def _law_value(one: laws.Advice) -> str:
    return count(one.value) if one.value >= 1e3 else f"{one.value:.3g}"


def _question(name: str) -> str:
    return (registry.sweep_entry(name) or registry.entry(name)).doc.partition("\n")[0]


def _law(one: Difference, a: Experiment, b: Experiment) -> str:
    """The rules, and whose value each gives where it is not both."""
    both = [law for law in one.laws[0] if law in one.laws[1]]
    own = [f"{name}: {law}" for name, laws in zip((a.name, b.name), one.laws, strict=True)
           for law in laws if law not in both]
    return "; ".join([*both, *own])


def _json(value: Any) -> Any:
    return None if value is plain.ABSENT else plain.to_plain(value)


def _short(file: str) -> str:
    """Relative to where the person is, if it lies below."""
    relative = os.path.relpath(file)
    return file if relative.startswith("..") else relative


