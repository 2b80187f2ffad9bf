"""Dots and lines over a logarithmic axis, as HTML with inline SVG in the frame of the training report's charts."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from html import escape

from maijax.train.chart import SIDE, number

_ROOM = 0.04  # of the width and the height, left free round what is shown


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dots:
    """Measured values, each with a name to read; `bars`: (low, high) of each, if it has an interval."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    titles: Sequence[str]
    bars: Sequence[tuple[float, float]] = ()
    tone: float = 0.0  # 0: the first colour, 1: the second


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
    """A law's curve."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    tone: float = 0.0
    dashed: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Picture:
    """One chart; x is above 0 and logarithmic, y logarithmic if asked for."""

    title: str
    unit: str
    x_name: str
    dots: Sequence[Dots] = ()
    lines: Sequence[Line] = ()
    log_y: bool = False
    tell: str = ""  # what the picture says, for those who do not see it


def draw(picture: Picture) -> str:
    """The picture as an HTML figure; an empty string if there is nothing in it."""
    parts = [*picture.dots, *picture.lines]
    if not any(len(part.x) for part in parts):
        return ""
    x = _Axis([v for part in parts for v in part.x], log=True)
    ys = [v for part in parts for v in part.y]
    y = _Axis([*ys, *(v for one in picture.dots for bar in one.bars for v in bar)], log=picture.log_y)
    grid = "".join(f'<path class="grid" d="M0 {SIDE * (1 - y.at(t)):.1f}H{SIDE}"/>' for t in y.ticks)
    labels = "".join(
        f'<span class="axis y" style="top:{100 * (1 - y.at(t)):.2f}%">{escape(y.label(t))}</span>' for t in y.ticks
    ) + "".join(f'<span class="axis x" style="left:{100 * x.at(t):.2f}%">{escape(x.label(t))}</span>' for t in x.ticks)
    lines = "".join(
        _stroke(_colour(one.tone), [(x.at(a), 1 - y.at(b)) for a, b in zip(one.x, one.y, strict=True)], one.dashed)
        for one in picture.lines if len(one.x)
    )
    marks = ""
    for one in picture.dots:
        colour = _colour(one.tone)
        for a, (low, high) in zip(one.x, one.bars, strict=False):
            lines += _stroke(colour, [(x.at(a), 1 - y.at(high)), (x.at(a), 1 - y.at(low))])
        marks += "".join(
            f'<span class="mark" style="left:{100 * x.at(a):.2f}%;top:{100 * (1 - y.at(b)):.2f}%;background:{colour}" '
            f'title="{escape(title)}"></span>' for a, b, title in zip(one.x, one.y, one.titles, strict=True)
        )
    keys = "".join(
        f'<span style="--key:{_colour(part.tone)}">{escape(part.name)}</span>' for part in parts if part.name
    )
    name = f"picture-{''.join(c for c in picture.title.lower() if c.isalnum())}"
    return (
        f'<figure class="chart"><header><h3>{escape(picture.title)}</h3>'
        f'<span class="unit">{escape(picture.unit)}</span>'
        f'<p class="keys">{keys}</p></header><div class="frame">'
        f'<svg viewBox="0 0 {SIDE} {SIDE}" preserveAspectRatio="none" role="img" aria-labelledby="{name}-t {name}-d">'
        f'<title id="{name}-t">{escape(picture.title)}</title><desc id="{name}-d">{escape(picture.tell)}</desc>'
        f"{grid}{lines}</svg>{marks}<div aria-hidden=\"true\">{labels}</div></div>"
        f'<figcaption class="soft">{escape(picture.x_name)}</figcaption></figure>'
    )


class _Axis:
    """Where a value lies, 0 to 1, and which values are named."""

    def __init__(self, values: Sequence[float], *, log: bool) -> None:
        self.log = log
        low, high = (self._scale(v) for v in (min(values), max(values)))
        room = _ROOM * (high - low) or 0.1
        self.low, self.high = low - room, high + room
        self.ticks = self._powers() if log else self._round()

    def _scale(self, value: float) -> float:
        return math.log10(value) if self.log else value

    def at(self, value: float) -> float:
        return (self._scale(value) - self.low) / (self.high - self.low)

    def label(self, tick: float) -> str:
        return number(tick, self.ticks) if not self.log else _short(tick)

    def _powers(self) -> list[float]:
        """Powers of ten, every so many, or 1, 2 and 5 times them where there are few."""
        first, last = math.ceil(self.low), math.floor(self.high)
        if last - first >= 2:
            every = 1 + (last - first) // 6
            return [10.0**i for i in range(first, last + 1, every)]
        several = [m * 10.0**i for i in range(first - 1, last + 1) for m in (1, 2, 5)]
        return [t for t in several if self.low <= math.log10(t) <= self.high]

    def _round(self) -> list[float]:
        raw = (self.high - self.low) / 5
        size = 10.0 ** math.floor(math.log10(raw))
        gap = next(m * size for m in (1, 2, 2.5, 5, 10) if m * size >= raw * 0.999)
        return [i * gap for i in range(math.ceil(self.low / gap), math.floor(self.high / gap) + 1)]


def _short(tick: float) -> str:
    """1e18, 2e7, 500M, 0.5: few letters for a power of ten or a small multiple."""
    if 1e-3 <= tick < 1e3:
        return f"{tick:g}"
    if tick >= 1e13 or tick < 1e-3:
        return f"{tick:.0e}".replace("e+", "e").replace("e-0", "e-")
    return number(tick)


def _stroke(colour: str, points: Sequence[tuple[float, float]], dashed: bool = False) -> str:
    """A line through points given as shares of the frame."""
    style = f"stroke:{colour}" + (";stroke-dasharray:5 4" if dashed else "")
    path = "L".join(f"{SIDE * px:.1f} {SIDE * py:.1f}" for px, py in points)
    return f'<path class="curve" style="{style}" d="M{path}"/>'


def _colour(tone: float) -> str:
    return f"color-mix(in oklab, var(--orange) {100 * tone:.0f}%, var(--blue))"
