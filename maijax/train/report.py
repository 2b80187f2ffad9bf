"""report.html: what a run did, in one file that needs nothing else. Reads the run folder only; no jax."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from maijax.train import metrics, sheet
from maijax.train.chart import Chart, Series, draw, whole
from maijax.train.progress import clock, short
from maijax.train.sheet import ASSETS, text

FILE = "report.html"
SHOWN = 6  # samples; the rest are folded away

Record = dict[str, Any]


class Run:
    """What a run folder holds; every part may be missing or damaged."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        described = _json(folder / "experiment.json")
        self.experiment = _dict(described.get("experiment"))
        self.provenance = _dict(described.get("provenance"))
        self.rules = _rules(described.get("rules") or self.experiment.get("rules"))
        self.totals = _dict(described.get("totals"))
        self.name = folder.resolve().name
        experiment = described.get("name") or self.experiment.get("name")
        self.title = self.name if experiment in (None, self.name) else f"{self.name} ({experiment})"
        self.environment = _json(folder / "environment.json")
        records = metrics.read(folder)
        self.train = list({r["step"]: r for r in records if r["kind"] == "train"}.values())
        self.train.sort(key=lambda r: r["step"])
        # The last of a step counts: the look at all held-out text comes after the quick one.
        self.evals = list({r["step"]: r for r in records if r["kind"] == "eval"}.values())
        self.evals.sort(key=lambda r: r["step"])
        samples = [r for r in records if r["kind"] == "sample"]
        self.samples = list({(r["step"], str(r.get("text"))): r for r in samples}.values())
        self.samples.sort(key=lambda r: r["step"])

    @property
    def step(self) -> int:
        return max((r["step"] for r in (*self.train, *self.evals)), default=0)

    @property
    def steps(self) -> int | None:
        """Steps that were asked for."""
        value = _dict(self.experiment.get("train")).get("steps")
        return value if type(value) is int else None

    @property
    def xz(self) -> float | None:
        """Bits per byte that xz -9e needs for the held-out text, given the training text."""
        corpus = self.environment.get("corpus")
        places = [*reversed(self.evals), corpus if isinstance(corpus, dict) else {}, self.environment]
        return next((v for p in places if (v := _number(p.get("xz_bits_per_byte"))) is not None), None)


def write_report(run_folder: str | Path) -> Path:
    """Renders report.html from the files of a run folder; returns its path. The old one is replaced whole.

    Needs no network, neither here nor where it is read. All that comes from the run is escaped, and the page
    forbids every script but its own.
    """
    folder = Path(run_folder)
    file = folder / FILE
    sheet.write(file, render(Run(folder)))
    return file


def render(run: Run) -> str:
    """The page."""
    parts = (_head(run), _curves(run), _stories(run), _speed(run), _machine(run), _config(run))
    return sheet.sheet(
        f"{run.title}: training report", "\n".join(part for part in parts if part),
        script=(ASSETS / "report.js").read_text(encoding="utf-8"),
        footer="Made by maijax from the files of this run\u2019s folder.",
    )


def _head(run: Run) -> str:
    said = f"{whole(run.step)} of {whole(run.steps)} steps" if run.steps else f"{whole(run.step)} steps"
    if run.steps:
        said += ", finished" if run.step >= run.steps else ", not finished"
    started = str(run.environment.get("started") or "").replace("T", " ").replace("+00:00", " UTC")
    said += f". Started {started}." if started else "."
    facts: list[tuple[str, str, str]] = []
    last = run.evals[-1] if run.evals else {}
    if (bits := _number(last.get("bits_per_byte"))) is not None:
        beside = f"xz -9e: {run.xz:.2f}" if run.xz is not None else "lower is better"
        facts.append(("held-out bits per byte", f"{bits:.3f}", beside))
    if (loss := _number(last.get("loss"))) is not None:
        facts.append(("held-out loss", f"{loss:.3f}", "nats per token"))
    final = run.train[-1] if run.train else {}
    if (loss := _number(final.get("loss"))) is not None:
        facts.append(("training loss", f"{loss:.3f}", "nats per token"))
    if (size := _number(run.totals.get("parameters"))) is not None:
        active = _number(run.totals.get("active"))
        beside = f"{short(active)} active per token" if active and active != size else whole(size)
        facts.append(("parameters", short(size), beside))
    if (tokens := _number(final.get("tokens"))) is not None:
        asked = _number(run.totals.get("tokens"))
        facts.append(("training tokens", short(tokens), f"of {short(asked)}" if asked else ""))
    if (seconds := _number(final.get("seconds"))) is not None:
        facts.append(("time in the loop", clock(seconds), "with evaluation and samples"))
    cells = "".join(
        f"<div><dt>{text(name)}</dt><dd>{text(value)}</dd>"
        + (f'<dd class="aside">{text(beside)}</dd></div>' if beside else "</div>")
        for name, value, beside in facts
    )
    return (
        f'<h1>{text(run.title)}</h1>\n<p class="lead">{text(said)}</p>\n'
        + (f'<dl class="facts">{cells}</dl>' if cells else "")
    )


