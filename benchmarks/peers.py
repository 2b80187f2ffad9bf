"""The peers of cpu_step.py: PyTorch in its own process, MaxText and Levanter in environments of their own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from timing import SIZES, WARM, busy_seconds, medians

MAXTEXT_STEPS = 8  # of MaxText, count at least so many: starting it takes longer than they do


def torch_step(size: dict[str, int]) -> tuple[Callable[[], float], int]:
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


def maxtext(python: str, name: str, steps: int) -> dict[str, Any]:
    """Return what ``timed`` does and the peak memory, of MaxText's trainer; a step lasts from log line to log line."""
    # Lines. One more step is run, so that the process still lives at the last of them.
    wanted = WARM + max(steps, MAXTEXT_STEPS) + 1
    command = maxtext_command(python, SIZES[name], wanted + 1)
    marks, losses, log, memory = [], [], [], 0
    with tempfile.TemporaryDirectory() as folder, subprocess.Popen(
        command, cwd=folder, text=True, errors="replace", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
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


def levanter(python: str, name: str, steps: int) -> dict[str, Any]:
    """Return what ``timed`` does and the peak memory, of Levanter's trainer."""
    script = Path(__file__).with_name("levanter_step.py").resolve()
    words = [os.path.abspath(python), str(script), name, str(steps)]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        print(f"error: Levanter ended with code {done.returncode}; the end of its log:",
              *done.stderr.splitlines()[-12:], sep="\n", file=sys.stderr)
        sys.exit(2)
    return json.loads(done.stdout.splitlines()[-1])
