"""A fit as one HTML page: loss over compute with the law, what each run missed it by, budgets and their best sizes."""

from __future__ import annotations

import math
from html import escape
from pathlib import Path

import numpy as np

from maijax.compare.fits import FLOPS, LEVEL, Estimate, Fit
from maijax.compare.isoflop import IsoFlop, Profile
from maijax.compare.laws import LETTER
from maijax.compare.ledger import Entry
from maijax.compare.points import Point
from maijax.compare.scatter import Dots, Line, Picture, draw
from maijax.train.sheet import publish, sheet

_STEPS = 120  # of a drawn curve
_STYLE = """
.mark {
  position: absolute; width: 9px; height: 9px; margin: -4.5px; border-radius: 50%; border: 1.5px solid var(--card);
}
.keys span::before { border-color: var(--key); }
.frame { height: 300px; cursor: default; }
figcaption { text-align: center; font-size: 13px; }
td.n, th.n { text-align: right; }
tbody th { width: auto; }
"""


def write(
    file: str | Path, *, fit: Fit, budgets: IsoFlop | None, entry: Entry | None, unit: str, counted: str
) -> None:
    """Writes the page whole or not at all; raises UserError if the file cannot be written.

    It needs no network, holds no script, and all that comes from runs is escaped.
    """
    publish(file, render(fit=fit, budgets=budgets, entry=entry, unit=unit, counted=counted))


def render(*, fit: Fit, budgets: IsoFlop | None, entry: Entry | None, unit: str, counted: str) -> str:
    """The page."""
    pictures = [_loss(fit, entry, unit), _misses(fit)]
    if budgets is not None and budgets.budgets:
        pictures += [_parabolas(budgets, unit), _best_sizes(fit, budgets)]
    lead = f"{len(fit.points)} points, held-out {unit}, N of {counted} parameters: {fit.form.why}."
    body = (
        f'<h1>{escape(fit.form.text)}</h1>\n<p class="lead">{escape(lead)}</p>\n{_foretold(entry)}'
        f'<h2>Pictures</h2>\n<div class="charts">\n{"".join(draw(p) for p in pictures)}\n</div>\n'
        f"<h2>Coefficients</h2>\n{_coefficients(fit, budgets)}\n<h2>Points</h2>\n{_points(fit)}"
    )
    footer = "Made by maijax from the runs\u2019 own files."
    return sheet(f"{fit.form.text}: scaling fit", body, style=_STYLE, footer=footer)


def _loss(fit: Fit, entry: Entry | None, unit: str) -> Picture:
    """Over compute, with the law: along the points' line, or at the best split of each budget."""
    points = fit.points
    split = fit.best_split()
    told = split is None or (split[0].told and split[1].told)
    variable = "flops" if split is not None else fit.form.variables[0]
    place = None if entry is None else Point(
        name=entry.name, params=entry.params, tokens=entry.tokens, flops=entry.flops, loss=entry.predicted
    )
    shown = [*points, *([] if place is None else [place])]
    across = [getattr(p, variable) if split is None else FLOPS * p.params * p.tokens for p in shown]
    x = np.geomspace(min(across), max(across), _STEPS)
    if split is None:
        y = fit.curve(params=x, tokens=x, flops=x)
    else:
        params = split[0].value * x ** split[1].value
        y = fit.curve(params=params, tokens=x / FLOPS / params, flops=x)
    dots = [Dots(name="runs", x=across[: len(points)], y=[p.loss for p in points],
                 titles=[_title(p) for p in points])]
    if entry is not None and place is not None:
        dots.append(Dots(
            name="foretold", x=across[-1:], y=[entry.predicted], bars=[(entry.low, entry.high)],
            titles=[f"{entry.name}: {entry.predicted:.4f}, {entry.low:.4f} to {entry.high:.4f}"], tone=1.0,
        ))
    names = {"flops": "compute C, FLOPs" if split is None else "compute C = 6 N D", "params": "parameters N",
             "tokens": "tokens D"}
    law = "the law" if split is None else "the law at the best split"
    return Picture(
        title=f"Held-out loss over {LETTER[variable]}", unit=unit, x_name=names[variable], dots=dots,
        lines=[Line(name=law, x=list(x), y=[float(v) for v in y])] if told else [],
        tell=f"From {max(p.loss for p in points):.4g} to {min(p.loss for p in points):.4g} over {names[variable]}.",
    )


