"""How far the plan's time model is from published runs: `python -m benchmarks.plan_calibration [--fit]`.

A few runs, marked, fit the constants of `maijax.plan.arithmetic` and `configs/chips.py`, one constant each; all the
others are the test. `--fit` finds the constants again. The table is in docs/plan.md.
"""

from __future__ import annotations

import argparse
import dataclasses

from benchmarks.published import RUNS, Run
from maijax import registry
from maijax.config import DataConfig, Experiment, OptimConfig, SourceConfig, TrainConfig
from maijax.plan import arithmetic, work
from maijax.plan.arithmetic import Estimate

registry.discover()


def experiment(run: Run) -> Experiment:
    """The run as one of ours, of a single step."""
    return Experiment(
        name=run.name, model=run.model, mesh=run.mesh, optim=OptimConfig(),
        train=TrainConfig(steps=1, batch_size=run.batch, seq_len=run.seq),
        data=DataConfig(sources=(SourceConfig(uri="none"),)),
    )


def parts(run: Run) -> tuple[work.Part, ...]:
    scale = {"scores": run.scores, "experts": run.capacity}
    return tuple(
        dataclasses.replace(part, forward=part.forward * scale.get(part.name, 1.0))
        for part in work.parts(run.model, run.seq, run.rerun)
    )


def estimate(run: Run) -> Estimate:
    """The model's answer, with the shape's own FLOPs for what the configuration cannot say."""
    found = arithmetic.estimate(experiment(run), registry.topology(run.topology, run.slices), parts(run))
    extra = sum(p.useful for p in work.parts(run.model, run.seq) if p.name == "scores") * (run.scores - 1)
    seen = work.visible_keys(run.model, run.seq) / run.seq
    return dataclasses.replace(
        found, flops_per_token=found.flops_per_token + extra,
        full_flops_per_token=found.full_flops_per_token + extra / seen,
    )


def compare(run: Run) -> tuple[float, float]:
    """(MFU as published, MFU as modelled), both in the run's own way of counting (causal if it gives tokens)."""
    found = estimate(run)
    peak = found.topology.chip.peak_flops
    if run.unit == "tokens":
        return run.figure * found.flops_per_token / peak, found.mfu
    return run.figure * 1e12 / peak, found.full_mfu if run.unit == "full" else found.mfu


def error(run: Run) -> float:
    """Relative, of the model."""
    published, modelled = compare(run)
    return modelled / published - 1


def table() -> list[str]:
    lines = [f"{'run':<29}{'machine':<17}{'counted':<9}{'published':>9}{'model':>8}{'error':>8}  use"]
    for run in RUNS:
        published, modelled = compare(run)
        counted = "full" if run.unit == "full" else "causal"
        use = f"fits {run.fits}" if run.fits else (f"outside: {run.outside}" if run.outside else "test")
        machine = registry.topology(run.topology, run.slices).title
        lines.append(f"{run.name:<29}{machine:<17}{counted:<9}{published:>9.1%}{modelled:>8.1%}"
                     f"{modelled / published - 1:>+8.1%}  {use}"[:100])
    tests = [abs(error(run)) for run in RUNS if not run.fits and not run.outside]
    close = sum(e <= 0.15 for e in tests)
    lines.append(f"of {len(tests)} tests {close} are within 15%; mean |error| {sum(tests) / len(tests):.1%}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.parse_args()
    print("\n".join(table()))


if __name__ == "__main__":
    main()
