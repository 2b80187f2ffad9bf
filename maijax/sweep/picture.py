"""A sweep's report.html: held-out bits per byte against each value that was varied. Needs no network, and no jax."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from maijax.errors import RunError
from maijax.space import Dimension, Range
from maijax.sweep import seeds
from maijax.sweep.drive import best
from maijax.sweep.groups import SEED
from maijax.sweep.seeds import Setting
from maijax.sweep.study import Study, Trial
from maijax.train import sheet
from maijax.train.chart import SIDE, number, ruler
from maijax.train.sheet import text as escape
from maijax.words import plural

FILE = "report.html"
COLOURS = ("#2563c9", "#d9730d", "#1f8a5b", "#a23ba8", "#b42b3a", "#5d6b7a")
STYLE = """
.dots { fill: none; stroke-width: 8; stroke-linecap: round; } .dots:hover { stroke-width: 12; }
.line { fill: none; stroke-width: 1.25; opacity: .5; } .bar { fill: none; stroke-width: 2; opacity: .6; }
.ring { fill: none; stroke-width: 17; stroke-linecap: round; opacity: .25; }
.keys span::before { border-color: var(--key) !important; } td a { color: inherit; }
"""


def write(study: Study) -> Path:
    """Draws the page from the trials that have a figure; returns its path. The old one is replaced whole."""
    file = study.folder / FILE
    try:
        sheet.write(file, render(study))
    except OSError as error:
        raise RunError(f"{file}: cannot be written ({error.strerror})") from None
    return file


def render(study: Study) -> str:
    """The page."""
    trials = [t for t in study.trials() if t.result is not None]
    # Seeds are not an axis of their own unless nothing else is.
    over = SEED if len(study.sweep.space) > 1 else ""
    dimensions = {path: one for path, one in study.sweep.dimensions.items() if path != over}
    found = seeds.settings(trials, over)
    colour = _colour(dimensions)
    charts = "\n".join(_chart(path, one, found, colour if colour != path else None) for path, one in dimensions.items())
    finished = sum(trial.figure is not None for trial in trials)
    lead = f"{plural(study.count, 'trial')}, {finished} finished."
    top = best(trials)
    if top is not None and top.result is not None:
        lead += f" Best: trial {top.number}, {top.result.bits_per_byte:.4f} bits per byte, at {_told(top.point)}."
    under = ""
    if seeds.repeated(found):
        lead += f" Best mean over seeds: {_amount(found[0])}, at {_told(found[0].point)}."
        under = "<p>A dot is the mean over seeds, its bar one standard deviation to either side.</p>\n"
    body = (
        f'<h1>{escape(study.folder.name)}</h1>\n<p class="lead">{escape(lead)}</p>\n'
        f'<h2>Held-out bits per byte</h2>\n{under}<div class="charts">\n{charts}\n</div>\n'
        f"<h2>Trials</h2>\n{_table(study, trials)}"
    )
    footer = "Made by maijax from this sweep\u2019s run folders."
    return sheet.sheet(f"{study.folder.name}: sweep", body, style=STYLE, footer=footer)


def _told(point: dict[str, str]) -> str:
    return ", ".join(f"{path} = {text}" for path, text in point.items())


def _amount(one: Setting) -> str:
    """3.8060 ± 0.0120."""
    return f"{one.mean:.4f}" + ("" if one.deviation is None else f" \u00b1 {one.deviation:.4f}")


def _colour(dimensions: dict[str, Dimension]) -> str | None:
    """The path that tells the points' colours: of several, the one with the fewest values."""
    few = [(len(one.grid()), path) for path, one in dimensions.items()
           if not (isinstance(one, Range) and one.points is None) and len(one.grid()) <= len(COLOURS)]
    return min(few)[1] if few and len(dimensions) > 1 else None


def _chart(path: str, dimension: Dimension, shown: Sequence[Setting], colour: str | None) -> str:
    """One figure: a dot for each setting, the best first among them, with a bar where it was run at several seeds."""
    if not shown:
        return ""
    texts = sorted({one.point[path] for one in shown}, key=_sortable)
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
    values = sorted(t.figure for one in shown for t in one.trials if t.figure is not None)
    # What diverged would flatten the rest: it leaves the frame at the top.
    high = min(values[-1], values[0] + 4 * max(values[len(values) // 2] - values[0], 1e-3))
    marks = ruler(values[0], max(high, values[0] + 1e-6))
    low, high = marks[0], marks[-1]

    def x(one: Setting) -> str:
        return f"{SIDE * (0.03 + 0.94 * (across(one.point[path]) - left) / (right - left)):.1f}"

    def y(value: float) -> str:
        return f"{SIDE * (1 - min(1.0, max(0.0, (value - low) / (high - low)))):.1f}"

    def place(one: Setting) -> str:
        return f"{x(one)} {y(one.mean)}"

    body = "".join(f'<path class="grid" d="M0 {y(m)}H{SIDE}"/>' for m in marks)
    body += f'<path class="ring" stroke="{COLOURS[0]}" d="M{place(shown[0])}h0"/>'
    groups: dict[str, list[Setting]] = {}
    for one in sorted(shown, key=lambda one: across(one.point[path])):
        groups.setdefault(one.point[colour] if colour else "", []).append(one)
    keys = ""
    for i, (name, members) in enumerate(sorted(groups.items(), key=lambda pair: _sortable(pair[0]))):
        stroke = COLOURS[i % len(COLOURS)]
        if numeric and len({one.point[path] for one in members}) == len(members) > 1:
            line = "L".join(map(place, members))
            body += f'<path class="line" stroke="{stroke}" d="M{line}"/>'
        for one in members:
            if one.deviation is not None:
                ends = f"M{x(one)} {y(one.mean - one.deviation)}V{y(one.mean + one.deviation)}"
                body += f'<path class="bar" stroke="{stroke}" d="{ends}"/>'
            numbers = ", ".join(str(trial.number) for trial in one.trials)
            told = f"{plural(len(one.trials), 'trial')} ({numbers}): {_amount(one)}, {_told(one.point)}"
            body += (
                f'<path class="dots" stroke="{stroke}" d="M{place(one)}h0"><title>{escape(told)}</title></path>'
            )
        keys += f'<span style="--key:{stroke}">{escape(name)}</span>' if colour else ""
    heights = {m: 100 * (1 - (m - low) / (high - low)) for m in marks}
    labels = "".join(
        f'<span class="axis y" style="top:{top:.2f}%">{escape(number(m, marks))}</span>' for m, top in heights.items()
    )
    for text in _labelled(texts, numeric):
        at = 3 + 94 * (across(text) - left) / (right - left)
        labels += f'<span class="axis x" style="left:{at:.2f}%">{escape(text)}</span>'
    said = f"{path}: best {shown[0].mean:.4f} bits per byte at {shown[0].point[path]}"
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
