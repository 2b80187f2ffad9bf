"""A driver, or a worker of it, whose trials are naps: the same code but for what a trial computes.

    python runner.py drive FOLDER WORKERS      python runner.py work FOLDER WORKERS TOGETHER
"""

import os
import sys
import time
from pathlib import Path

from maijax.sweep import drive, launch, worker
from maijax.sweep.study import Claim, Result, Study
from maijax.train.interrupt import Interrupt

STEPS = 3


def note(study: Study, text: str) -> None:
    with open(study.folder / "log", "a") as log:
        log.write(text + "\n")


def nap(study: Study, claims: list[Claim], together: int) -> tuple[int, dict]:
    """Each step of a trial is a line in its folder, which is where it goes on; interrupted as a run is."""
    with Interrupt() as interrupt:
        for claim in claims:
            note(study, f"begin {claim.trial.number} {os.getpid()}")
            file = claim.folder / "steps"
            done = len(file.read_text().splitlines()) if file.exists() else 0
            while done < STEPS and interrupt.asked is None:
                time.sleep(float(os.environ.get("NAP", "0.03")))
                with open(file, "a") as out:
                    out.write(f"{os.getpid()}\n")
                done += 1
            if done == STEPS:
                claim.release(Result(state="done", step=done, bits_per_byte=1.0 + claim.trial.number))
                note(study, f"done {claim.trial.number} {os.getpid()}")
            else:
                claim.release(None)
    return together, {}


class Local(launch.Local):
    words = [sys.executable, __file__, "work"]


if __name__ == "__main__":
    verb, folder, *rest = sys.argv[1:]
    worker.run_claimed = nap
    if verb == "work":
        sys.exit(worker.work(folder, int(rest[0]), int(rest[1])))
    sys.exit(0 if drive.drive(Study.load(Path(folder)), Local(Path(folder), int(rest[0]), 3, {})) else 75)
