"""A process of its own for one compile, since XLA reads its flags once: `python -m maijax.plan.worker ASKED ANSWER`.

ASKED and ANSWER are JSON files. The answer is {"told": ...}, {"user_error": line} or {"error": text}.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from maijax import plain, registry
from maijax.errors import UserError


def main(asked: Path, answer: Path) -> None:
    threading.Thread(target=_leave_with, args=(os.getppid(), asked.parent), daemon=True).start()
    request = json.loads(asked.read_text())
    try:
        found = {"told": told(request)}
    except UserError as error:
        found = {"user_error": str(error)}
    except Exception:
        found = {"error": traceback.format_exc(limit=-6)}
    answer.write_text(json.dumps(found))


def _leave_with(parent: int, folder: Path) -> None:
    """Ends this process, and its folder, soon after the one that asked is gone, however that ended."""
    while os.getppid() == parent:
        time.sleep(1)
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


def told(request: dict[str, Any]) -> dict[str, Any]:
    experiment = plain.from_plain(request["experiment"])
    from maijax.plan import program, topology  # after the parent has set the environment

    devices = topology.devices(registry.topology(request["topology"], request["slices"]))
    return program.compile_for(experiment, devices, Path(request["dump"]))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