def _curves(run: Run) -> str:
    train, evals = run.train, run.evals
    baseline = ("xz -9e", run.xz) if run.xz is not None else None
    charts = [
        Chart(
            title="Loss", unit="nats per token", cut_start=True, noisy=True,
            series=[_series("training", train, "loss"), _series("held-out", evals, "loss")],
        ),
        Chart(
            title="Held-out bits per byte", unit="", baseline=baseline,
            series=[_series("this model", evals, "bits_per_byte")],
        ),
        Chart(title="Learning rate", unit="", from_zero=True, series=[_series("learning rate", train, "lr")]),
        Chart(
            title="Gradient norm", unit="before clipping", from_zero=True, cut_start=True, noisy=True,
            series=[_series("gradient norm", train, "grad_norm")],
        ),
        Chart(
            title="Throughput", unit="tokens per second", from_zero=True, noisy=True,
            series=[_series("tokens/s", train, "tokens_per_s")],
        ),
        Chart(
            title="Waiting for data", unit="seconds between two log lines", from_zero=True, noisy=True,
            series=[_series("seconds", train, "data_wait_s")],
        ),
    ]
    drawn = "\n".join(figure for chart in charts if (figure := draw(chart)))
    if not drawn:
        return '<h2>Curves</h2>\n<p class="none">No step has been logged yet.</p>'
    missing = "" if evals else '\n<p class="soft">No evaluation has been made yet.</p>'
    return f'<h2>Curves</h2>\n<div class="charts">\n{drawn}\n</div>{missing}'


def _stories(run: Run) -> str:
    if not run.samples:
        return ""
    newest = [r for r in run.samples if r["step"] == run.samples[-1]["step"]]
    older = [r for r in run.samples if r["step"] != run.samples[-1]["step"]]
    # Evenly over training, so that the first words and the last can be compared.
    room = max(0, SHOWN - len(newest))
    picked = {round(i * (len(older) - 1) / max(1, room - 1)) for i in range(min(room, len(older)))}
    shown = [*reversed(newest), *(older[i] for i in sorted(picked, reverse=True))]
    rest = [r for i, r in reversed(list(enumerate(older))) if i not in picked]
    stories = "".join(_story(run, r) for r in shown)
    html = f'<h2>Samples over training</h2>\n<div class="samples">{stories}</div>'
    if rest:
        folded = "".join(_story(run, r) for r in rest)
        html += f'<details><summary>{len(rest)} more</summary><div class="samples">{folded}</div></details>'
    return html


def _story(run: Run, record: Record) -> str:
    prompt, story = str(record.get("prompt") or ""), str(record.get("text") or "")
    marked = text(story)
    if story.startswith(prompt):
        marked = f"<mark>{text(prompt)}</mark>{text(story[len(prompt):])}"
    near = [r for r in run.evals if r["step"] <= record["step"]]
    bits = _number(near[-1].get("bits_per_byte")) if near else None
    beside = f"{bits:.3f} bits per byte" if bits is not None else ""
    return (
        f'<article class="sample"><div class="when"><b>step {whole(record["step"])}</b>{beside}</div>'
        f"<blockquote>{marked}</blockquote></article>"
    )


