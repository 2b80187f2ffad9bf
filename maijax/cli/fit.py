"""The verb that fits scaling laws, keeps predictions and scores them."""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maijax.cli import choose
from maijax.cli.table import fit as fitted
from maijax.cli.table import paragraph, rows
from maijax.errors import UserError
from maijax.words import count, plural

if TYPE_CHECKING:
    from maijax.compare import fits, isoflop, ledger, points

SHOWN = 16  # runs in the table; of more, those that miss most


def fit(args: argparse.Namespace) -> int:
    """Prints a fit, or the ledger; writes a prediction or a page where asked to."""
    _check(args)
    if args.ledger:
        return scored(args)
    from maijax.compare import fits, isoflop, ledger, points, select

    measure = "bits_per_byte" if args.bits else "loss"
    found = points.gather(args.runs, runs_dir=args.runs_dir, count=args.params, measure=measure)
    try:
        law = fits.fit(found.points, command=_command(args))
    except UserError as error:
        raise UserError("; ".join([str(error), *points.left_out_words(found.left_out)])) from None
    budgets = isoflop.fit(found.points)
    made = entry = None
    if args.name:
        experiment, _ = choose.experiment(args)
        if found.run is not None:
            select.comparable(found.run, (experiment.name, experiment), measure)
        place = points.of_experiment(experiment, name=experiment.name, count=args.params)
        made = ledger.foretell(
            law, place, settings=args.set, measure=measure, count=args.params, runs_dir=args.runs_dir
        )
        entry = ledger.kept(args.runs_dir, made)
    if args.html:
        from maijax.compare import fit_page

        fit_page.write(args.html, fit=law, budgets=budgets, entry=entry, unit=select.UNIT[measure],
                       counted=args.params)
    if made is not None and not args.dry_run:  # after the page, so that what failed can be said again
        entry = ledger.write(args.runs_dir, made)
    file = None if made is None or args.dry_run else Path(args.runs_dir) / ledger.LEDGER
    if args.json:
        told = plainly(found, law, budgets, entry, args) | {"ledger": None if file is None else str(file)}
        print(json.dumps(told, indent=1, allow_nan=False))
        return 0
    tell(found, law, budgets, args)
    if entry is not None:
        tell_entry(entry)
        if entry is not made:
            paragraph(f"the same was foretold at {entry.at}, and is kept once")
        paragraph(f"kept in {file}; `maijax fit --ledger` scores it" if file else "nothing was written")
    if args.html:
        print(f"\npage: {args.html}")
    return 0


def _command(args: argparse.Namespace) -> str:
    """As it was asked, for other RUNS to follow."""
    return " ".join(["maijax fit", *["--bits"] * args.bits, *[f"--params {args.params}"] * (args.params != "active")])


def _check(args: argparse.Namespace) -> None:
    if args.ledger:
        if args.runs or args.name or args.html:
            raise UserError("--ledger only reads what was foretold; leave RUNS, --predict and --html out")
    elif not args.runs:
        raise UserError("no RUNS to fit; give names or folders of runs, or files of points (see maijax fit --help)")
    if not args.name:
        for flag, value in (("--set", args.set), ("--dry-run", args.dry_run)):
            if value:
                raise UserError(f"{flag} changes what --predict does; add --predict NAME, or leave it out")


def tell(found: points.Points, law: fits.Fit, budgets: isoflop.IsoFlop | None, args: argparse.Namespace) -> None:
    """Prints what was fitted, coefficients, the best split, budgets, and what each run missed the law by."""
    from maijax.compare import points, select

    unit = select.UNIT["bits_per_byte" if args.bits else "loss"]
    print(f"{len(law.points)} points, held-out {unit}, N of {args.params} parameters")
    paragraph(f"{law.form.text}: {law.form.why}")
    for said in points.left_out_words(found.left_out):
        paragraph(said)
    if found.differ:
        paragraph(f"not the same in all runs, beside size and length: {points.differ_words(found.differ)}")
    table = [("", "value", f"{_level():.0%} of resamples")]
    table += [(f"  {name}", _number(e.value), e.span(_number)) for name, e in law.coefficients().items()]
    if (split := law.best_split()) is not None:
        factor, power = split
        largest = max(6 * p.params * p.tokens for p in law.points)
        params = law.best_params(largest)
        table += [
            ("  N_opt = k C^p at C = 6 N D: k", _number(factor.value), factor.span(_number)),
            ("    p", _number(power.value), power.span(_number)),
            (f"  N_opt at the largest C here, {largest:.3g}", count(params.value), params.span(count)),
        ]
    print()
    rows(table, widths=fitted(table, most=(46, 14)))
    if budgets is not None:
        _tell_budgets(budgets)
    _tell_runs(law)


def _tell_budgets(budgets: isoflop.IsoFlop) -> None:
    table = [("IsoFLOP budget", "sizes", "N_opt", "", "D_opt", "loss at it")]
    table += [
        (f"  {b.flops:.3g}", str(len({p.params for p in b.points})), count(b.params.value), b.params.span(count),
         count(b.tokens.value), f"{b.loss.value:.4f}  {b.loss.span(_number)}") for b in budgets.budgets
    ]
    print()
    rows(table, widths=fitted(table, most=(16, 6, 8, 22, 8)))
    for flops, why in budgets.left_out:
        paragraph(f"{flops:.3g} FLOPs: {why}")
    for name, law in (("N_opt", budgets.params), ("D_opt", budgets.tokens)):
        if law is not None:
            paragraph(f"{name} = {_number(law.factor.value)} C^{law.power.value:.4g}, exponent "
                      f"{law.power.span(_number)}, factor {law.factor.span(_number)}")


