"""A training step compiled for 512 v5p chips that are not here, ours beside MaxText's: peak memory, compile time.

    python -m benchmarks.plan_vs_maxtext --maxtext PYTHON [--case 405b|512b]

PYTHON is that of an environment with maxtext[tpu]==0.2.5; ours needs ".[tpu-plan]". Same shape, layout (fsdp 64 x
tensor 8), tokens, optimizer (AdamW, state in float32), compute in bfloat16, full rematerialisation. One after the
other, since both use all cores; nothing is kept from an earlier run.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from maijax import registry
from maijax.config import AttentionConfig, Experiment, MeshConfig, ModelConfig
from maijax.plan import arithmetic, compiling

GiB = 2**30
TOPOLOGY = "v5p:8x8x8"
MESH = MeshConfig(data=1, fsdp=64, tensor=8)

# Their global_parameter_scale=512: eight times each of embedding, heads, mlp and layers of their default model.
MAXTEXT_512B = ModelConfig(
    num_layers=128, d_model=16_384, d_ff=57_344, vocab_size=32_000, context=2_048, remat="full",
    attention=AttentionConfig(num_heads=128, kv_heads=128, head_dim=128),
)


@dataclasses.dataclass(frozen=True)
class Case:
    """The same step in our words and in theirs."""

    batch_size: int  # sequences
    seq_len: int
    theirs: tuple[str, ...]


CASES = {
    "405b": Case(512, 4_096, ("model_name=llama3.1-405b", "per_device_batch_size=1", "max_target_length=4096")),
    "512b": Case(1_024, 2_048, ("global_parameter_scale=512", "per_device_batch_size=2", "max_target_length=2048")),
}


def experiment(name: str) -> Experiment:
    case, base = CASES[name], registry.get("llama3_405b")
    model = MAXTEXT_512B if name == "512b" else dataclasses.replace(base.model, remat="full")
    train = dataclasses.replace(base.train, batch_size=case.batch_size, seq_len=case.seq_len)
    return dataclasses.replace(base, name=name, model=model, train=train, mesh=MESH)


def ours(name: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as cache:
        told = compiling.compiled(
            experiment(name), registry.topology(TOPOLOGY), cache=Path(cache),
            say=lambda text: print(f"  maijax: {text}", file=sys.stderr),
        )
    return told["memory"] | {"seconds": sum(told["seconds"].values())} | (
        {"error": told["refused"]["message"]} if "refused" in told else {}
    )


def maxtext(name: str, python: str) -> dict[str, Any]:
    script = Path(__file__).with_name("maxtext_plan.py")
    with tempfile.TemporaryDirectory() as folder:
        command = [python, str(script), "v5p-1024", folder, "ici_tensor_parallelism=8", *CASES[name].theirs]
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    return json.loads(lines[-1]) if lines else {"error": (done.stderr.strip().splitlines() or ["no word"])[-1]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--maxtext", metavar="PYTHON", help="of an environment with maxtext[tpu]==0.2.5")
    parser.add_argument("--case", choices=sorted(CASES), action="append")
    args = parser.parse_args()
    print("case  side     arguments  temporaries     peak  compile")
    for name in args.case or list(CASES):
        sides = {"maijax": ours(name)}
        if args.maxtext:
            sides["maxtext"] = maxtext(name, args.maxtext)
        for side, found in sides.items():
            if "peak" not in found:
                print(f"{name:4}  {side:7}  {found.get('error', 'nothing')[:90]}", flush=True)
                continue
            sizes = [found[k] / GiB for k in ("arguments", "temporaries", "peak")]
            print(f"{name:4}  {side:7}  {sizes[0]:5.2f} GiB    {sizes[1]:5.2f} GiB  {sizes[2]:5.2f} GiB  "
                  f"{found['seconds']:5.0f} s", flush=True)
        estimate = arithmetic.estimate(experiment(name), registry.topology(TOPOLOGY))
        print(f"{name:4}  model    peak {estimate.peak_bytes / GiB:.1f} GiB, {estimate.step_seconds:.1f} s a step, "
              f"{estimate.mfu:.0%} MFU", flush=True)


if __name__ == "__main__":
    main()
