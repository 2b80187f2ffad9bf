"""The verb compare: experiments by arithmetic, runs by what they measured, ladders by how a gain moves. No jax."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maijax import plain, registry
from maijax.cli.table import fit, paragraph, rows
from maijax.compare import static
from maijax.compare.static import Comparison, Group
from maijax.config import Experiment
from maijax.errors import UserError
from maijax.words import count, duration

if TYPE_CHECKING:
    from maijax.compare.ladder import Ladder
    from maijax.compare.measured import Measured
    from maijax.compare.runs import Side

_BESIDE = 3  # experiments in one table of 100 columns
_CELL = 17


def compare(args: argparse.Namespace) -> int:
    """Prints text or JSON, and writes a page where one is asked for; raises UserError for names that lead nowhere."""
    if args.module:
        registry.load_module(args.module)
    if len(args.names) < 2:
        raise UserError(f"compare {args.names[0]}: give two names or more, e.g. `maijax compare {args.names[0]} B`")
    topology = registry.topology(args.topology, args.slices) if args.topology else None
    if args.ladder:
        if topology:
            raise UserError("--ladder reads runs; a --topology is for experiments: leave one out")
        return _ladders(args)
    experiments, origins, measured = _sides(args.names, args.runs_dir)
    compared = static.compare(experiments, topology, origins=origins)
    path = _write(args.html, compared=compared, measured=measured)
    if args.json:
        print(json.dumps(plainly(compared, measured), indent=1))
    elif measured is None:
        _print_static(compared.groups, compared)
        _hint(args)
    else:  # what was measured is the answer; of the arithmetic, what tells the sides apart
        _print_measured(measured)
        if idle := [one.name for one, origin in zip(experiments, origins, strict=True) if origin is None]:
            paragraph(f"not run, here by arithmetic alone: {', '.join(idle)}")
        differing = [dataclasses.replace(group, lines=tuple(line for line in group.lines if not line.same))
                     for group in compared.groups]
        print("\nby arithmetic, where they differ (all of it: --json, --html)")
        _print_static([group for group in differing if group.lines], compared)
    _say(path, args)
    return 0


def _sides(
    names: Sequence[str], runs_dir: str
) -> tuple[list[Experiment], list[dict[str, str] | None], Measured | None]:
    """The experiments that the names mean, the recorded origins of runs' values, and what the runs measured.

    A name that is an experiment's and a run's means the experiment if all the others are experiments, else the run.
    """
    registered = set(registry.names())
    if all(name in registered for name in names):
        return [registry.get(name) for name in names], [None] * len(names), None
    from maijax.compare import measured, runs, select
    from maijax.train import rundir

    found: list[tuple[int, Experiment, dict[str, str] | None]] = []  # the first is where it was named
    ran: dict[str, int] = {}
    for at, name in enumerate(names):
        if runs.is_run(runs_dir, name):
            ran.setdefault(name, at)
        elif name in registered:
            found.append((at, registry.get(name), None))
        else:
            _unknown(name, runs_dir)
    sides = runs.gather(runs_dir, list(ran))
    named = {folder.resolve(): at for name, at in reversed(ran.items())
             for folder in select.folders(runs_dir, name)}
    for side in sides:
        at = min(named[run.folder.resolve()] for run in side.runs)
        found.append((at, dataclasses.replace(side.experiment, name=side.name),
                      rundir.provenance(side.runs[0].folder)))
    if len(found) < 2:
        raise UserError(f"{' and '.join(names)} are {_one_side(sides[0])}; name another to compare with")
    found.sort(key=lambda one: one[0])
    return ([experiment for _, experiment, _ in found], [origin for *_, origin in found],
            measured.measure(sides) if sides else None)


def _one_side(side: Side) -> str:
    """What names of one side's runs are."""
    if len(side.runs) > 1:
        return f"seeds of one experiment, {len(side.runs)} in all"
    return "runs of one experiment and seed" if side.copies else f"the same run, {side.name}"


def _unknown(name: str, runs_dir: str) -> None:
    """Raises with what is near, of experiments and of runs."""
    from maijax.train import rundir

    said = []
    ways = [lambda: registry.entry(name), lambda: rundir.find(runs_dir, name)]
    for look in ways[1:] if Path(name).exists() or (Path(runs_dir) / name).exists() else ways:
        try:
            look()
        except UserError as error:
            said.append(str(error))
    raise UserError("; ".join(said))


def _ladders(args: argparse.Namespace) -> int:
    from maijax.compare import ladder, measured

    first, *others = args.names
    found = [ladder.ladder(args.runs_dir, first, other) for other in others]
    path = _write(args.html, ladders=found)
    if args.json:
        print(json.dumps({"ladders": [measured.ladder_plainly(one) for one in found]}, indent=1))
    else:
        for one in found:
            _print_ladder(one)
    _say(path, args)
    return 0


def plainly(compared: Comparison, measured: Measured | None) -> dict[str, Any]:
    """For programs: numbers as they are, None where there is none."""
    from maijax.compare import measured as told

    return {
        "names": [one.name for one in compared.experiments],
        "facts": {group.title: {line.what: {"values": list(line.values), "note": line.note,
                                            "outside_law": list(line.outside)} for line in group.lines}
                  for group in compared.groups},
        "differences": {one.path: {
            "values": [None if v is plain.ABSENT else plain.to_plain(v) for v in one.values],
            "meaning": one.meaning, "rules": list(one.reasons), "explained": one.explained,
        } for one in compared.differences},
    } | ({} if measured is None else {"measured": told.plainly(measured)})


