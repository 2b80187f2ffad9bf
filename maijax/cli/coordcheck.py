"""The verb coordcheck: does what was tuned small act alike at other widths and depths? Trains, so it needs jax."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

from maijax.cli import choose
from maijax.cli.table import fit, paragraph, rows
from maijax.errors import UserError

if TYPE_CHECKING:
    from maijax.train.coordcheck import Report


def coordcheck(args: argparse.Namespace) -> int:
    """Returns 0 if every slope that the parametrisation promises lies in the bounds, else 1."""
    experiment, _ = choose.experiment(args)
    if args.html and not Path(args.html).absolute().parent.is_dir():  # said before minutes of work, not after
        raise UserError(f"--html {args.html}: there is no folder {Path(args.html).parent}; make it first")
    from maijax.data import cachedir
    from maijax.train import coordcheck as checking
    from maijax.train import coordpage, programs, sheet
    from maijax.train.progress import Progress

    programs.keep(cachedir.ready(cachedir.default()))  # compiling takes most of the time
    with Progress(total=0, what="size", enabled=not args.json) as bar:
        report = checking.check(experiment, tell=lambda done, total, text: bar.count(done, text, total=total))
    verdict = _verdict(report)
    about = (
        f"A shrunk copy of {report.name}'s structure: widths {_list(checking.WIDTHS)} of heads of at most "
        f"{checking.MOST_HEAD_DIM}, depths {_list(checking.DEPTHS)}; {checking.STEPS} steps of {report.optimizer} at a "
        f"constant {checking.RATES[report.optimizer]:g} without decay, on one batch of {checking.ROWS} x "
        f"{checking.LENGTH} random tokens of {checking.KINDS['width']} kinds, over depth of "
        f"{checking.KINDS['depth']}; mean of {checking.SEEDS} seeds."
    )
    if experiment.model.parametrization.name == "standard":
        about += f" {report.name} itself is in the standard parametrisation, which promises nothing."
    if args.html:
        sheet.publish(args.html, coordpage.render(report, verdict, about))
    if args.json:
        lines = [
            dataclasses.asdict(line) | {
                "values": [v if math.isfinite(v) else None for v in line.values],
                "slope": line.slope if math.isfinite(line.slope) else None, "holds": line.holds,
            }
            for line in report.lines
        ]
        print(json.dumps({
            "name": report.name, "optimizer": report.optimizer, "parametrization": report.parametrization,
            "passed": report.passed, "verdict": verdict, "bounds": checking.BOUNDS, "lines": lines,
        }, indent=1))
    else:
        paragraph(about)
        for axis in ("width", "depth"):
            _print(report, axis)
        print()
        paragraph(verdict)
        if args.html:
            print(f"  {args.html}")
    return 0 if report.passed else 1


def _print(report: Report, axis: str) -> None:
    """A line for each parametrisation and quantity: mean |x| at each size, the slope, and what it means."""
    chosen = [line for line in report.lines if line.axis == axis]
    table = [(axis, "mean |x| of", *map(str, chosen[0].sizes), "slope", "")]
    for line in chosen:
        meaning = "" if not line.judged else "holds" if line.holds else "out of bounds"
        values = (f"{v:.3g}" if math.isfinite(v) else "diverged" for v in line.values)
        table.append((f"  {line.parametrization}", line.quantity, *values, f"{line.slope:+.2f}", meaning))
    print()
    rows(table, widths=fit(table, most=(12, 15, *(9 for _ in chosen[0].sizes), 6)))


def _verdict(report: Report) -> str:
    """What the slopes say, in a sentence or two."""
    from maijax.train.coordcheck import CONTROL
    from maijax.train.coordpage import bounds

    judged = [line for line in report.lines if line.judged]
    out = [line for line in judged if not line.holds]
    axes = " and ".join(dict.fromkeys(line.axis for line in judged))
    if out:
        names = "; ".join(f"{line.quantity} over {line.axis} {line.slope:+.2f}" for line in out)
        said = f"FAIL: {report.parametrization} with {report.optimizer} leaves {bounds()}: {names}."
    else:
        said = f"PASS: under {report.parametrization} with {report.optimizer} every slope over {axes} is in {bounds()}."
    if report.control > CONTROL:
        return f"{said} The standard parametrisation's residual stream grows by {report.control:+.2f} over width."
    return (
        f"FAIL: the standard parametrisation's residual stream grows by {report.control:+.2f} over width, not above "
        f"{CONTROL:+.0f}, so this check could not have told. {said}"
    )


def _list(sizes: tuple[int, ...]) -> str:
    return ", ".join(map(str, sizes))
