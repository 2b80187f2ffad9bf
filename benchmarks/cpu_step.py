"""A training step on CPU beside PyTorch's and MaxText's: same shapes, float32, forward, backward, AdamW.

    python benchmarks/cpu_step.py [--sizes S,M] [--rounds 3] [--sides maijax,torch] [--maxtext PYTHON] [--wall]
                                  [--json FILE]

The side torch needs torch and transformers beside maijax. ``--maxtext`` adds the side maxtext; PYTHON is the
interpreter of an environment of its own (Python 3.12, pip install 'maxtext[tpu]==0.2.5').

Each side runs in a process of its own, in turns. "cpu-s" is CPU-seconds per step of a process pinned to one core:
other work on the machine changes it little, and all sides alike. ``--wall`` also runs on all cores and prints wall
time per step, with the cores that other processes took meanwhile: believe it only where that is below 0.15.

maijax: the library's model, optimizer chain and step, donated state, one document per row. torch: transformers'
LlamaForCausalLM, eager, sdpa attention, fused AdamW. maxtext: its own trainer and llama2 block on synthetic tokens,
no clipping, the rematerialisation that it lists as fastest; else its defaults, layers scanned among them.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from peak_matmul import measure, pin

sys.path.insert(0, str(Path(__file__).parents[1]))  # a bare checkout, too

SIZES = {
    "S": dict(layers=6, d=256, heads=8, ffn=1024, vocab=4096, seq=256, batch=16),
    "M": dict(layers=12, d=512, heads=8, ffn=1536, vocab=4096, seq=256, batch=8),
}
SIDES = ("maijax", "torch", "maxtext")
WARM = 3  # steps that do not count
MAXTEXT_STEPS = 8  # of MaxText, count at least so many: starting it takes longer than they do


def step_flops(size: dict[str, int]) -> int:
    """Return the FLOPs of a step: 6 per weight of a product and token, and the attention scores without skipping."""
    layer = 4 * size["d"] ** 2 + 3 * size["d"] * size["ffn"]
    weights = size["layers"] * layer + size["vocab"] * size["d"]
    return size["batch"] * size["seq"] * (6 * weights + 12 * size["layers"] * size["d"] * size["seq"])


def busy_seconds() -> float:
    """Return the CPU-seconds that the whole machine has worked since it started."""
    fields = [int(x) for x in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")


def medians(rows: list[tuple[float, float, float]]) -> dict[str, Any]:
    """Return the medians of steps given as CPU-seconds, wall seconds, CPU-seconds of the whole machine."""
    cpu, wall, others = zip(*((own, wall, max(0.0, busy - own) / wall) for own, wall, busy in rows), strict=True)
    return {"cpu_s": statistics.median(cpu), "wall_s": statistics.median(wall), "others": statistics.median(others)}


def timed(step: Callable[[], float], steps: int) -> dict[str, Any]:
    """Return medians over steps: CPU-seconds, wall seconds, and the cores that others were using."""
    first = step()
    for _ in range(WARM - 1):
        step()
    rows = []
    for _ in range(steps):
        own, wall, busy = time.process_time(), time.perf_counter(), busy_seconds()
        last = step()
        rows.append((time.process_time() - own, time.perf_counter() - wall, busy_seconds() - busy))
    return medians(rows) | {"first_loss": first, "last_loss": last}


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


def peer(size: dict[str, int]) -> tuple[Callable[[], float], int]:
    """Return the step of transformers' Llama on random tokens, and the number of parameters."""
    import torch
    import transformers

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    shape = transformers.LlamaConfig(
        vocab_size=size["vocab"], hidden_size=size["d"], intermediate_size=size["ffn"],
        num_hidden_layers=size["layers"], num_attention_heads=size["heads"], num_key_value_heads=size["heads"],
        max_position_embeddings=size["seq"], tie_word_embeddings=False, use_cache=False, pad_token_id=0,
        attn_implementation="sdpa",  # pyright: ignore[reportCallIssue]
    )
    model = transformers.LlamaForCausalLM(shape).float().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    batches = [torch.randint(0, size["vocab"], (size["batch"], size["seq"])) for _ in range(4)]
    turn = iter(range(10**9))

    def one() -> float:
        tokens = batches[next(turn) % 4]
        loss = model(input_ids=tokens, labels=tokens).loss  # shifts the labels itself: the same products
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return one, sum(p.numel() for p in model.parameters())


