"""The plans of the two 500B models in docs/plans: searched, compiled, and written down with what they assume.

    python -m benchmarks.plans_500b [--only TEXT] [--table]

Runs `maijax plan NAME --topology T --search --compile 1 --json` for each of `PLANS` (".[tpu-plan,gpu-plan]"), keeps the
fastest layout that the compiler says fits in docs/plans/NAME-MACHINE.json, and writes the table in
docs/plans/README.md. Compiles are kept in the cache folder: run again, it goes on where it was. ``--only`` takes the
plans whose file name holds the text; ``--table`` writes the table alone.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from maijax import registry

FOLDER = Path(__file__).parents[1] / "docs" / "plans"
NAMES = ("mai_500b", "mai_500b_moe")
MACHINES = (("v5p:16x16x32", 1), ("v5p:8x8x16", 1), ("v6e:16x16", 16), ("tpu7x:8x8x16", 1), ("h100:128x8", 1))
# The mixture once more on the largest machine, at eight times the law's batch: the 134M tokens, and 15T in all.
WIDE = ("train.batch_size=16384", "train.steps=111759")
PLANS = (
    *((name, *machine, ()) for name in NAMES for machine in MACHINES), ("mai_500b_moe", *MACHINES[0], WIDE),
)
COMPILERS = {"tpu": "libtpu", "gpu": "jax-cuda13-plugin"}
GiB = 2**30
INTRO = """\
# Plans of the 500B models

Each is the fastest layout of `maijax plan NAME --topology T --search` that the compiler says fits, for the batch of the
experiment, 2,048 rows of 8,192 tokens; in one row for eight times as many, the 134M tokens that Microsoft reports for
MAI-Base-1 on 8,192 accelerators: by the law's batch each of 8,192 chips would have 2,048 tokens, and gather and sum as
many weights for an eighth of the products. Peak memory is the compiler's; MFU, step time, days and dollars are the
model's of `docs/plan.md`, whose table says how far it was off published runs. They assume an even router, no failures,
no evaluation, on-demand prices of `configs/chips.py`, and that half of the time of weights' and gradients' collectives
hides behind products. None has been run. The compiler's own cycles of these programs, in each file beside the model's
time, are 1.1 to 1.2 times the model's products for `mai_500b` without `tensor`, 1.6 to 2.2 times with it, and 1.9 to
3.8 times for the mixture: no MFU is taken from them; it is the model's time that was compared with published runs. The
JSON files hold the settings to give to `maijax run`, every term of the time, the memory, the traffic, and why other
layouts lose. Written by `python -m benchmarks.plans_500b`.

"""


def file(name: str, topology: str, slices: int, settings: Sequence[str]) -> Path:
    machine = topology.replace(":", "-") + (f"-{slices}-slices" if slices > 1 else "")
    return FOLDER / f"{name}-{machine}{'-wide' if settings == WIDE else ''}.json"


def search(name: str, topology: str, slices: int, settings: Sequence[str]) -> dict[str, Any]:
    """The best plan that fits, and what the search says of the others; raises LookupError if none fits."""
    began = time.monotonic()
    command = [sys.executable, "-m", "maijax", "plan", name, "--topology", topology, "--slices", str(slices)]
    command += [word for setting in settings for word in ("--set", setting)]
    done = subprocess.run([*command, "--search", "--compile", "1", "--json"], stdout=subprocess.PIPE, text=True)
    found = json.loads(done.stdout)
    best = next((made for made in found["best"] if made["fits"]), None)
    if best is None:
        raise LookupError(f"{name} on {topology}: none of the best layouts compiles and fits; {found['losers'][:1]}")
    compiler = COMPILERS[registry.topology(topology).chip.platform]
    versions = {package: importlib.metadata.version(package) for package in ("jax", compiler)}
    kept = {key: best[key] for key in best if key not in ("values", "kept", "largest", "refused")}
    others = [{"layout": made["mesh"], "verdict": made["verdict"]} for made in found["best"] if made is not best]
    return kept | {
        "settings": [*settings, *best["settings"]], "compiled_with": versions,
        "search": {key: found[key] for key in ("tried", "too_large", "refused", "slower")},
        "others": others, "losers": found["losers"], "search_seconds": round(time.monotonic() - began),
    }


def table() -> str:
    """Markdown, a line for each plan that is there."""
    lines = [
        "| model | machine | chips | layout | peak GiB | of | step | MFU | days | M$ |", "|" + "---|" * 10,
    ]
    for name, topology, slices, settings in PLANS:
        if not (path := file(name, topology, slices, settings)).exists():
            continue
        made, machine = json.loads(path.read_text()), registry.topology(topology, slices)
        memory, run = made["memory"], made["run"]
        short = [setting.removeprefix("mesh.") for setting in made["settings"]]
        lines.append(
            f"| {name} | {machine.title} | {machine.chips:,} | {', '.join(short)} "
            f"| {memory['compiler']['peak'] / GiB:.1f} | {memory['room'] / GiB:.1f} "
            f"| {made['time']['model']['step']:.1f} s | {run['mfu']:.1%} | {run['days']:.0f} "
            f"| {run['dollars'] / 1e6:.0f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="TEXT", help="plans whose file name holds it")
    parser.add_argument("--table", action="store_true", help="write the table alone")
    args = parser.parse_args()
    FOLDER.mkdir(exist_ok=True)
    for plan in PLANS:
        path = file(*plan)
        if args.only in path.name and not args.table:
            try:
                path.write_text(json.dumps(made := search(*plan), indent=1) + "\n")
                print(path.name, made["verdict"], flush=True)
            except LookupError as error:
                print(path.name, error, flush=True)
    (FOLDER / "README.md").write_text(INTRO + table())


if __name__ == "__main__":
    main()
