"""What a sweep in one program saves: N learning rates of phi_test, as one `maijax sweep` and as N `maijax run`s.

    python benchmarks/sweep_vectorised.py [--rates 16] [--name phi_test] [--set train.steps=20]

Both sides are whole commands from start to exit, with final evaluation, stories and reports, in fresh run folders;
the corpus and its tokenizer are prepared before, by a run that is not counted, which also warms the cache of compiled
programs for what does not depend on the rate. Prints wall and processor seconds, and the largest difference of any
training or held-out loss between the two ways.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def command(*words: str, env: dict[str, str]) -> tuple[float, float]:
    """(wall, processor) seconds of a command that must succeed."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, "-m", "maijax", *words], check=True, capture_output=True, env=os.environ | env)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def losses(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["kind"] in ("train", "eval")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", type=int, default=16)
    parser.add_argument("--name", default="phi_test")
    parser.add_argument("--set", action="append", default=[])
    args = parser.parse_args()
    settings = [word for setting in args.set for word in ("--set", setting)]
    with tempfile.TemporaryDirectory() as folder:
        runs, env = Path(folder) / "runs", {"MAIJAX_CACHE": folder + "/cache"}
        where = ["--runs-dir", str(runs)]
        command("run", args.name, *settings, *where, "--name", "warm", env=env)
        space = f"optim.lr=log:1e-3..1e-1:{args.rates}"
        words = [*settings, "--set", space, "--together", str(args.rates), *where, "--name", "sweep"]
        together = command("sweep", args.name, *words, env=env)
        print(f"one sweep of {args.rates}: {together[0]:.1f} s wall, {together[1]:.1f} s of processors", flush=True)
        apart, worst = [0.0, 0.0], 0.0
        for number in range(args.rates):
            trial = runs / "sweep" / f"trial-{number:04}"
            rate = json.loads((trial / "trial.json").read_text())["point"]["optim.lr"]
            name = f"alone-{number}"
            took = command("run", args.name, *settings, "--set", f"optim.lr={rate}", *where, "--name", name, env=env)
            apart = [a + b for a, b in zip(apart, took, strict=True)]
            pairs = zip(losses(trial), losses(runs / name), strict=True)
            worst = max(worst, *(abs(a - b) for a, b in pairs))
        print(f"{args.rates} runs:      {apart[0]:.1f} s wall, {apart[1]:.1f} s of processors")
        print(f"the sweep takes {together[0] / apart[0]:.3f} of the wall time, {together[1] / apart[1]:.3f} of the "
              f"processors'; the largest difference of a loss is {worst:.2g}")


if __name__ == "__main__":
    main()
