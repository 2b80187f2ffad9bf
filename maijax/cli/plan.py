"""The verb plan: what a run would take on a machine that nobody here has. No jax here; compiles are other processes."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from typing import Any

from maijax import overrides, plain, registry
from maijax.cli import choose
from maijax.cli.table import count, fit, paragraph, rows
from maijax.config import Experiment
from maijax.data import cachedir
from maijax.errors import RunError, UserError
from maijax.hardware import GiB, Topology
from maijax.plan import arithmetic, checks, compiling, links, search, work
from maijax.plan import topology as topologies
from maijax.plan.arithmetic import Estimate

_COMPILED = 3  # of a search's best layouts
_MOST_COMPILED = 9  # if none of these compiles and fits
_COUNTED = ("parameters", "optimizer state", "batch")  # of the model's uses of memory: the shapes say them exactly
_WHEN = {"always": "", "layers": ", while going back through the layers", "head": ", at the head"}
_QUIET = 30.0  # seconds between words of progress where there is no terminal


def plan(args: argparse.Namespace) -> int:
    """Returns 0 if the step fits, 1 if it does not; raises UserError for what cannot be laid out."""
    experiment, _ = choose.experiment(args)
    topology = registry.topology(args.topology, args.slices)
    if args.search:
        return _search(experiment, topology, args.compile or _COMPILED, as_json=args.json)
    if args.compile:
        raise UserError("--compile says how many of a search's layouts to compile; give --search, too")
    checks.demand(experiment, topology)
    found = Plan.make(experiment, topology)
    if args.json:
        print(json.dumps(found.plain(), indent=1))
    else:
        found.print()
    return 0 if found.fits else 1


def _search(experiment: Experiment, topology: Topology, wanted: int, *, as_json: bool) -> int:
    """Ranks layouts by arithmetic, compiles the best of them, more than wanted if none fits; returns 0 if one does."""
    if (lacking := topologies.missing(topology)) is not None:
        raise UserError(lacking)
    found = search.search(experiment, topology, best=max(wanted, _MOST_COMPILED))
    if not as_json:
        print(f"{experiment.name} on {topology.title}: {found.tried:,} layouts tried; {found.too_large:,} need more "
              f"memory than\nthere is, {found.refused:,} do not divide; the fastest of the rest, compiled:")
    plans: list[Plan] = []
    failed: list[tuple[str, str]] = []
    left = list(found.best)
    while left and not (len(plans) >= wanted and any(made.fits for made in plans)):
        layout = left.pop(0)
        try:
            plans.append(made := Plan.make(layout.experiment, topology))
        except RunError as error:
            failed.append((layout.text, str(error)))
            continue
        if not as_json:
            print(f"\n{layout.text}")
            print(f"  --set {' --set '.join(settings(experiment, layout.experiment))}")
            paragraph(made.verdict())
    behind = [search.slower(layout, found.best[0]) for layout in left]
    losers = [*failed, *((loser.text, loser.why) for loser in (*behind, *found.losers))]
    if as_json:
        print(json.dumps({
            "tried": found.tried, "too_large": found.too_large, "refused": found.refused,
            "slower": found.slower + len(left),
            "best": [{"settings": settings(experiment, made.experiment)} | made.plain() for made in plans],
            "losers": [{"layout": a, "why": b} for a, b in losers],
        }, indent=1))
    else:
        if losers:
            print("\nnot taken")
            rows([(f"  {text}", why) for text, why in losers], widths=fit(losers, most=(46,)))
        fitting = [made for made in plans if made.fits]
        print()
        paragraph(f"take {fitting[0].layout}: {fitting[0].verdict()}" if fitting else "none of these fits")
    return 0 if any(made.fits for made in plans) else 1


def settings(before: Experiment, after: Experiment) -> list[str]:
    """What to write after --set to come from one experiment to the other."""
    return [f"{path}={overrides.show(new)}" for path, (_, new) in plain.diff(before, after).items()]


@dataclasses.dataclass(frozen=True)
class Plan:
    """One layout: the model's estimate, and what the compiler told."""

    experiment: Experiment
    topology: Topology
    estimate: Estimate
    told: dict[str, Any]  # of `program.compile_for`

    @classmethod
    def make(cls, experiment: Experiment, topology: Topology) -> Plan:
        """Estimated, and compiled with words of progress on stderr."""
        estimate = arithmetic.estimate(experiment, topology)
        with Words() as words:
            told = compiling.compiled(experiment, topology, cache=cachedir.ready(cachedir.default()), say=words)
        return cls(experiment, topology, estimate, told)

    @property
    def room(self) -> int:
        """Bytes of memory on one device."""
        return self.topology.chip.device_hbm

    @property
    def fits(self) -> bool:
        return "refused" not in self.told and self.told["memory"]["peak"] <= self.room

    @property
    def layout(self) -> str:
        sizes = self.told["mesh"].items()
        return " x ".join(f"{axis} {ways}" for axis, ways in sizes if ways > 1) or "one device"

    def compute_seconds(self) -> float | None:
        """Of the compiler's cycles and, by the model, of our kernels, if it estimates cycles."""
        work, chip = self.told.get("work"), self.topology.chip
        if work is None or work["cycles"] is None:
            return None
        return work["cycles"] / chip.clock + self.kernel_seconds()

    def kernel_seconds(self) -> float:
        """Of the kernels in the program, which the compiler does not estimate: attention's, and the experts'."""
        names = self.told["work"]["kernel_names"]
        attention = [name for name in names if "splash" in name or "attention" in name]
        used = {"scores"} if attention else set()
        used |= work.GROUPED if len(attention) < len(names) else set()
        laid = links.lay(self.topology, self.told["mesh"])
        tokens = self.estimate.tokens / self.topology.devices
        return sum(
            tokens * (part.forward * (2 if part.rerun else 1) + part.backward)
            / (self.topology.chip.device_flops * arithmetic.efficiency(self.experiment, laid, part))
            for part in self.estimate.parts if part.name in used
        )

    def traffic(self) -> list[dict[str, Any]]:
        """The compiled collectives, each with the time it takes over this machine's links if nothing else runs."""
        laid = links.lay(self.topology, self.told["mesh"])
        found = []
        for one in (self.told.get("work") or {}).get("traffic", []):
            per_byte = laid.moved(one["kind"], one["axes"], 1.0)
            seconds = laid.seconds(one["kind"], one["axes"], one["sent"] / per_byte) if per_byte else 0.0
            found.append(one | {"seconds": seconds})
        return found

    def unread(self) -> list[str]:
        """Loops of the program whose trip count cannot be read."""
        return list((self.told.get("work") or {}).get("unknown_loops", []))

    def verdict(self) -> str:
        estimate = self.estimate
        about = f"about {_seconds(estimate.step_seconds)} a step, {estimate.mfu:.0%} MFU (model)"
        if (refused := self.told.get("refused")) is not None:
            if not refused["needs"]:
                return f"does not fit: {refused['message']}"
            needs, has = _gib(refused["needs"]), _gib(refused["has"])
            return f"does not fit: temporaries need {needs} of {has} GiB; {about}"
        peak = f"peak {_gib(self.told['memory']['peak'])} of {_gib(self.room)} GiB"
        return f"{'fits' if self.fits else 'does not fit'}: {peak}; {about}"

    def plain(self) -> dict[str, Any]:
        """For programs: bytes and seconds, grouped by how they are known."""
        estimate, memory = self.estimate, self.told["memory"]
        exact = ("parameters", "optimizer", "batch")
        return {
            "name": self.experiment.name, "topology": self.topology.text, "slices": self.topology.slices,
            "mesh": self.told["mesh"], "fits": self.fits, "verdict": self.verdict(), "kept": self.told["kept"],
            "values": {p: plain.to_plain(v) for p, v in plain.flatten(self.experiment).items()
                       if p not in plain.METADATA},
            "memory": {
                "room": self.room,
                "exact": {k: memory[k] for k in exact},
                "compiler": {k: v for k, v in memory.items() if k not in exact},
                "model": {use.what: use.size for use in estimate.memory} | {"peak": estimate.peak_bytes},
            },
            "refused": self.told.get("refused"), "largest": self.told["largest"],
            "time": {
                "compiler": {"compute": self.compute_seconds()} | self.told["seconds"],
                "model": {part.what: part.seconds for part in estimate.times} | {"step": estimate.step_seconds},
            },
            "traffic": {"compiler": self.traffic(), "loops_counted_once": self.unread()},
            "run": {
                "tokens_per_second_per_chip": estimate.tokens_per_chip, "mfu": estimate.mfu,
                "days": estimate.days, "dollars": estimate.cost, "priced": self.topology.chip.priced,
            },
        }

    def print(self) -> None:
        print(f"{self.experiment.name} on {self.topology.title}: {self.topology.chips:,} chips, {self.layout}")
        tables = [("memory per device, GiB", self._memory()), ("seconds per step", self._time())]
        tables += [("sent per device and step, GiB", self._traffic()), ("the run", self._run())]
        if not self.fits:
            held = [(f"  {_gib(one['bytes'])}", "compiler", one["holds"]) for one in self.told["largest"]]
            tables.insert(1, ("largest buffers, GiB", held))
        for title, table in tables:
            if table:
                print(f"\n{title}")
                rows(table, widths=fit(table, most=(46, 12) if len(table[0]) == 3 else (46, 12, 10)))
        print()
        paragraph(self.verdict())
        if unread := self.unread():
            paragraph(f"counted once, for want of their trip count: {len(unread)} loops ({', '.join(unread[:3])})")
        spent = self.told["seconds"]
        kept = ", kept from before" if self.told["kept"] else ""
        paragraph(f"compiled in {spent['compile']:.0f} s after {spent['lower']:.0f} s of tracing{kept}")

    def _memory(self) -> list[tuple[str, str, str]]:
        memory = self.told["memory"]
        table = [
            ("  parameters", _gib(memory["parameters"]), "exact"),
            ("  optimizer state", _gib(memory["optimizer"]), "exact"),
            ("  batch", _gib(memory["batch"]), "exact"),
        ]
        table += [(f"  {use.what}", _gib(use.size), f"model{_WHEN[use.when]}") for use in self.estimate.memory
                  if use.what not in _COUNTED and use.size]
        table.append(("  peak by arithmetic", _gib(self.estimate.peak_bytes), f"model, of {_gib(self.room)}"))
        if "peak" in memory:
            table += [
                ("  all that goes in, as laid out there", _gib(memory["arguments"]), "compiler"),
                ("  temporaries", _gib(memory["temporaries"]), "compiler"),
                ("  peak", _gib(memory["peak"]), f"compiler, of {_gib(self.room)}"),
            ]
        return table

    def _time(self) -> list[tuple[str, str, str]]:
        table = [(f"  {part.what}", f"{part.seconds:.3g}", "model") for part in self.estimate.times]
        table.append(("  step", f"{self.estimate.step_seconds:.3g}", "model"))
        if (compute := self.compute_seconds()) is not None:
            work = self.told["work"]
            kernels = f", and {work['kernels']:,} kernel calls by the model" if work["kernels"] else ""
            table.append(("  compute alone, of the program's cycles", f"{compute:.3g}", f"compiler{kernels}"))
        if sent := self.traffic():
            alone = sum(one["seconds"] for one in sent)
            table.append(("  the program's collectives, none hidden", f"{alone:.3g}", "model, of compiled bytes"))
        return table

    def _traffic(self) -> list[tuple[str, str, str, str]]:
        return [
            (f"  {one['kind']} over {' x '.join(one['axes'])}", f"{one['sent'] / GiB:.3g}",
             f"{one['times']:,} times", f"compiler; {one['seconds']:.3g} s if alone (model)")
            for one in self.traffic() if one["sent"] >= 1e-4 * self.traffic()[0]["sent"]
        ]

    def _run(self) -> list[tuple[str, str, str]]:
        estimate = self.estimate
        return [
            ("  tokens per second and chip", f"{estimate.tokens_per_chip:,.0f}", "model"),
            ("  of the bf16 peak (6N, causal attention)", f"{estimate.mfu:.1%}", "model"),
            (f"  days for {count(self.experiment.tokens)} tokens, without stops", f"{estimate.days:,.3g}", "model"),
            ("  dollars", count(estimate.cost), f"model; price of {self.topology.chip.priced}"),
        ]


class Words:
    """Progress on stderr: one line that changes on a terminal, else a line now and then."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._last = time.monotonic()

    def __enter__(self) -> Words:
        return self

    def __call__(self, text: str) -> None:
        if self._terminal:
            sys.stderr.write(f"\r\x1b[K{text}")
        elif time.monotonic() - self._last >= _QUIET:
            self._last = time.monotonic()
            print(text, file=sys.stderr)
        sys.stderr.flush()

    def __exit__(self, *_: object) -> None:
        if self._terminal:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def _gib(number: float) -> str:
    size = number / GiB
    return f"{size:.1f}" if size >= 10 else f"{size:.3f}"


def _seconds(number: float) -> str:
    return f"{number:.0f} s" if number >= 9.5 else f"{number:.1f} s" if number >= 0.95 else f"{number * 1e3:.3g} ms"