def maxtext_command(python: str, size: dict[str, int], steps: int) -> list[str]:
    """Return the command that runs MaxText's trainer, writing nothing but its log."""
    values = {
        "run_name": "cpu_step", "base_output_directory": "out", "jax_cache_dir": "", "enable_checkpointing": "false",
        "enable_tensorboard": "false", "log_config": "false", "hardware": "cpu", "skip_jax_distributed_system": "true",
        "steps": steps, "dataset_type": "synthetic", "per_device_batch_size": size["batch"],
        "max_target_length": size["seq"], "vocab_size": size["vocab"], "base_num_decoder_layers": size["layers"],
        "base_emb_dim": size["d"], "base_mlp_dim": size["ffn"], "base_num_query_heads": size["heads"],
        "base_num_kv_heads": size["heads"], "head_dim": size["d"] // size["heads"], "decoder_block": "llama2",
        "mlp_activations": "[silu,linear]", "logits_via_embedding": "false", "enable_dropout": "false",
        "dtype": "float32", "weight_dtype": "float32", "attention": "dot_product", "gradient_clipping_threshold": 0,
        "remat_policy": "minimal_with_context",  # "none" recomputes as much as "full"
    }
    trainer = [os.path.abspath(python), "-u", "-m", "maxtext.trainers.pre_train.train"]
    return trainer + [f"{key}={value}" for key, value in values.items()]


def process_seconds(pid: int) -> float:
    """Return the CPU-seconds that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak_rss_mb(pid: int) -> int:
    """Return the largest resident size that a running process has had."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM:"))


def maxtext(python: str, size: dict[str, int], steps: int) -> dict[str, Any]:
    """Return what ``timed`` does and the peak memory, of MaxText's trainer; a step lasts from log line to log line."""
    wanted = WARM + steps + 1  # lines; one more step is run, so that the process still lives at the last of them
    marks, losses, log, memory = [], [], [], 0
    with tempfile.TemporaryDirectory() as folder, subprocess.Popen(
        maxtext_command(python, size, wanted + 1), cwd=folder, text=True, errors="replace", stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ) as process:
        for line in process.stdout or ():
            log.append(line)
            found = re.search(r"completed step: \d+,.* loss: ([^,\s]+)", line)
            if found and len(marks) < wanted:
                marks.append((process_seconds(process.pid), time.perf_counter(), busy_seconds()))
                losses.append(float(found[1]))
                memory = peak_rss_mb(process.pid)
    if process.returncode or len(marks) < wanted:
        print(f"error: MaxText ended with code {process.returncode} after {len(marks)} steps; the end of its log:",
              *log[-12:], sep="\n", file=sys.stderr)
        sys.exit(2)
    rows = [(b[0] - a[0], b[1] - a[1], b[2] - a[2]) for a, b in zip(marks[WARM:], marks[WARM + 1:], strict=False)]
    return medians(rows) | {"first_loss": losses[0], "last_loss": losses[-1], "peak_rss_mb": memory}


def work(side: str, name: str, cores: int, steps: int, python: str) -> None:
    """Be one side's process: measure and print one JSON line."""
    pin(cores)
    if side == "peak":
        print(json.dumps(measure((2048, 2048, 2048))))
        return
    if side == "maxtext":
        print(json.dumps(maxtext(python, SIZES[name], max(steps, MAXTEXT_STEPS))))
        return
    import resource

    one, parameters = (ours if side == "maijax" else peer)(SIZES[name])
    found = timed(one, steps) | {"parameters": parameters}
    print(json.dumps(found | {"peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}))


def run_side(side: str, name: str, cores: int, steps: int, python: str = "") -> dict[str, Any]:
    """Return what one side's process measured; where it fails, it has said why, and its exit code becomes ours."""
    words = [sys.executable, __file__, "--worker", side, "--sizes", name, "--cores", str(cores), "--steps", str(steps)]
    done = subprocess.run([*words, "--maxtext", python], stdout=subprocess.PIPE, text=True)
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


def chosen_sides(parser: argparse.ArgumentParser, sides: str, python: str) -> list[str]:
    """Return the sides to run; a mistake ends the program with exit code 2."""
    chosen = [*sides.split(","), *(["maxtext"] if python else [])]
    unknown = set(chosen) - set(SIDES)
    if unknown:
        parser.error(f"unknown sides: {', '.join(sorted(unknown))}; there are {', '.join(SIDES)}")
    if "maxtext" in chosen and not Path(python).is_file():
        parser.error(f"the side maxtext needs --maxtext PYTHON, an interpreter; given: {python or 'nothing'}")
    return list(dict.fromkeys(chosen))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="S,M")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5, help="measured steps per round")
    parser.add_argument("--sides", default="maijax,torch", help="of maijax, torch, maxtext")
    parser.add_argument("--maxtext", default="", metavar="PYTHON", help="add the side maxtext, run by this interpreter")
    parser.add_argument("--wall", action="store_true", help="also wall time on all cores")
    parser.add_argument("--json", type=Path, help="also write every figure here")
    parser.add_argument("--worker", choices=[*SIDES, "peak"], help=argparse.SUPPRESS)
    parser.add_argument("--cores", type=int, default=1, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        work(given.worker, given.sizes, given.cores, given.steps, given.maxtext)
        return

    sides = chosen_sides(parser, given.sides, given.maxtext)
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
                    results[side].append(run_side(side, name, cores, given.steps, given.maxtext))
            print(table(name, results, peak, unit), flush=True)
            record.append({"size": name, "cores": cores, "peak_gflops": peak, "results": results})
    if given.json:
        given.json.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
