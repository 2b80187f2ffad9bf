"""A sweep's report.html: held-out bits per byte against each value that was varied. Needs no network, and no jax."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from html import escape
from pathlib import Path

from maijax.errors import RunError
from maijax.space import Dimension, Range
from maijax.sweep.drive import best
from maijax.sweep.study import Study, Trial
from maijax.train.chart import SIDE, number, ruler
from maijax.train.report import ASSETS

FILE = "report.html"
COLOURS = ("#2563c9", "#d9730d", "#1f8a5b", "#a23ba8", "#b42b3a", "#5d6b7a")
POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'"
STYLE = """
.dots { fill: none; stroke-width: 8; stroke-linecap: round; } .dots:hover { stroke-width: 12; }
.line { fill: none; stroke-width: 1.25; opacity: .5; }
.ring { fill: none; stroke-width: 17; stroke-linecap: round; opacity: .25; }
.keys span::before { border-color: var(--key) !important; } td a { color: inherit; }
"""


def write(study: Study) -> Path:
    """Draws the page from the trials that have a figure; returns its path. The old one is replaced whole."""
    file = study.folder / FILE
    part = file.with_name(f".{FILE}.{os.getpid()}")
    try:
        part.write_text(render(study), encoding="utf-8")
        part.replace(file)
    except OSError as error:
        raise RunError(f"{file}: cannot be written ({error.strerror})") from None
    return file


def render(study: Study) -> str:
    """The page."""
    trials = [t for t in study.trials() if t.result is not None]
    measured = [t for t in trials if t.result is not None and t.result.state == "done"]
    dimensions = study.sweep.dimensions
    colour = _colour(dimensions)
    charts = "\n".join(
        _chart(path, one, measured, colour if colour != path else None) for path, one in dimensions.items()
    )
    top = best(trials)
    lead = f"{study.count} trials, {len(measured)} finished."
    if top is not None and top.result is not None:
        told = ", ".join(f"{path} = {text}" for path, text in top.point.items())
        lead += f" Best: trial {top.number}, {top.result.bits_per_byte:.4f} bits per byte, at {told}."
    style = (ASSETS / "report.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(study.folder.name)}: sweep</title>\n<style>\n{style}{STYLE}</style>\n</head>\n"
        "<body>\n<main>\n"
        f'<h1>{escape(study.folder.name)}</h1>\n<p class="lead">{escape(lead)}</p>\n'
        f'<h2>Held-out bits per byte</h2>\n<div class="charts">\n{charts}\n</div>\n'
        f"<h2>Trials</h2>\n{_table(study, trials)}\n"
        "<footer>Made by maijax from this sweep&#8217;s run folders.</footer>\n</main>\n</body>\n</html>\n"
    )


def _colour(dimensions: dict[str, Dimension]) -> str | None:
    """The path that tells the points' colours: of several, the one with the fewest values."""
    few = [(len(one.grid()), path) for path, one in dimensions.items()
           if not (isinstance(one, Range) and one.points is None) and len(one.grid()) <= len(COLOURS)]
    return min(few)[1] if few and len(dimensions) > 1 else None


