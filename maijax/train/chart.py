"""Curves as inline SVG, readable at any width: the lines stretch with the page, the labels are text."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections.abc import Sequence
from html import escape

POINTS = 600  # per curve in the page; more cannot be seen
SMOOTH = 80  # noisy curves of more points than this get a smoothed line over the raw one
SIDE = 1000  # units of the SVG's own square, stretched to the frame


@dataclasses.dataclass(frozen=True, kw_only=True)
class Series:
    """A named curve: steps rise, values are finite."""

    name: str
    steps: Sequence[int]
    values: Sequence[float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chart:
    """Up to two curves over the steps, and a horizontal line to compare with."""

    title: str
    unit: str
    series: Sequence[Series]
    baseline: tuple[str, float] | None = None
    from_zero: bool = False
    cut_start: bool = False  # let the first 10% of the run leave the frame at the top
    noisy: bool = False  # worth a smoothed line


def draw(chart: Chart) -> str:
    """The chart as an HTML figure; an empty string if no curve has a point."""
    full = [s for s in chart.series if len(s.steps)]
    if not full:
        return ""
    series = [thin(s) for s in full]
    left, right = min(0, *(s.steps[0] for s in series)), max(1, *(s.steps[-1] for s in series))
    low, high = _range(chart, series, left, right)
    ticks = ruler(low, high)
    low, high = min(low, ticks[0]), max(high, ticks[-1])

    def x(step: float) -> float:
        return (step - left) / (right - left)

    def y(value: float) -> float:
        return (value - low) / (high - low)

    grid = "".join(f'<path class="grid" d="M0 {_unit(1 - y(t))}H{SIDE}"/>' for t in ticks)
    labels = "".join(
        f'<span class="axis y" style="top:{100 * (1 - y(t)):.2f}%">{escape(number(t, ticks))}</span>'
        for t in ticks
    )
    for step in ruler(left, right, count=5, inside=True):
        end = " end" if x(step) > 0.93 else ""
        labels += f'<span class="axis x{end}" style="left:{100 * x(step):.2f}%">{whole(step)}</span>'
    lines, keys = "", ""
    for i, one in enumerate(series):
        raw = [(x(s), 1 - y(v)) for s, v in zip(one.steps, one.values, strict=True)]
        if chart.noisy and len(raw) > SMOOTH:
            calm = smooth(full[i])
            points = [(x(s), 1 - y(v)) for s, v in zip(calm.steps, calm.values, strict=True)]
            lines += f'<path class="raw s{i}" d="{_path(raw)}"/>'
        else:
            points = raw
        lines += f'<path class="curve s{i}" d="{_path(points)}"/>'
        keys += f'<span class="s{i}">{escape(one.name)}</span>'
    if chart.baseline is not None:
        name, value = chart.baseline
        lines += f'<path class="base" d="M0 {_unit(1 - y(value))}H{SIDE}"/>'
        keys += f'<span class="base">{escape(name)} {value:.3g}</span>'
    keys = f'<p class="keys">{keys}</p>' if len(series) > 1 or chart.baseline else ""
    name = f"chart-{''.join(c for c in chart.title.lower() if c.isalnum())}"
    data = {
        "x": [left, right],
        "y": [low, high],
        "series": [{"name": s.name, "steps": list(s.steps), "values": list(s.values)} for s in series],
    }
    return (
        f'<figure class="chart"><header><h3>{escape(chart.title)}</h3>'
        f'<span class="unit">{escape(chart.unit)}</span>{keys}</header>'
        f'<div class="frame" tabindex="0" role="group" aria-labelledby="{name}-t {name}-d">'
        f'<svg viewBox="0 0 {SIDE} {SIDE}" preserveAspectRatio="none" role="img" '
        f'aria-labelledby="{name}-t {name}-d"><title id="{name}-t">{escape(chart.title)}</title>'
        f'<desc id="{name}-d">{escape(_tell(chart, series))}</desc>'
        f'<clipPath id="{name}-c"><rect x="-4" width="{SIDE + 8}" height="{SIDE + 8}"/></clipPath>'
        f'{grid}<g clip-path="url(#{name}-c)">{lines}</g></svg>'
        f'<div aria-hidden="true">{labels}</div>'
        f'<script type="application/json">{inline_json(data)}</script></div></figure>'
    )


def inline_json(value: object) -> str:
    """JSON that can stand inside a script element: nothing in it can end the element."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=True)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def thin(series: Series) -> Series:
    """At most POINTS points: of each bucket the lowest and the highest, in order, so that spikes stay."""
    count = len(series.steps)
    if count <= POINTS:
        return series
    buckets = POINTS // 2
    keep = {0, count - 1}
    for i in range(buckets):
        span = range(i * count // buckets, (i + 1) * count // buckets)
        keep |= {min(span, key=series.values.__getitem__), max(span, key=series.values.__getitem__)}
    chosen = sorted(keep)
    steps, values = ([column[i] for i in chosen] for column in (series.steps, series.values))
    return dataclasses.replace(series, steps=steps, values=values)


def smooth(series: Series) -> Series:
    """The median of the 2% of the points around each, fewer at the ends; at most POINTS of them."""
    count = len(series.steps)
    half = max(2, count // 100)
    chosen = sorted({*range(0, count, -(-count // POINTS)), count - 1})
    reach = [min(half, i, count - 1 - i) for i in chosen]
    found = [statistics.median(series.values[i - r : i + r + 1]) for i, r in zip(chosen, reach, strict=True)]
    return dataclasses.replace(series, steps=[series.steps[i] for i in chosen], values=found)


def number(value: float, ticks: Sequence[float] = ()) -> str:
    """A tick's label, all of an axis with the same decimals: 0.25, 12k, 3e-4."""
    gap = min((b - a for a, b in zip(ticks, ticks[1:], strict=False)), default=abs(value) or 1.0)
    largest = max(map(abs, ticks), default=abs(value))
    if value == 0:
        return "0"
    if _decimals(gap) > 4:
        return f"{value:.2e}".replace(".00e", "e").replace("0e", "e").replace("e-0", "e-")
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if largest >= size:
            return f"{value / size:.{_decimals(gap / size)}f}{letter}"
    return f"{value:.{_decimals(gap)}f}"


def whole(value: float) -> str:
    return f"{round(value):,}"


def _range(chart: Chart, series: Sequence[Series], left: float, right: float) -> tuple[float, float]:
    """Lowest and highest value to show."""
    start = left + 0.1 * (right - left) if chart.cut_start else left
    shown = [v for s in series for step, v in zip(s.steps, s.values, strict=True) if step >= start]
    shown = shown or [v for s in series for v in s.values]
    if chart.baseline is not None:
        shown.append(chart.baseline[1])
    low, high = min(shown), max(shown)
    if chart.from_zero:
        low = min(low, 0.0)
    if high - low < 1e-9 * max(abs(high), 1e-30):
        room = abs(high) * 0.1 or 1.0
        return (low - room if low != 0 or not chart.from_zero else low), high + room
    return low, high


def ruler(low: float, high: float, count: int = 4, *, inside: bool = False) -> list[float]:
    """Round numbers that cover low..high, or lie in it."""
    raw = (high - low) / count
    size = 10.0 ** math.floor(math.log10(raw))
    gap = next(m * size for m in (1, 2, 2.5, 5, 10) if m * size >= raw * 0.999)
    if inside:
        gap = max(1.0, round(gap))
        return [i * gap for i in range(math.ceil(low / gap), math.floor(high / gap + 1e-9) + 1)]
    first, last = math.floor(low / gap + 1e-9), math.ceil(high / gap - 1e-9)
    return [i * gap for i in range(first, max(last, first + 1) + 1)]


def _decimals(gap: float) -> int:
    for places in range(6):
        if abs(round(gap, places) - gap) < 1e-6 * gap:
            return places
    return 6


def _path(points: Sequence[tuple[float, float]]) -> str:
    if len(points) == 1:  # a lone point shows as a short stroke
        (px, py), wide = points[0], 0.01
        points = [(px - wide, py), (px + wide, py)]
    return "M" + "L".join(f"{_unit(px)} {_unit(py)}" for px, py in points)


def _unit(share: float) -> str:
    """A share of the frame in SVG units; what lies far outside stays finite."""
    return f"{SIDE * min(max(share, -5.0), 5.0):.1f}"


def _tell(chart: Chart, series: Sequence[Series]) -> str:
    """What the picture says, for those who do not see it."""
    said = [
        f"{s.name}: {s.values[0]:.4g} at step {s.steps[0]}, {s.values[-1]:.4g} at step {s.steps[-1]}, "
        f"lowest {min(s.values):.4g}, highest {max(s.values):.4g}."
        for s in series
    ]
    if chart.baseline is not None:
        said.append(f"{chart.baseline[0]}: {chart.baseline[1]:.4g}.")
    return f"{chart.unit} over steps. " + " ".join(said) + " Arrow keys read single points."