def _tell_runs(law: fits.Fit) -> None:
    missed = sorted(zip(law.points, law.residuals, strict=True), key=lambda pair: -abs(pair[1]))
    shown = sorted(missed[:SHOWN], key=lambda pair: pair[0].flops)
    head = "point" if len(missed) <= SHOWN else f"the {SHOWN} that miss most"
    table = [(head, "N", "D", "C", "held out", "miss")]
    table += [(f"  {p.name}", count(p.params), count(p.tokens), f"{p.flops:.3g}", f"{p.loss:.4f}",
               f"{math.expm1(r):+.2%}") for p, r in shown]
    print()
    rows(table, widths=fitted(table, most=(48, 8, 8, 9, 9)))


def tell_entry(entry: ledger.Entry) -> None:
    print()
    said = " ".join([entry.name, *entry.settings])
    paragraph(f"{said}: foretold {entry.predicted:.4f}, {entry.low:.4f} to {entry.high:.4f} for {entry.level:.0%} of "
              f"single runs ({count(entry.params)} parameters, {count(entry.tokens)} tokens)")
    if entry.void:
        paragraph(f"no prediction: {entry.void}; it is kept as such")


def scored(args: argparse.Namespace) -> int:
    """Prints every prediction beside what came of it."""
    from maijax.compare import ledger

    found = ledger.scores(args.runs_dir)
    file, (_, damaged) = Path(args.runs_dir) / ledger.LEDGER, ledger.examine(args.runs_dir)
    if damaged:
        lines = ", ".join(map(str, damaged))
        print(f"maijax: {file}: no prediction can be read from line {lines}; restore it from a copy", file=sys.stderr)
    if args.json:
        lines = [_entry(s.entry) | {"standing": s.standing, "run": s.run, "measured": s.measured, "miss": s.miss}
                 for s in found]
        print(json.dumps(lines, indent=1, allow_nan=False))
        return 0
    if not found:
        raise UserError(f"{file} holds no prediction; make one with `maijax fit RUNS --predict NAME`")
    table = [("foretold", "experiment", "loss", "interval", "measured", "miss", "")]
    for score in found:
        entry = score.entry
        measured = "" if score.measured is None else f"{score.measured:.4f}"
        miss = "" if score.miss is None else f"{score.miss:+.2%}"
        bits = " bits" if entry.measure == "bits_per_byte" else ""
        table.append((
            entry.at[:10], " ".join([entry.name, *entry.settings]),
            f"{entry.predicted:.4f}{bits}", f"{entry.low:.4f} to {entry.high:.4f}", measured, miss,
            score.standing,
        ))
    rows(table, widths=fitted(table, most=(10, 26, 11, 18, 8, 7)))
    settled = [s for s in found if s.standing in ("inside", "outside")]
    print()
    if any(s.standing == "open" for s in found):
        paragraph("open: no run of that configuration is finished", indent="")
    if any(s.standing == "too late" for s in found):
        paragraph("too late: a run of that configuration had begun before it was foretold, which makes it no "
                  "prediction", indent="")
    if any(s.standing == "says nothing" for s in found):
        print(f"says nothing: the interval's high end is over {ledger.WIDEST:g} times its low one")
    if settled:
        inside = sum(s.standing == "inside" for s in settled)
        print(f"{inside} of {plural(len(settled), 'prediction')} inside the interval, which asks for {_level():.0%}")
    return 0


def plainly(
    found: points.Points, law: fits.Fit, budgets: isoflop.IsoFlop | None, entry: ledger.Entry | None,
    args: argparse.Namespace,
) -> dict[str, Any]:
    """All of a fit, for programs."""
    split = law.best_split()
    return {
        "form": law.form.text, "variables": law.form.variables, "why": law.form.why, "params": args.params,
        "measure": "bits_per_byte" if args.bits else "loss", "level": _level(), "resamples": len(law.draws),
        "coefficients": {k: _estimate(v) for k, v in law.coefficients().items()},
        "best_params": None if split is None else {"factor": _estimate(split[0]), "power": _estimate(split[1])},
        "points": [
            {"name": p.name, "params": p.params, "tokens": p.tokens, "flops": p.flops, "loss": p.loss,
             "miss": math.expm1(r), "losses": p.losses} for p, r in zip(law.points, law.residuals, strict=True)
        ],
        "left_out": [{"name": name, "why": why} for name, why in found.left_out],
        "differ": dict(found.differ),
        "isoflop": None if budgets is None else {
            "budgets": [{"flops": b.flops, "params": _estimate(b.params), "tokens": _estimate(b.tokens),
                         "loss": _estimate(b.loss), "points": [p.name for p in b.points]} for b in budgets.budgets],
            "left_out": [{"flops": flops, "why": why} for flops, why in budgets.left_out],
        } | {
            name: None if power is None else {"factor": _estimate(power.factor), "power": _estimate(power.power)}
            for name, power in (("params", budgets.params), ("tokens", budgets.tokens))
        },
        "prediction": None if entry is None else _entry(entry),
    }


def _entry(entry: ledger.Entry) -> dict[str, Any]:
    from maijax import plain

    return plain.to_plain(entry)


def _estimate(estimate: fits.Estimate) -> dict[str, float | None]:
    return {k: v if math.isfinite(v) else None for k, v in estimate._asdict().items()}


def _level() -> float:
    from maijax.compare import fits

    return fits.LEVEL


def _number(value: float) -> str:
    """Four digits; what is next to nothing beside any loss is 0."""
    return "0" if value < 1e-9 else f"{value:.4g}"
