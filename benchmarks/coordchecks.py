"""The coordinate check at its full grid, of five experiments that between them have every structure, by optimizer.

    python -m benchmarks.coordchecks [--only NAME ...] [--optim NAME ...]

One row each: the least and the greatest slope that is judged, with the quantity, and the control's. Two minutes a row
on a CPU core.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence

from maijax import registry
from maijax.data import cachedir
from maijax.train import coordcheck, programs

# Heads grouped or not, head tied or not, narrow and wide d_ff, few and many experts: each at least once.
STRUCTURES = ("phi_test", "phi3_mini", "mai_500b", "mai_moe_3m", "mai_500b_moe")


def row(name: str, optimizer: str) -> str:
    experiment = registry.get(name)
    experiment = dataclasses.replace(experiment, optim=dataclasses.replace(experiment.optim, name=optimizer))
    report = coordcheck.check(experiment)
    judged = sorted((line for line in report.lines if line.judged), key=lambda line: line.slope)
    ends = [f"{line.slope:+.2f} {line.quantity} over {line.axis}" for line in (judged[0], judged[-1])]
    cells = (name, optimizer, *ends, f"{report.control:+.2f}", "pass" if report.passed else "FAIL")
    return "| " + " | ".join(cells) + " |"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=STRUCTURES, metavar="NAME", help="experiments")
    parser.add_argument("--optim", nargs="+", default=sorted(coordcheck.RATES), metavar="NAME", help="optimizers")
    given = parser.parse_args(argv)
    programs.keep(cachedir.ready(cachedir.default()))
    print("| model | optimizer | least slope | greatest slope | control | verdict |\n|---|---|---|---|---|---|")
    for name in given.only:
        for optimizer in given.optim:
            print(row(name, optimizer), flush=True)


if __name__ == "__main__":
    main()
