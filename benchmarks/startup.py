"""How long the command line takes to answer, and a run to finish its first training step.

    python benchmarks/startup.py [--rounds 5] [--name phi_tiny]

Prints medians over rounds. "cold": no compiled program is kept yet; "warm": the compilation cache has it. In both the
corpus is prepared already, and operating-system file caches are warm after the first round.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ANSWERS = (["--help"], ["list"], ["show", "mai_500b"], ["diff", "phi_tiny", "mai_500b"],
           ["compare", "phi_tiny", "mai_500b"])


def answer(words: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "maijax", *words], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def first_step(name: str, cache: Path) -> float:
    """Seconds from process start until the first step's line is in metrics.jsonl; the run is then ended."""
    with tempfile.TemporaryDirectory() as runs:
        start = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "maijax", "run", name, "--runs-dir", runs, "--name", "x", "--set",
             "train.log_every=1"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ | {"MAIJAX_CACHE": str(cache)},
        )
        log = Path(runs) / "x" / "metrics.jsonl"
        while not (log.exists() and '"train"' in log.read_text()):
            if process.poll() is not None:
                raise SystemExit(f"the run ended by itself with code {process.returncode}")
            time.sleep(0.01)
        took = time.perf_counter() - start
        process.kill()
        process.wait()
        return took


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--name", default="phi_tiny")
    args = options.parse_args()

    rows = []
    for words in ANSWERS:
        answer(words)  # byte code is compiled
        times = [answer(words) for _ in range(args.rounds)]
        rows.append((f"maijax {' '.join(words)}", times))

    from maijax import registry
    from maijax.data import cachedir, pipeline

    with tempfile.TemporaryDirectory() as scratch:
        kept = cachedir.default()
        experiment = registry.get(args.name)
        pipeline.open_data(
            experiment.data, vocab_size=experiment.model.vocab_size, seq_len=experiment.train.seq_len,
            seed=experiment.train.seed, cache=kept,
        )
        cache = Path(scratch) / "cache"
        shutil.copytree(kept, cache, ignore=shutil.ignore_patterns("xla", "locks"))
        cold, warm = [], []
        for _ in range(max(1, args.rounds // 2)):
            shutil.rmtree(cache / "xla", ignore_errors=True)
            cold.append(first_step(args.name, cache))
            warm.append(first_step(args.name, cache))
        rows += [(f"first step of {args.name}, cold", cold), (f"first step of {args.name}, warm", warm)]

    print("| what | median s | min s | max s |\n|---|---|---|---|")
    for what, times in rows:
        print(f"| {what} | {statistics.median(times):.2f} | {min(times):.2f} | {max(times):.2f} |")


if __name__ == "__main__":
    main()
