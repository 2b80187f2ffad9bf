"""How often the intervals of `maijax fit` hold what they should: runs of a known law, fitted and foretold many times.

    python benchmarks/coverage.py [--trials 200] [--resamples 200]

Losses are Epoch's law (arXiv 2404.10102) at a grid of 1e8 to 3e9 parameters and 2e9 to 1e11 tokens (one length: 2e9),
times noise that the seeds of a size share, times noise of each seed. Prints for each design in how many of a hundred
trials the 95% and the 50% interval hold a new run of 1e10 parameters (2e11 tokens; one length: 2e9), its noise
included, and the law's exponents; and how wide the 95% interval of the run is, the median of its high end over its low
one. A share p of n trials is known to about 2 (p (1 - p) / n)^(1/2).
"""

import argparse
from typing import NamedTuple

import numpy as np

from maijax.compare import fits
from maijax.compare.points import Point

LOSS, A, B, ALPHA, BETA = 1.8172, 482.01, 2085.43, 0.3478, 0.3658
LEVELS = (0.95, 0.5)


class Design(NamedTuple):
    sizes: int
    lengths: int
    seeds: int
    shared: float  # noise of log loss that the seeds of a size have in common
    own: float  # and that each has of its own


DESIGNS = (
    Design(3, 3, 1, 0.0, 2e-3), Design(4, 3, 1, 0.0, 2e-3), Design(6, 6, 1, 0.0, 2e-3), Design(4, 3, 3, 0.0, 2e-3),
    Design(3, 3, 3, 4e-3, 1e-3), Design(4, 3, 3, 4e-3, 1e-3), Design(6, 6, 3, 4e-3, 1e-3), Design(6, 1, 3, 4e-3, 1e-3),
    Design(5, 1, 3, 4e-3, 1e-3), Design(4, 1, 3, 4e-3, 1e-3), Design(4, 1, 3, 0.0, 2e-3),
)


def law(params: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    return LOSS + A / params**ALPHA + B / tokens**BETA


def places(design: Design) -> tuple[np.ndarray, np.ndarray]:
    lengths = np.geomspace(2e9, 1e11, design.lengths)
    n, d = np.meshgrid(np.geomspace(1e8, 3e9, design.sizes), lengths, indexing="ij")
    return n.ravel(), d.ravel()


def point(params: float, tokens: float, losses: tuple[float, ...] = (np.nan,)) -> Point:
    return Point(name="", params=params, tokens=tokens, flops=6 * params * tokens, loss=float(np.mean(losses)),
                 losses=losses)


def trial(design: Design, seed: int, resamples: int) -> tuple[np.ndarray, np.ndarray, float]:
    """(whether each level's interval holds the run [2], the exponents [variables, 2], high over low)."""
    rng = np.random.default_rng(seed)
    n, d = places(design)
    of_size = law(n, d) * np.exp(design.shared * rng.standard_normal(len(n)))
    losses = of_size[:, None] * np.exp(design.own * rng.standard_normal((len(n), design.seeds)))
    fit = fits.fit([point(*row) for row in zip(n, d, map(tuple, losses), strict=True)], resamples=resamples, seed=seed)
    place = point(1e10, 2e11 if design.lengths > 1 else d[0])
    run = law(np.array(place.params), np.array(place.tokens))
    run *= np.exp(np.hypot(design.shared, design.own) * rng.standard_normal())
    told = [fit.predict(place, level=level) for level in LEVELS]
    exponents = np.exp(fit.draws[:, 1 + len(fit.form.variables) :])
    held = []
    for true, draws in zip((ALPHA, BETA), exponents.T, strict=False):
        ends = [fits.interval(0.0, draws, level) for level in LEVELS]
        held.append([one.low <= true <= one.high for one in ends])
    return np.array([one.low <= run <= one.high for one in told]), np.array(held), told[0].high / told[0].low


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--resamples", type=int, default=200)
    args = parser.parse_args()
    print("sizes lengths seeds  shared    own     run 95% 50%   exponents 95% 50%   width")
    for design in DESIGNS:
        held, exponents, widths = zip(
            *(trial(design, seed, args.resamples) for seed in range(args.trials)), strict=True
        )
        run, exponent = 100 * np.mean(held, axis=0), 100 * np.mean(exponents, axis=(0, 1))
        print(f"{design.sizes:5} {design.lengths:7} {design.seeds:5}  {design.shared:6g} {design.own:6g}"
              f"     {run[0]:7.1f} {run[1]:3.0f}   {exponent[0]:13.1f} {exponent[1]:3.0f}   {np.median(widths):5.3g}",
              flush=True)


if __name__ == "__main__":
    main()