def _chart(path: str, dimension: Dimension, trials: Sequence[Trial], colour: str | None) -> str:
    """One figure: every finished trial is a dot."""
    figures = {t.number: t.result.bits_per_byte for t in trials if t.result and t.result.bits_per_byte is not None}
    shown = [t for t in trials if t.number in figures]
    if not shown:
        return ""
    texts = sorted({t.point[path] for t in shown}, key=_sortable)
    numeric = all(_number(text) is not None for text in texts)
    log = numeric and (dimension.log if isinstance(dimension, Range) else _spread(texts))

    def across(text: str) -> float:
        value = _number(text)
        if value is None or not numeric:
            return float(texts.index(text))
        return math.log10(value) if log else value

    xs = [across(text) for text in texts]
    left, right = min(xs), max(xs)
    if left == right:
        left, right = left - 0.5, right + 0.5
    values = sorted(figures.values())
    # What diverged would flatten the rest: it leaves the frame at the top.
    high = min(values[-1], values[0] + 4 * max(values[len(values) // 2] - values[0], 1e-3))
    marks = ruler(values[0], max(high, values[0] + 1e-6))
    low, high = marks[0], marks[-1]

    def place(trial: Trial) -> str:
        x = 0.03 + 0.94 * (across(trial.point[path]) - left) / (right - left)
        y = 1 - min(1.0, (figures[trial.number] - low) / (high - low))
        return f"{SIDE * x:.1f} {SIDE * y:.1f}"

    top = min(shown, key=lambda t: figures[t.number])
    body = "".join(f'<path class="grid" d="M0 {SIDE * (1 - (m - low) / (high - low)):.1f}H{SIDE}"/>' for m in marks)
    body += f'<path class="ring" stroke="{COLOURS[0]}" d="M{place(top)}h0"/>'
    groups: dict[str, list[Trial]] = {}
    for trial in sorted(shown, key=lambda t: across(t.point[path])):
        groups.setdefault(trial.point[colour] if colour else "", []).append(trial)
    keys = ""
    for i, (name, members) in enumerate(sorted(groups.items(), key=lambda pair: _sortable(pair[0]))):
        stroke = COLOURS[i % len(COLOURS)]
        if numeric and len({t.point[path] for t in members}) == len(members) > 1:
            line = "L".join(map(place, members))
            body += f'<path class="line" stroke="{stroke}" d="M{line}"/>'
        for trial in members:
            told = ", ".join(f"{p} = {v}" for p, v in trial.point.items())
            body += (
                f'<path class="dots" stroke="{stroke}" d="M{place(trial)}h0">'
                f"<title>trial {trial.number}: {figures[trial.number]:.4f}, {escape(told)}</title></path>"
            )
        keys += f'<span style="--key:{stroke}">{escape(name)}</span>' if colour else ""
    heights = {m: 100 * (1 - (m - low) / (high - low)) for m in marks}
    labels = "".join(
        f'<span class="axis y" style="top:{y:.2f}%">{escape(number(m, marks))}</span>' for m, y in heights.items()
    )
    for text in _labelled(texts, numeric):
        x = 3 + 94 * (across(text) - left) / (right - left)
        labels += f'<span class="axis x" style="left:{x:.2f}%">{escape(text)}</span>'
    said = f"{path}: best {figures[top.number]:.4f} bits per byte at {top.point[path]}"
    beside = f'<p class="keys">{escape(colour)}: {keys}</p>' if colour else ""
    return (
        f'<figure class="chart"><header><h3>{escape(path)}</h3>'
        f'<span class="unit">{"log axis" if log else ""}</span>{beside}</header><div class="frame">'
        f'<svg viewBox="0 0 {SIDE} {SIDE}" preserveAspectRatio="none" role="img" aria-label="{escape(said)}">'
        f"{body}</svg>"
        f'<div aria-hidden="true">{labels}</div></div></figure>'
    )


def _labelled(texts: Sequence[str], numeric: bool) -> list[str]:
    """At most 6 of the values, the ends among them."""
    if len(texts) <= 6 or not numeric:
        return list(texts)
    return [texts[round(i * (len(texts) - 1) / 4)] for i in range(5)]


def _table(study: Study, trials: Sequence[Trial]) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in
                   ("trial", "state", *study.sweep.space, "bits per byte", "loss", "step"))
    rows = ""
    for trial in ranked(trials):
        r = trial.result
        assert r is not None
        link = f'<a href="trial-{trial.number:04}/report.html">{trial.number}</a>'
        cells = [*(escape(trial.point[path]) for path in study.sweep.space), _figure(r.bits_per_byte), _figure(r.loss),
                 f"{r.step:,}"]
        said = f"{r.state} ({r.why})" if r.why else r.state
        rows += f"<tr><td>{link}</td><td>{escape(said)}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>\n"
    return f'<div class="table"><table><thead><tr>{head}</tr></thead><tbody>\n{rows}</tbody></table></div>'


def ranked(trials: Sequence[Trial]) -> list[Trial]:
    """Finished ones by their figure, then those stopped early, then those that failed."""
    order = {"done": 0, "pruned": 1, "failed": 2}
    ended = [t for t in trials if t.result is not None]
    return sorted(ended, key=lambda t: (order[t.result.state], t.result.bits_per_byte or math.inf, t.number)
                  if t.result else ())


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _sortable(text: str) -> tuple[float, str]:
    value = _number(text)
    return (math.inf if value is None else value, text)


def _spread(texts: Sequence[str]) -> bool:
    """Whether values are best told apart on a logarithmic axis."""
    values = [float(text) for text in texts]
    return min(values) > 0 and max(values) / min(values) >= 8
