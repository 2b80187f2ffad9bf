"""A training step on CPU beside PyTorch's, MaxText's and Levanter's: same shapes, float32, AdamW.

    python benchmarks/cpu_step.py [--sizes S,M] [--rounds 3] [--sides maijax,torch] [--maxtext PYTHON]
                                  [--levanter PYTHON] [--wall] [--json FILE]

The side torch needs torch and transformers beside maijax. ``--maxtext`` and ``--levanter`` add these sides; PYTHON is
the interpreter of an environment of its own (Python 3.12; pip install 'maxtext[tpu]==0.2.5', respectively
pip install 'marin-levanter==0.2.227.dev40316220070': Levanter's releases are all named so).

Each side runs in a process of its own, in turns. "cpu-s" is CPU-seconds per step of a process pinned to one core:
other work on the machine changes it little, and all sides alike. ``--wall`` also runs on all cores and prints wall
time per step, with the cores that other processes took meanwhile: believe it only where that is below 0.15.

maijax: the library's model, optimizer chain and step, donated state, one document per row. torch: transformers'
LlamaForCausalLM, eager, sdpa attention, fused AdamW. maxtext: its own trainer and llama2 block on synthetic tokens,
no clipping, the rematerialisation that it lists as fastest; else its defaults, layers scanned among them. levanter:
its own Trainer.train_step and Llama on random tokens, no clipping, no rematerialisation; else its defaults.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from peak_matmul import measure, pin
from peers import levanter, maxtext, torch_step
from timing import SIZES, step_flops, timed

sys.path.insert(0, str(Path(__file__).parents[1]))  # a bare checkout, too

APART = ("maxtext", "levanter")  # sides in environments of their own
SIDES = ("maijax", "torch", *APART)


def ours(size: dict[str, int]) -> tuple[Callable[[], float], int]:
    """Return the library's own step on random tokens, as its loop runs it, and the number of parameters."""
    from maijax.train.memory import reuse_freed_memory

    reuse_freed_memory()
    import jax
    import numpy as np

    from maijax import config, optim
    from maijax.models import decoder
    from maijax.optim import skip
    from maijax.parallel.mesh import make_mesh
    from maijax.parallel.sharding import Layout
    from maijax.train import state as states
    from maijax.train.step import compile_step

    heads = config.AttentionConfig(num_heads=size["heads"], kv_heads=size["heads"], head_dim=size["d"] // size["heads"])
    model = config.ModelConfig(
        num_layers=size["layers"], d_model=size["d"], d_ff=size["ffn"], vocab_size=size["vocab"], context=size["seq"],
        attention=heads,
    )
    experiment = config.Experiment(
        name="cpu_step",
        model=decoder.resolve(model, "cpu"),
        optim=config.OptimConfig(schedule="constant", warmup=0, clip_norm=None),
        data=config.DataConfig(sources=(config.SourceConfig(uri="none.txt"),)),
        train=config.TrainConfig(steps=1000, batch_size=size["batch"], seq_len=size["seq"]),
    ).validate()
    layout = Layout(make_mesh(experiment.mesh), experiment.mesh)
    tx = skip.wrap(optim.build(experiment.optim, experiment.model, experiment.train.steps), experiment.optim)
    state = states.create(experiment.model, tx, layout, 0)
    parameters = sum(x.size for x in jax.tree.leaves(state.params))
    step = compile_step(experiment, tx, layout)
    rng = np.random.default_rng(0)
    shape = (size["batch"], size["seq"])
    batches = []
    for _ in range(4):
        tokens = rng.integers(0, size["vocab"], (shape[0], shape[1] + 1), dtype=np.int32)
        batches.append({
            "tokens": tokens[:, :-1],
            "targets": tokens[:, 1:],
            "segments": np.ones(shape, np.int32),
            "positions": np.tile(np.arange(shape[1], dtype=np.int32), (shape[0], 1)),
            "weights": np.ones(shape, np.float32),
        })
    turn = iter(range(10**9))

    def one() -> float:
        nonlocal state
        state, metrics = step(state, batches[next(turn) % 4])
        return float(metrics["loss"])

    return one, parameters


def work(side: str, name: str, cores: int, steps: int, python: str) -> None:
    """Be one side's process: measure and print one JSON line."""
    pin(cores)
    if side == "peak":
        print(json.dumps(measure((2048, 2048, 2048))))
        return
    if side in APART:
        print(json.dumps((maxtext if side == "maxtext" else levanter)(python, name, steps)))
        return
    import resource

    one, parameters = (ours if side == "maijax" else torch_step)(SIZES[name])
    found = timed(one, steps) | {"parameters": parameters}
    print(json.dumps(found | {"peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}))


def run_side(side: str, name: str, cores: int, steps: int, python: str = "") -> dict[str, Any]:
    """Return what one side's process measured; where it fails, it has said why, and its exit code becomes ours."""
    words = [sys.executable, __file__, "--worker", side, "--sizes", name, "--cores", str(cores), "--steps", str(steps)]
    done = subprocess.run([*words, *([f"--{side}", python] if python else [])], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(done.returncode)
    return json.loads(done.stdout.splitlines()[-1])


def table(name: str, results: dict[str, list[dict[str, Any]]], peak: float, unit: str) -> str:
    """Return the markdown table of one size: medians over rounds of "cpu_s" or "wall_s"."""
    size, label = SIZES[name], {"cpu_s": "cpu-s", "wall_s": "wall s"}[unit]
    middle = {side: statistics.median(r[unit] for r in rows) for side, rows in results.items()}
    tokens = size["batch"] * size["seq"]
    lines = [f"| {name} | {label} per step | tokens per {label} | of matmul peak | peak RSS MB | all rounds |"]
    lines.append("|---" * 6 + "|")
    for side, rows in results.items():
        share = step_flops(size) / middle[side] / 1e9 / peak
        rounds = " ".join(f"{r[unit]:.2f}" for r in rows)
        if unit == "wall_s":
            rounds += f" (others took {max(r['others'] for r in rows):.2f} cores)"
        memory = max(r["peak_rss_mb"] for r in rows)
        cells = [side, f"{middle[side]:.3f}", f"{tokens / middle[side]:.0f}", f"{share:.0%}", str(memory), rounds]
        lines.append("| " + " | ".join(cells) + " |")
    lines.append("")
    for side in results if "maijax" in results else ():
        if side != "maijax":
            ratios = sorted(r[unit] / m[unit] for r, m in zip(results[side], results["maijax"], strict=True))
            lines.append(f"{name}: {side} / maijax = {middle[side] / middle['maijax']:.2f} "
                         f"(rounds {ratios[0]:.2f} to {ratios[-1]:.2f})")
    return "\n".join([*lines, ""])


def chosen_sides(parser: argparse.ArgumentParser, sides: str, pythons: dict[str, str]) -> list[str]:
    """Return the sides to run; a mistake ends the program with exit code 2."""
    chosen = [*sides.split(","), *(side for side in APART if pythons[side])]
    unknown = set(chosen) - set(SIDES)
    if unknown:
        parser.error(f"unknown sides: {', '.join(sorted(unknown))}; there are {', '.join(SIDES)}")
    for side in APART:
        if side in chosen and not Path(pythons[side]).is_file():
            parser.error(f"the side {side} needs --{side} PYTHON, an interpreter; given: {pythons[side] or 'nothing'}")
    return list(dict.fromkeys(chosen))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="S,M")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5, help="measured steps per round")
    parser.add_argument("--sides", default="maijax,torch", help=f"of {', '.join(SIDES)}")
    for side in APART:
        parser.add_argument(f"--{side}", default="", metavar="PYTHON", help="add this side, run by this interpreter")
    parser.add_argument("--wall", action="store_true", help="also wall time on all cores")
    parser.add_argument("--json", type=Path, help="also write every figure here")
    parser.add_argument("--worker", choices=[*SIDES, "peak"], help=argparse.SUPPRESS)
    parser.add_argument("--cores", type=int, default=1, help=argparse.SUPPRESS)
    given = parser.parse_args()
    pythons = {side: getattr(given, side) for side in APART}
    if given.worker:
        work(given.worker, given.sizes, given.cores, given.steps, pythons.get(given.worker, ""))
        return

    sides = chosen_sides(parser, given.sides, pythons)
    every = len(os.sched_getaffinity(0))
    record = []
    for cores, unit in [(1, "cpu_s")] + ([(every, "wall_s")] if given.wall else []):
        peak = max(run_side("peak", "S", cores, 1).values())
        if unit == "wall_s":
            peak *= cores  # the peak is per CPU-second
        print(f"float32 matmul peak, {cores} core(s): {peak:.0f} GFLOP/s\n", flush=True)
        for name in given.sizes.split(","):
            results: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
            for turn in range(given.rounds):
                for side in sides[::-1] if turn % 2 else sides:
                    results[side].append(run_side(side, name, cores, given.steps, pythons.get(side, "")))
            print(table(name, results, peak, unit), flush=True)
            record.append({"size": name, "cores": cores, "peak_gflops": peak, "results": results})
    if given.json:
        given.json.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