def _print_static(groups: Sequence[Group], compared: Comparison) -> None:
    names = [one.name for one in compared.experiments]
    for first in range(0, len(names), _BESIDE):
        part = slice(first, first + _BESIDE)
        head = ("", *names[part], "")
        tables = {group.title: [(f"  {line.what}", *line.cells()[part], line.note) for line in group.lines]
                  for group in groups}
        every = [head, *(row for table in tables.values() for row in table)]
        widths = fit(every, most=(28, *[_CELL] * len(names[part])))
        rows([head] if not first else [("",) * len(head), head], widths=widths)
        for title, table in tables.items():
            print(f"\n{title}")
            rows(table, widths=widths)
    print()
    if any(mark for group in groups for line in group.lines for mark in line.outside):
        paragraph("* beyond the sizes that the law was fitted to")
    paragraph(difference_words(compared))


def difference_words(compared: Comparison) -> str:
    """How many values differ, in what, and how many a rule explains."""
    found = compared.differences
    if not found:
        return "every value is the same"
    kinds = Counter(one.meaning for one in found)
    explained = sum(one.explained for one in found)
    parts = ", ".join(f"{number} in {kind}" for kind, number in kinds.items())
    differ = f"{len(found)} values differ" if len(found) > 1 else "1 value differs"
    return f"{differ}: {parts}; a scaling rule explains {explained}"


def _print_measured(found: Measured) -> None:
    from maijax.compare import measured as told

    print(f"held-out loss ({found.why_metric})")
    head = ("", "at the end", "tokens", "FLOPs", "time")
    table = [(f"  {side.name}", told.spread(found.ends[i]), count(side.runs[0].last.tokens),
              f"{side.runs[0].last.flops:.3g}", _time(side.runs[0].last.seconds)) for i, side in enumerate(found.sides)]
    rows([head, *table], widths=fit([head, *table], most=(40, 18, 10, 10)))
    for side in found.sides:
        if side.how:
            paragraph(f"{side.name}: {side.how}")
    if found.levels:
        print("\nat equal budget, and the difference to the first (95% interval over seeds)")
        for first in range(0, len(found.sides), _BESIDE):
            _print_levels(found, list(range(first, min(first + _BESIDE, len(found.sides)))))
    elif found.gains:
        paragraph("nothing stands at equal budget: there is none at which all of them were evaluated")
    if found.gains:
        print()
        paragraph(f"gain: how many times as much {found.sides[0].name} needs to come as low{told.OVER_PAIRS}",
                  indent="")
        head = ("", "tokens", "FLOPs", "seconds")
        table = [(f"  {side.name}", *map(told.gain_words, gains))
                 for side, gains in zip(found.sides[1:], found.gains, strict=True)]
        rows([head, *table], widths=fit([head, *table], most=(24, 23, 23)))
    for note in found.notes:
        paragraph(f"note: {note}")


def _print_levels(found: Measured, which: list[int]) -> None:
    from maijax.compare import measured as told

    head = ("", *(found.sides[i].name for i in which))
    table = []
    for level in found.told_levels:
        cells = []
        for i in which:
            text, gap = told.spread(level.losses[i]), level.differences[i]
            if gap is not None:
                text += f" ({gap[0]:+.3f}" + (f"±{gap[1]:.3f})" if gap[1] is not None else ")")
            cells.append(text)
        table.append((f"  {told.amount(level.budget, level.spent)}", *cells))
    rows([head, *table], widths=[20, *[78 // len(which) - 2] * len(which)])


def _print_ladder(found: Ladder) -> None:
    from maijax.compare import measured as told

    paragraph(f"gain of {found.b} over {found.a}, by size ({found.why_metric})", indent="")
    print()
    head = ("  parameters", "FLOPs", "loss A", "loss B", "seeds", "tried", f"gain{told.OVER_PAIRS}")
    table = []
    for rung in found.rungs:
        gains = [told.factor(g) for g in rung.gains]
        mean = told.factor(sum(rung.gains) / len(gains))
        table.append((f"  {count(rung.a.parameters)}", f"{rung.flops('a'):.3g}",
                      f"{rung.loss('a', found.metric):.4f}", f"{rung.loss('b', found.metric):.4f}",
                      str(len(rung.pairs)), f"{rung.a.tried}, {rung.b.tried}", told.ranged(mean, gains)))
    rows([head, *table], widths=fit([head, *table], most=(14, 12, 10, 10, 6, 8)))
    print()
    for said in told.verdict_words(found):
        paragraph(said)
    for note in found.notes:
        paragraph(f"note: {note}")


def _time(seconds: float | None) -> str:
    return "-" if seconds is None else duration(seconds)


def _hint(args: argparse.Namespace) -> None:
    """Names of experiments that are runs, too."""
    there = [name for name in args.names if (Path(args.runs_dir) / name / "experiment.json").is_file()]
    if len(there) == len(args.names) and all(name in registry.names() for name in there):
        paragraph(f"what their runs measured: maijax compare {' '.join(f'{args.runs_dir}/{name}' for name in there)}")


def _write(file: str | None, **parts: Any) -> Path | None:
    """Before anything is printed, since a file that cannot be written ends the command."""
    if not file:
        return None
    from maijax.compare import page

    return page.write(file, **parts)


def _say(path: Path | None, args: argparse.Namespace) -> None:
    if path:
        print(f"page: {path}", file=sys.stderr if args.json else sys.stdout)
