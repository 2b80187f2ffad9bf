"""A comparison as one page that needs nothing else: tables, and pictures that its own script draws."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from maijax import overrides, plain, scaling
from maijax.compare import charts, static
from maijax.compare.charts import Chart
from maijax.compare.ladder import Ladder
from maijax.compare.meaning import MEANINGS, Difference
from maijax.compare.measured import OVER_PAIRS, Measured, amount, factor, gain_words, ranged, spread, verdict_words
from maijax.compare.runs import NAMES
from maijax.compare.static import Comparison
from maijax.train import chart as shared
from maijax.train.sheet import publish, sheet, text
from maijax.words import count

ASSETS = Path(__file__).parent / "assets"


def write(
    file: str | Path, *, compared: Comparison | None = None, measured: Measured | None = None,
    ladders: Sequence[Ladder] = (),
) -> Path:
    """Renders to a file, which is replaced whole; returns its path. Raises UserError if it cannot be written."""
    return publish(file, render(compared=compared, measured=measured, ladders=ladders))


def render(
    *, compared: Comparison | None = None, measured: Measured | None = None, ladders: Sequence[Ladder] = (),
) -> str:
    """The page; what comes from values and runs is escaped, and no script but its own may run."""
    title, parts = _title(compared, ladders), [_ladder(one) for one in ladders]
    if measured is not None:
        parts.append(_measured(measured))
    if compared is not None:
        if len(compared.experiments) == 2 and measured is None:
            parts.append(_times(compared))
        parts += [_facts(compared), _figures(charts.of_experiments(compared), "Beside the laws"),
                  _differences(compared)]
    return sheet(
        title, f"<h1>{text(title)}</h1>\n" + "\n".join(part for part in parts if part),
        style=(ASSETS / "compare.css").read_text(encoding="utf-8"),
        script=(ASSETS / "compare.js").read_text(encoding="utf-8"), footer="Made by maijax compare.",
    )


def _title(compared: Comparison | None, ladders: Sequence[Ladder]) -> str:
    if ladders:
        return f"{', '.join(one.b for one in ladders)} against {ladders[0].a}, over scale"
    names = [one.name for one in compared.experiments] if compared else []
    return " beside ".join(names) if len(names) < 4 else f"{names[0]} beside {len(names) - 1} others"


def _times(compared: Comparison) -> str:
    """How many times as large the second of two is."""
    a, b = compared.experiments
    pairs = [
        ("parameters", *(static.active(one) for one in (a, b)), "that touch a token"),
        ("FLOPs per token", *(scaling.train_flops_per_token(one.model, one.train.seq_len) for one in (a, b)), ""),
        ("tokens", a.tokens, b.tokens, ""),
        ("tokens per parameter", *(scaling.tokens_per_parameter(one) for one in (a, b)), ""),
        ("training FLOPs", scaling.train_flops(a), scaling.train_flops(b), ""),
        ("state", *(scaling.state_bytes(one.model, one.optim) for one in (a, b)), "bytes, in float32"),
    ]
    cells = "".join(
        f'<div><dt>{name}</dt><dd>&#215;&#8201;{_ratio(y / x)}</dd><dd class="aside">{aside or "&#160;"}</dd></div>'
        for name, x, y, aside in pairs
    )
    return f'<p class="lead">{text(b.name)}, in times of {text(a.name)}</p>\n<dl class="facts">{cells}</dl>'


def _ratio(times: float) -> str:
    return count(times) if 0.01 <= times < 1e15 else f"{times:.3g}"


def _facts(compared: Comparison) -> str:
    names = [one.name for one in compared.experiments]
    head = "".join(f'<th scope="col" class="s{i % 8}">{text(name)}</th>' for i, name in enumerate(names))
    rows = ""
    for group in compared.groups:
        rows += f'<tr class="group"><th colspan="{len(names) + 2}" scope="colgroup">{text(group.title)}</th></tr>\n'
        for line in group.lines:
            cells = "".join(f'<td class="num">{text(cell)}</td>' for cell in line.cells())
            rows += (f'<tr><th scope="row">{text(line.what)}</th>{cells}'
                     f'<td class="from">{text(line.note)}</td></tr>\n')
    starred = any(mark for group in compared.groups for line in group.lines for mark in line.outside)
    star = '<p class="soft">* beyond the sizes that the law was fitted to</p>' if starred else ""
    return (
        f'<h2>Side by side</h2>\n<div class="table"><table class="facts-table"><thead><tr><th></th>{head}'
        f'<th scope="col" class="why">what it is, or what moves it</th></tr></thead>\n<tbody>{rows}</tbody></table>'
        f"</div>{star}"
    )


def _differences(compared: Comparison) -> str:
    if not compared.differences:
        return "<h2>Differences</h2>\n<p>Every value is the same.</p>"
    names = [one.name for one in compared.experiments]
    head = "".join(f'<th scope="col">{text(name)}</th>' for name in names)
    rows = ""
    for meaning in MEANINGS:
        mine = [one for one in compared.differences if one.meaning == meaning]
        if mine:
            rows += f'<tr class="group"><th colspan="{len(names) + 2}" scope="colgroup">{meaning}</th></tr>\n'
            rows += "".join(map(_difference, mine))
    explained = sum(one.explained for one in compared.differences)
    differ = f"{len(compared.differences)} values differ" if len(compared.differences) > 1 else "1 value differs"
    return (
        f'<h2>Differences</h2>\n<p class="soft">{differ}; a scaling rule explains {explained}.</p>\n'
        f'<div class="table"><table class="facts-table"><thead><tr><th></th>{head}'
        f'<th scope="col" class="why">rule</th></tr></thead>\n<tbody>{rows}</tbody></table></div>'
    )


def _difference(one: Difference) -> str:
    cells = "".join(f'<td class="num">{text("-" if v is plain.ABSENT else overrides.show(v))}</td>'
                    for v in one.values)
    mark = ' class="ruled"' if one.explained else ""
    return (f'<tr{mark}><th scope="row" class="mono">{text(one.path)}</th>{cells}'
            f'<td class="from">{text("; ".join(one.reasons))}</td></tr>\n')


def _measured(found: Measured) -> str:
    names = [side.name for side in found.sides]
    head = "".join(f'<th scope="col" class="s{i % 8}">{text(name)}</th>' for i, name in enumerate(names))
    rows = _row("at the end", [spread(one) for one in found.ends])
    for level in found.told_levels:
        cells = []
        for loss, gap in zip(level.losses, level.differences, strict=True):
            apart = "" if gap is None else f" ({gap[0]:+.3f}" + ("" if gap[1] is None else f"±{gap[1]:.3f}") + ")"
            cells.append(spread(loss) + apart)
        rows += _row(f"at {amount(level.budget, level.spent)}", cells)
    for i, kind in enumerate(NAMES.values()):
        if found.gains:
            told = [gain_words(gains[i]) for gains in found.gains]
            rows += _row(f"gain over {names[0]}, in {kind}{OVER_PAIRS}", ["", *told])
    notes = [*(f"{side.name}: {side.how}" for side in found.sides if side.how), *found.notes]
    said = "".join(f"<li>{text(note)}</li>" for note in notes)
    return (
        f'{_figures([charts.of_runs(found)], "Measured", wide=True)}\n<div class="table"><table class="facts-table">'
        f"<thead><tr><th>held-out loss, {text(found.why_metric)}</th>{head}</tr></thead><tbody>{rows}</tbody></table>"
        f'</div>\n<ul class="soft notes">{said}</ul>'
    )


def _ladder(found: Ladder) -> str:
    words = verdict_words(found)
    rows = ""
    for rung in found.rungs:
        gains = [factor(g) for g in rung.gains]
        rows += _row(count(rung.a.parameters), [
            f"{rung.flops('a'):.3g}", f"{rung.loss('a', found.metric):.4f}",
            f"{rung.loss('b', found.metric):.4f}", str(len(rung.pairs)), f"{rung.a.tried}, {rung.b.tried}",
            ranged(factor(sum(rung.gains) / len(gains)), gains),
        ])
    columns = ("active parameters", "FLOPs", f"loss {found.a}", f"loss {found.b}", "pairs",
               "configurations tried", f"gain{OVER_PAIRS}")
    head = "".join(f'<th scope="col">{text(name)}</th>' for name in columns)
    notes = "".join(f"<li>{text(note)}</li>" for note in (found.why_metric, *words[1:], *found.notes) if note)
    return (
        f'<p class="verdict"><b>{text(found.b)} over {text(found.a)}:</b> {text(words[0])}.</p>\n'
        f'<ul class="soft notes">{notes}</ul>\n{_figures(charts.of_ladder(found), "By size")}\n'
        f'<div class="table"><table class="facts-table"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'
        "</div>"
    )


def _figures(found: Sequence[Chart], title: str, *, wide: bool = False) -> str:
    """A place for each chart, with its numbers; the script draws them."""
    figures = "".join(
        f'<figure class="chart plot"><header><h3>{text(one.title)}</h3><span class="unit">{text(one.unit)}</span>'
        f'</header><script type="application/json">{shared.inline_json(one.plain())}</script>'
        "<noscript><p>The tables hold the same; the picture needs the page&#8217;s script.</p></noscript></figure>"
        for one in found
    )
    return f'<h2>{text(title)}</h2>\n<div class="charts{" wide" if wide else ""}">{figures}</div>'


def _row(name: str, cells: Sequence[str]) -> str:
    return (f'<tr><th scope="row">{text(name)}</th>'
            + "".join(f'<td class="num">{text(cell)}</td>' for cell in cells) + "</tr>\n")
