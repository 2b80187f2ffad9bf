"""Does a learning rate that was tuned small hold on larger rungs, and does a law of small rungs foretell a larger one?

    python -m benchmarks.transfer [--runs-dir runs/transfer] [--workers 2]

Sweeps the learning rate of `ladder_2` to `ladder_6` (0.14M to 3.0M parameters, the stories, equal tokens) under
CompleteP and under the standard parametrisation, with `maijax sweep`. The rate that is best on the smallest rung, taken
from the grid, is run on the lower rungs with more seeds; `maijax fit` of those runs foretells the loss of the largest
rung at that rate before it has been run, and `maijax fit --ledger` scores it. Everything is kept in the runs folder:
stopped, the same command goes on.

The best rate of a rung is the vertex of the parabola through the best point of its grid and its two neighbours, in the
logarithm of the rate; "edge" where the best point has but one.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from maijax import registry, scaling

DEPTHS = (2, 3, 4, 5, 6)
WAYS = ("completep", "standard")
RATES = "log:2.5e-3..4e-2:5"  # a factor of 2 apart
SEEDS = "1,2"  # beside 0


def maijax(*words: str) -> str:
    """What a command printed; its progress goes to our own stderr. Ends the program where it fails."""
    done = subprocess.run([sys.executable, "-m", "maijax", *words], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        print(done.stdout, end="")
        sys.exit(done.returncode)
    return done.stdout


def sweep(folder: Path, name: str, experiment: str, workers: int, *settings: str) -> list[dict[str, Any]]:
    """Its trials, after running those that have not ended."""
    words = [word for setting in settings for word in ("--set", setting)]
    told = maijax("sweep", experiment, "--runs-dir", str(folder), "--name", name, "--json",
                  "--workers", str(workers), "--together", "3", *words)
    return json.loads(told)["trials"]


def rates(folder: Path, way: str, depth: int, workers: int) -> dict[float, float]:
    """Learning rate -> held-out loss in nats per token; infinite where training failed."""
    found = sweep(folder, f"{way}-{depth}", f"ladder_{depth}", workers, f"optim.lr={RATES}",
                  f"model.parametrization.name={way}")
    return {float(t["values"]["optim.lr"]): t.get("loss") or math.inf for t in found}


def vertex(curve: dict[float, float]) -> tuple[float, float, bool]:
    """(best rate, its loss, whether it lies inside the grid)."""
    xs = sorted(curve)
    best = min(range(len(xs)), key=lambda i: curve[xs[i]])
    if best in (0, len(xs) - 1) or not all(math.isfinite(curve[xs[best + i]]) for i in (-1, 1)):
        return xs[best], curve[xs[best]], False
    left, middle, right = (curve[xs[best + i]] for i in (-1, 0, 1))
    shift = 0.5 * (left - right) / (left - 2 * middle + right)  # in steps of the grid
    step = math.log(xs[best + 1] / xs[best])
    return xs[best] * math.exp(shift * step), middle - 0.25 * (left - right) * shift, True


def table(found: dict[str, dict[int, dict[float, float]]]) -> None:
    grid = sorted(next(iter(next(iter(found.values())).values())))
    print("parametrisation  depth  parameters  best lr        loss  " + "  ".join(f"{rate:7.2g}" for rate in grid))
    for way, curves in found.items():
        best = []
        for depth, curve in curves.items():
            rate, loss, inside = vertex(curve)
            best.append(rate)
            size = scaling.parameters(registry.get(f"ladder_{depth}").model).total
            print(f"{way:15}  {depth:5}  {size:10,}  {rate:7.4f} {'' if inside else 'edge':4}  {loss:6.4f}  "
                  + "  ".join(f"{curve[rate]:7.4f}" for rate in grid))
        print(f"{way}: the best rate moves by a factor of {max(best) / min(best):.2f} from depth {min(curves)} to "
              f"{max(curves)}\n")


def foretell(folder: Path, curves: dict[int, dict[float, float]], workers: int) -> str:
    """The rate that is best on the smallest rung, as its grid writes it; foretells the largest rung with it."""
    rate = min(curves[DEPTHS[0]], key=lambda lr: curves[DEPTHS[0]][lr])
    runs = []
    for depth in DEPTHS[:-1]:
        sweep(folder, f"seeds-{depth}", f"ladder_{depth}", workers, f"optim.lr={rate!r}", f"train.seed={SEEDS}")
        at = sorted(curves[depth]).index(rate)
        runs += [str(folder / f"completep-{depth}" / f"trial-{at:04}"), str(folder / f"seeds-{depth}")]
    ledger = folder / "ledger.jsonl"
    if not ledger.exists():
        print(maijax("fit", *runs, "--runs-dir", str(folder), "--predict", f"ladder_{DEPTHS[-1]}",
                     "--set", f"optim.lr={rate!r}"))
    return repr(rate)


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs-dir", type=Path, default=Path("runs/transfer"))
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args(words)
    found: dict[str, dict[int, dict[float, float]]] = {way: {} for way in WAYS}
    for depth in DEPTHS[:-1]:
        found["completep"][depth] = rates(args.runs_dir, "completep", depth, args.workers)
    foretell(args.runs_dir, found["completep"], args.workers)
    for way in WAYS:
        for depth in DEPTHS:
            if depth not in found[way]:
                found[way][depth] = rates(args.runs_dir, way, depth, args.workers)
    table(found)
    print(maijax("fit", "--ledger", "--runs-dir", str(args.runs_dir)))


if __name__ == "__main__":
    main()
