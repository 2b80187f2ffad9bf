"""The coordinate check as one page: each quantity over width and depth, on logarithmic axes, beside the standard."""

from __future__ import annotations

import math
from html import escape

from maijax.train.coordcheck import BOUNDS, QUANTITIES, Line, Report
from maijax.train.sheet import sheet

WIDE, HIGH = 320, 190  # of a chart's frame, in its own units
LEFT, TOP, BELOW = 44, 8, 24

_STYLE = """
.charts { grid-template-columns: repeat(auto-fit, minmax(300px, 1fr)); }
.plot { display: block; width: 100%; height: auto; margin-top: 8px; }
.plot text { fill: var(--soft); font-size: 12px; font-variant-numeric: tabular-nums; }
.plot .curve { stroke-width: 2; } .plot circle { stroke: none; }
.plot .s0 circle { fill: var(--blue); } .plot .s1 circle { fill: var(--orange); }
.bad { color: var(--orange); font-weight: 600; }
"""


def render(report: Report, verdict: str, about: str) -> str:
    """A self-contained page without scripts; both texts are shown above the charts."""
    parts = [f"<h1>{escape(report.name)}: coordinate check</h1>", f'<p class="lead">{escape(verdict)}</p>']
    parts.append(f'<p class="soft">{escape(about)}</p>')
    for axis in ("width", "depth"):
        parts.append(f"<h2>Over {axis}</h2>\n<div class=\"charts\">")
        for quantity in QUANTITIES:
            pair = [line for line in report.lines if (line.axis, line.quantity) == (axis, quantity)]
            parts.append(_chart(quantity, axis, pair))
        parts.append("</div>")
    return sheet(f"{report.name}: coordinate check", "\n".join(parts), style=_STYLE)


def _chart(quantity: str, axis: str, pair: list[Line]) -> str:
    """One quantity: a line for each parametrisation, powers of two on both axes."""
    seen = [math.log2(v) for line in pair for v in line.values if 0 < v < math.inf]
    low, high = math.floor(min(seen, default=-1)), math.ceil(max(seen, default=1))
    high = max(high, low + 1)
    first, last = math.log2(pair[0].sizes[0]), math.log2(pair[0].sizes[-1])

    def at(size: float, value: float) -> tuple[float, float]:
        x = LEFT + (WIDE - LEFT - 12) * (math.log2(size) - first) / (last - first)
        return x, TOP + (HIGH - TOP - BELOW) * (high - math.log2(value)) / (high - low)

    drawn = ""
    every = -(-(high - low) // 5)
    for power in range(low, high + 1, every):
        y = at(pair[0].sizes[0], 2.0**power)[1]
        drawn += f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDE}"/>'
        drawn += f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{2.0**power:g}</text>'
    for size in pair[0].sizes:
        x = at(size, 1)[0]
        drawn += f'<text x="{x:.1f}" y="{HIGH - 4}" text-anchor="middle">{size}</text>'
    keys, said = "", []
    for i, line in enumerate(pair):
        points = [at(s, v) for s, v in zip(line.sizes, line.values, strict=True) if 0 < v < math.inf]
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points) if points else ""
        dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in points)
        drawn += f'<g class="s{i}"><path class="curve s{i}" d="{path}"/>{dots}</g>'
        mark = ' class="bad"' if line.judged and not line.holds else ""
        keys += f'<span class="s{i}">{escape(line.parametrization)} <b{mark}>{line.slope:+.2f}</b></span>'
        said.append(f"{line.parametrization}: " + ", ".join(f"{v:.3g}" for v in line.values))
    label = f"mean absolute {quantity} at {axis} {', '.join(map(str, pair[0].sizes))}. " + "; ".join(said)
    return (
        f'<figure class="chart"><header><h3>{escape(quantity)}</h3><span class="unit">mean |x|</span>'
        f'<p class="keys">{keys}</p></header><svg class="plot" viewBox="0 0 {WIDE} {HIGH}" role="img" '
        f'aria-label="{escape(label)}">{drawn}</svg></figure>'
    )


def bounds() -> str:
    """As people write them."""
    return f"[{BOUNDS[0]:+.2f}, {BOUNDS[1]:+.2f}]"