def _misses(fit: Fit) -> Picture:
    misses = [100 * math.expm1(r) for r in fit.residuals]
    flops = [p.flops for p in fit.points]
    return Picture(
        title="Measured over the law", unit="%", x_name="compute C, FLOPs",
        dots=[Dots(name="", x=flops, y=misses,
                   titles=[f"{_title(p)}, {m:+.2f}%" for p, m in zip(fit.points, misses, strict=True)])],
        lines=[Line(name="", x=[min(flops), max(flops)], y=[0.0, 0.0], dashed=True)],
        tell=f"Misses from {min(misses):.2f}% to {max(misses):.2f}%.",
    )


def _parabolas(budgets: IsoFlop, unit: str) -> Picture:
    dots, lines = [], []
    last = max(1, len(budgets.budgets) - 1)
    for i, one in enumerate(budgets.budgets):
        params = [p.params for p in one.points]
        x = np.geomspace(min(params), max(params), _STEPS)
        dots.append(Dots(name=f"{one.flops:.2g}", x=params, y=[p.loss for p in one.points],
                         titles=[_title(p) for p in one.points], tone=i / last))
        lines.append(Line(name="", x=list(x), y=[float(v) for v in one.curve(x)], tone=i / last))
    return Picture(
        title="IsoFLOP", unit=f"{unit}, by budget in FLOPs", x_name="parameters N", dots=dots, lines=lines,
        tell="; ".join(f"{b.flops:.3g} FLOPs: lowest at {b.params.value:.4g} parameters" for b in budgets.budgets),
    )


def _best_sizes(fit: Fit, budgets: IsoFlop) -> Picture:
    found: tuple[Profile, ...] = budgets.budgets
    flops = [b.flops for b in found]
    lines = []
    laws = [("parabolas", budgets.params and (budgets.params.factor, budgets.params.power), 0.0),
            ("the law", fit.best_split(), 1.0)]
    for name, law, tone in laws:
        if law is not None:
            x = np.geomspace(min(flops), max(flops), 2)
            y = law[0].value * x ** law[1].value
            lines.append(Line(name=f"{name}: C^{law[1].value:.3f}", x=list(x), y=[float(v) for v in y], tone=tone))
    return Picture(
        title="Best size of a budget", unit="parameters N", x_name="compute C, FLOPs", log_y=True, lines=lines,
        dots=[Dots(name="", x=flops, y=[b.params.value for b in found],
                   bars=[(b.params.low, b.params.high) for b in found],
                   titles=[f"{b.flops:.3g} FLOPs: {b.params.value:.4g}" for b in found])],
        tell="; ".join(line.name for line in lines),
    )


def _foretold(entry: Entry | None) -> str:
    if entry is None:
        return ""
    void = f"; no prediction: {entry.void}" if entry.void else ""
    cells = [
        ("foretold", f"{entry.predicted:.4f}", " ".join([entry.name, *entry.settings]) + void),
        ("interval", f"{entry.low:.4f} to {entry.high:.4f}", f"{entry.level:.0%} of single runs"),
    ]
    return '<dl class="facts">' + "".join(
        f'<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd><dd class="aside">{escape(beside)}</dd></div>'
        for name, value, beside in cells
    ) + "</dl>\n"


def _coefficients(fit: Fit, budgets: IsoFlop | None) -> str:
    rows: list[tuple[str, Estimate]] = list(fit.coefficients().items())
    if (split := fit.best_split()) is not None:
        rows += [("k of N_opt = k C^p", split[0]), ("p", split[1])]
    if budgets is not None:
        for name, law in (("N_opt", budgets.params), ("D_opt", budgets.tokens)):
            if law is not None:
                rows += [(f"IsoFLOP {name}: factor", law.factor), (f"IsoFLOP {name}: exponent", law.power)]
    return _table(("", "value", f"{LEVEL:.0%} of resamples"), [
        (name, f"{e.value:.5g}" if e.value > 1e-9 else "0", e.span(lambda v: f"{v:.4g}")) for name, e in rows
    ])


def _points(fit: Fit) -> str:
    ordered = sorted(zip(fit.points, fit.residuals, strict=True), key=lambda pair: pair[0].flops)
    return _table(("", "N", "D", "C", "held out", "miss"), [
        (p.name, f"{p.params:.4g}", f"{p.tokens:.4g}", f"{p.flops:.3g}", f"{p.loss:.4f}", f"{math.expm1(r):+.2%}")
        for p, r in ordered
    ])


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    top = "".join(f'<th scope="col"{" class=n" if i else ""}>{escape(cell)}</th>' for i, cell in enumerate(head))
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>' + "".join(f'<td class="n">{escape(c)}</td>' for c in row[1:])
        + "</tr>\n" for row in rows
    )
    return f'<div class="table"><table><thead><tr>{top}</tr></thead><tbody>\n{body}</tbody></table></div>'


def _title(point: Point) -> str:
    return f"{point.name}: {point.loss:.4f} at N {point.params:.4g}, D {point.tokens:.4g}"
