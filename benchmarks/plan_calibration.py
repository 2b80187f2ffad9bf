"""How far the plan's time model is from published runs: `python -m benchmarks.plan_calibration [--fit]`.

A few runs, marked, fit the constants of `maijax.plan.arithmetic` and `configs/chips.py`, one constant each; all the
others are the test. `--fit` finds the constants again. The table is in docs/plan.md.
"""

from __future__ import annotations

import argparse
import dataclasses

from benchmarks.published import COMPILED, RUNS, Compiled, Run
from maijax import registry
from maijax.config import DataConfig, Experiment, OptimConfig, SourceConfig, TrainConfig
from maijax.hardware import Topology
from maijax.plan import arithmetic, work
from maijax.plan.arithmetic import Estimate

registry.discover()


def experiment(run: Run | Compiled) -> Experiment:
    """The run as one of ours, of a single step."""
    return Experiment(
        name=run.name, model=run.model, mesh=run.mesh, optim=OptimConfig(),
        train=TrainConfig(steps=1, batch_size=run.batch, seq_len=run.seq),
        data=DataConfig(sources=(SourceConfig(uri="none"),)),
    )


def parts(run: Run) -> tuple[work.Part, ...]:
    """Products of the run's shape, as others run them: experts whose rows are padded to be equal are plain products;
    else, on a TPU, a tile in which two experts meet is multiplied twice. Gates weigh results, which remat makes again.
    """
    waste = 1.0 if registry.topology(run.topology).chip.platform == "tpu" else 0.5
    scale = {"scores": run.scores} | dict.fromkeys(work.GROUPED, run.capacity)
    found = {
        part.name: dataclasses.replace(part, forward=part.forward * scale.get(part.name, 1.0))
        for part in work.parts(run.model, run.seq, run.rerun)
    }
    for name in work.GROUPED & found.keys():
        found[name] = dataclasses.replace(
            found[name], rerun=found["experts"].rerun, waste=waste, name=f"{name}, plain" if run.capacity > 1 else name
        )
    return tuple(found.values())


def estimate(run: Run, topology: Topology | None = None) -> Estimate:
    """The model's answer, with the shape's own FLOPs for what the configuration cannot say."""
    topology = topology or registry.topology(run.topology, run.slices)
    found = arithmetic.estimate(experiment(run), topology, parts(run))
    extra = sum(p.useful for p in work.parts(run.model, run.seq) if p.name == "scores") * (run.scores - 1)
    seen = work.visible_keys(run.model, run.seq) / run.seq
    return dataclasses.replace(
        found, flops_per_token=found.flops_per_token + extra,
        full_flops_per_token=found.full_flops_per_token + extra / seen,
    )


def compare(run: Run, topology: Topology | None = None) -> tuple[float, float]:
    """(MFU as published, MFU as modelled), both in the run's own way of counting."""
    found = estimate(run, topology)
    full = run.counted == "full"
    each = found.full_flops_per_token if full else found.flops_per_token
    published = run.figure * (each if run.unit == "tokens" else 1e12)
    return published / found.topology.chip.peak_flops, found.full_mfu if full else found.mfu


def error(run: Run, topology: Topology | None = None) -> float:
    """Relative, of the model."""
    published, modelled = compare(run, topology)
    return modelled / published - 1


def table() -> list[str]:
    lines = [f"{'run':<29}{'machine':<17}{'counted':<9}{'published':>9}{'model':>8}{'error':>8}  use"]
    for run in RUNS:
        published, modelled = compare(run)
        use = f"fits {run.fits}" if run.fits else (f"outside: {run.outside}" if run.outside else "test")
        machine = registry.topology(run.topology, run.slices).title
        lines.append(f"{run.name:<29}{machine:<17}{run.counted:<9}{published:>9.1%}{modelled:>8.1%}"
                     f"{modelled / published - 1:>+8.1%}  {use}"[:100])
    tests = [abs(error(run)) for run in RUNS if not run.fits and not run.outside]
    close = sum(e <= 0.15 for e in tests)
    lines.append(f"of {len(tests)} tests {close} are within 15%; mean |error| {sum(tests) / len(tests):.1%}")
    return lines


def memory_error(step: Compiled) -> float:
    """Relative, of the model's peak."""
    found = arithmetic.estimate(experiment(step), registry.topology(step.topology, step.slices))
    return found.peak_bytes / 2**30 / step.peak - 1


def memory_table() -> list[str]:
    lines = [f"{'step':<29}{'machine':<17}{'compiled GiB':>13}{'model':>8}{'error':>8}"]
    for step in COMPILED:
        machine = registry.topology(step.topology, step.slices).title
        off = memory_error(step)
        lines.append(f"{step.name:<29}{machine:<17}{step.peak:>13.1f}{step.peak * (1 + off):>8.1f}{off:>+8.1%}")
    return lines


def fit(rounds: int = 8) -> dict[str, float]:
    """Each constant from its run, in turn until they agree; the model's answer grows with each of them."""
    chips = registry.chips()
    found = {run.fits: 0.6 for run in RUNS if run.fits}

    def measure(run: Run) -> float:
        arithmetic.EXPERTS = found["EXPERTS"]
        topology = registry.topology(run.topology, run.slices)
        chip = topology.chip
        same = {"h200": "h100", "b200": "h100"}.get(chip.name, chip.name)
        chip = dataclasses.replace(chip, efficiency=found.get(same, chip.efficiency))
        return error(run, dataclasses.replace(topology, chip=chip))

    for _ in range(rounds):
        for run in (run for run in RUNS if run.fits):
            low, high = 0.01, 2.0
            for _ in range(30):
                found[run.fits] = (low + high) / 2
                low, high = (low, found[run.fits]) if measure(run) > 0 else (found[run.fits], high)
    assert chips.keys() >= found.keys() - {"EXPERTS"}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fit", action="store_true", help="find the constants again, and print them")
    if parser.parse_args().fit:
        print("\n".join(f"{name:<8} {value:.3f}" for name, value in fit().items()))
    else:
        print("\n".join([*table(), "", *memory_table()]))


if __name__ == "__main__":
    main()
