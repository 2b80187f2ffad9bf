"""A training step compiled for 512 v5p chips that are not here, ours beside MaxText's: memory, compile and compute.

    python -m benchmarks.plan_vs_maxtext --maxtext PYTHON [--case 405b|512b]

PYTHON is that of an environment with maxtext[tpu]==0.2.5; ours needs ".[tpu-plan]". Same shape, layout (fsdp 64 x
tensor 8), tokens, optimizer (AdamW, state in float32), compute in bfloat16, full rematerialisation; ours once with the
layers' inputs kept on the device, as theirs are, once so in two micro-batches, and once with them in the host's memory
("offload"). One after the other, since each uses all cores; nothing is kept from an earlier run. "compute" is the
compiler's estimated cycles of either program by the chip's clock, plus the attention kernel's time, which it does not
estimate, by our model of it; no collective is in it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from maijax import registry
from maijax.cli.plan import Plan
from maijax.config import AttentionConfig, Experiment, MeshConfig, ModelConfig, Remat
from maijax.plan import arithmetic, compiling, dump

GiB = 2**30
TOPOLOGY = "v5p:8x8x8"
MESH = MeshConfig(data=1, fsdp=64, tensor=8)
OURS: dict[str, tuple[Remat, int]] = {"full": ("full", 1), "full, 2 x": ("full", 2), "offload": ("offload", 1)}
THEIRS = "maxtext full"

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


def experiment(name: str, remat: Remat = "full", accumulation: int = 1) -> Experiment:
    case, base = CASES[name], registry.get("llama3_405b")
    model = dataclasses.replace(MAXTEXT_512B if name == "512b" else base.model, remat=remat)
    train = dataclasses.replace(base.train, batch_size=case.batch_size, seq_len=case.seq_len, accumulation=accumulation)
    return dataclasses.replace(base, name=name, model=model, train=train, mesh=MESH)


def compute_seconds(made: Experiment, told: dict[str, Any]) -> float | None:
    """Of a compiled program, ours or theirs: one reading of the compiler's cycles, one model of the kernel."""
    topology = registry.topology(TOPOLOGY)
    return Plan(made, topology, arithmetic.estimate(made, topology), told).compute_seconds()


def ours(made: Experiment) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as cache:
        told = compiling.compiled(
            made, registry.topology(TOPOLOGY), cache=Path(cache), say=lambda text: print(f"  {text}", file=sys.stderr)
        )
    if "refused" in told:
        return {"error": told["refused"]["message"]}
    return told["memory"] | {"seconds": sum(told["seconds"].values()), "compute": compute_seconds(made, told)}


def maxtext(name: str, python: str) -> dict[str, Any]:
    """Answers of maxtext_plan.py; "seconds" without the import, as ours."""
    script, made = Path(__file__).with_name("maxtext_plan.py"), experiment(name)
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "xla"
        command = [python, str(script), "v5p-1024", folder, "ici_tensor_parallelism=8", *CASES[name].theirs]
        flags = f"--xla_dump_to={written} --xla_dump_hlo_as_text --xla_dump_hlo_module_re=jit_train_step"
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=folder, env=os.environ | {"XLA_FLAGS": flags}
        )
        lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
        if not lines:
            return {"error": (done.stderr.strip().splitlines() or ["no word"])[-1]}
        sizes = made.mesh.shape(registry.topology(TOPOLOGY).devices)
        work = dump.read(written, sizes, "jit_train_step")
    told = {"mesh": sizes, "work": work and dataclasses.asdict(work)}
    return json.loads(lines[-1]) | {"compute": compute_seconds(made, told)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--maxtext", metavar="PYTHON", help="of an environment with maxtext[tpu]==0.2.5")
    parser.add_argument("--case", choices=sorted(CASES), action="append")
    args = parser.parse_args()
    print("case  side              arguments  temporaries       peak  compile  compute")
    for name in args.case or list(CASES):
        for side in (*OURS, THEIRS) if args.maxtext else OURS:
            found = maxtext(name, args.maxtext) if side == THEIRS else ours(experiment(name, *OURS[side]))
            label = side if side == THEIRS else f"maijax {side}"
            if "peak" not in found:
                print(f"{name:4}  {label:16}  {found.get('error', 'nothing')[:80]}", flush=True)
                continue
            sizes = [found[k] / GiB for k in ("arguments", "temporaries", "peak")]
            compute = f"{found['compute']:5.1f} s" if found["compute"] else "unknown"
            print(f"{name:4}  {label:16}  {sizes[0]:5.2f} GiB    {sizes[1]:5.2f} GiB  {sizes[2]:5.2f} GiB  "
                  f"{found['seconds']:5.0f} s  {compute}", flush=True)
        estimate = arithmetic.estimate(experiment(name), registry.topology(TOPOLOGY))
        print(f"{name:4}  by arithmetic     peak {estimate.peak_bytes / GiB:.1f} GiB, {estimate.step_seconds:.1f} s a "
              f"step, {estimate.mfu:.0%} MFU", flush=True)


if __name__ == "__main__":
    main()