def _speed(run: Run) -> str:
    steady = run.train[1:] or run.train  # the first line's time is partly the compiler's
    rates = _column(steady, "tokens_per_s")
    rows: list[tuple[str, str]] = []
    if rates:
        rows.append(("tokens per second, median", whole(statistics.median(rates))))
        rows.append(("tokens per second, slowest to fastest", f"{whole(min(rates))} to {whole(max(rates))}"))
    if shares := _column(steady, "matmul_fraction"):
        rows.append(("share of the measured matmul peak, median", f"{statistics.median(shares):.1%}"))
    if peak := _number(run.environment.get("matmul_peak_gflops")):
        rows.append(("measured matmul peak", f"{whole(peak)} GFLOP/s"))
    seconds = _column(run.train[-1:], "seconds")
    if (waits := _column(run.train, "data_wait_s")) and seconds and seconds[0] > 0:
        rows.append(("waiting for data", f"{sum(waits):.1f} s, {sum(waits) / seconds[0]:.1%} of the time"))
    each, tokens = _number(run.totals.get("flops_per_token")), _column(run.train[-1:], "tokens")
    if each and tokens:
        rows.append(("arithmetic so far", f"{each * tokens[0]:.3g} FLOP ({short(each)} per token)"))
    if run.train and (skipped := _number(run.train[-1].get("skipped"))) is not None:
        rows.append(("steps skipped for a bad gradient or loss", whole(skipped)))
    if run.train and (digest := run.train[-1].get("token_hash")):
        rows.append(("digest of all tokens read", str(digest)))
    return f"<h2>Throughput</h2>\n{_table(rows)}" if rows else ""


def _config(run: Run) -> str:
    flat = [(p, v) for p, v in _leaves(run.experiment) if p and not p.startswith("rules")]
    if not flat:
        return '<h2>Configuration</h2>\n<p class="none">experiment.json is missing or damaged.</p>'
    rows, changed = "", 0
    for path, value in flat:
        origin = str(run.provenance.get(path) or "")
        if path in run.rules and not origin.startswith("rule"):
            origin = f"{origin}; rule: {run.rules[path]}" if origin else f"rule: {run.rules[path]}"
        mark = ' class="changed"' if origin == "command line" else ""
        changed += bool(mark)
        rows += (
            f'<tr{mark}><th scope="row" class="mono">{text(path)}</th>'
            f'<td class="value mono">{text(_show(value))}</td><td class="from">{text(origin)}</td></tr>\n'
        )
    note = f", {changed} set on the command line" if changed else ""
    return (
        "<h2>Configuration</h2>\n<details open>"
        f"<summary>{len(flat)} values and where each comes from{note}</summary>\n"
        '<p class="find" hidden><label for="find">Filter</label>'
        '<input id="find" type="search" autocomplete="off" placeholder="optim lr">'
        '<output for="find"></output></p>\n'
        '<div class="table"><table class="config"><thead><tr><th scope="col">value</th>'
        '<th scope="col">is</th><th scope="col">comes from</th></tr></thead>'
        f"<tbody>\n{rows}</tbody></table></div></details>"
    )


def _machine(run: Run) -> str:
    rows = [(path, _show(value)) for path, value in _leaves(run.environment) if path]
    if not rows:
        return ""
    table = _table([(path.replace("versions.", ""), value) for path, value in rows])
    summary = f"<summary>{len(rows)} facts about machine, code and data</summary>"
    return f"<h2>Environment</h2>\n<details>{summary}\n{table}</details>"


def _table(rows: list[tuple[str, str]]) -> str:
    lines = "".join(f'<tr><th scope="row">{text(k)}</th><td>{text(v)}</td></tr>\n' for k, v in rows)
    return f'<div class="table"><table><tbody>\n{lines}</tbody></table></div>'


def _series(name: str, records: list[Record], key: str) -> Series:
    points = [(r["step"], v) for r in records if (v := _number(r.get(key))) is not None]
    return Series(name=name, steps=[s for s, _ in points], values=[v for _, v in points])


def _column(records: list[Record], key: str) -> list[float]:
    return [v for r in records if (v := _number(r.get(key))) is not None]


def _number(value: Any) -> float | None:
    """A finite number of sensible size, or None: what a chart and a format can take."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < 1e300 and math.isfinite(value) else None


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        for i, item in enumerate(value):
            yield from _leaves(item, f"{path}[{i}]")
    else:
        yield path, value


def _show(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return " ".join(value)
    if type(value) is int and abs(value) >= 10_000:
        return f"{value:,}"
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    return json.dumps(value)


def _rules(value: Any) -> dict[str, str]:
    pairs = value if isinstance(value, list) else []
    return {str(p[0]): str(p[1]) for p in pairs if isinstance(p, list) and len(p) == 2}


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _json(file: Path) -> dict[str, Any]:
    try:
        return _dict(json.loads(file.read_bytes()))
    except (OSError, ValueError, RecursionError):
        return {}
