"""Run by MaxText's own Python for `benchmarks.plan_vs_maxtext`: compiles MaxText's training step for a topology.

usage: maxtext_plan.py TOPOLOGY FOLDER KEY=VALUE ...   (MaxText's settings); its last line is the answer, JSON.
"""

import json
import os
import sys
import time

os.environ |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}

import maxtext  # noqa: E402
from absl import app  # noqa: E402
from maxtext.trainers.pre_train import train_compile  # noqa: E402

topology, folder, *settings = sys.argv[1:]
answer = {}
theirs = train_compile.jit_and_compile


def timed(*args):
    began = time.perf_counter()
    compiled = theirs(*args)
    found = compiled.memory_analysis()
    answer.update(
        seconds=time.perf_counter() - began, arguments=found.argument_size_in_bytes,
        temporaries=found.temp_size_in_bytes, peak=found.peak_memory_in_bytes,
    )
    return compiled


train_compile.jit_and_compile = timed


def main(argv):
    try:
        train_compile.main(argv)
    except Exception as error:  # what it does after the compile is of no interest
        answer.setdefault("error", f"{type(error).__name__}: {str(error)[:500]}")
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    base = os.path.join(os.path.dirname(maxtext.__file__), "configs", "base.yml")
    app.run(main, argv=[
        "train_compile", base, f"compile_topology={topology}", "compile_topology_num_slices=1",
        "enable_checkpointing=false", f"base_output_directory={folder}", "run_name=plan", "dataset_type=synthetic",
        "remat_policy=full", "use_iota_embed=true", "attention=flash", *settings,
    ])
