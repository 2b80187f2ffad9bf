"""Who may import whom, how long things may get, and what the quick verbs may load."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

VALUES = {"config", "dims", "errors", "parametrization", "rules", "weights"}
ARITHMETIC = VALUES | {"hardware", "laws", "overrides", "plain", "scaling"}
# Each room of maijax/ and what it may import from maijax; arrows only point down.
MAY_IMPORT = {
    "errors": set(),
    "config": {"errors"},
    "dims": {"config"},
    "weights": {"config", "dims"},
    "parametrization": {"config", "dims", "weights"},
    "rules": {"config", "dims", "errors", "weights"},
    "hardware": {"errors"},
    "plain": {"config", "errors"},
    "overrides": {"config", "errors", "plain"},
    "space": {"config", "errors", "overrides", "plain"},
    "registry": {"config", "errors", "hardware", "plain", "space"},
    "provenance": {"config", "plain", "registry"},
    "scaling": {"config", "weights"},
    "words": set(),
    "laws": {"config", "parametrization", "scaling", "weights", ""},
    "parallel": VALUES | {"parallel"},
    "models": VALUES | {"models", "parallel"},
    "data": {"config", "data", "errors"},
    "optim": VALUES | {"optim"},
    "serve": VALUES | {"serve", "models", "parallel"},
    "train": ARITHMETIC | {"train", "serve", "models", "data", "optim", "parallel", "registry", "provenance"},
    "plan": ARITHMETIC | {"plan", "registry", "hardware", "train", "models", "data", "optim", "parallel"},
    "compare": ARITHMETIC | {"compare", "plan", "train", "registry", "provenance", "words"},
    "sweep": ARITHMETIC | {"sweep", "space", "train", "models", "data", "optim", "parallel", "registry", "provenance",
                           "words"},
    "cli": ARITHMETIC | {"cli", "compare", "words", "plan", "hardware", "train", "serve", "data", "parallel",
                         "registry", "provenance", "", "models", "space", "sweep"},
    "__init__": set(),
    "__main__": {"cli"},
}
NO_JAX = {
    "__init__", "__main__", "cli", "config", "dims", "errors", "hardware", "laws", "overrides", "parametrization",
    "plain", "provenance", "registry", "rules", "scaling", "space", "weights", "words",
}
LONGEST_FILE, LONGEST_FUNCTION = 350, 80  # lines

LIBRARY = sorted((ROOT / "maijax").rglob("*.py"))
OTHERS = sorted(p for folder in ("configs", "experiments", "benchmarks") for p in (ROOT / folder).rglob("*.py"))


def imported(file: Path) -> set[str]:
    """Full names of all modules that a file imports, inside functions too; `from a import b` gives a.b."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: write imports in full"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room(file: Path) -> str:
    return file.relative_to(ROOT / "maijax").with_suffix("").parts[0]


def rooms(file: Path) -> set[str]:
    """The rooms of maijax that a file imports from; "" for maijax itself."""
    parts = [name.split(".") for name in imported(file) if name.split(".")[0] == "maijax"]
    known = set(MAY_IMPORT)
    return {p[1] if len(p) > 1 and p[1] in known else "" for p in parts}


@pytest.mark.parametrize("file", LIBRARY, ids=lambda p: str(p.relative_to(ROOT)))
def test_arrows_point_down(file):
    assert room(file) in MAY_IMPORT, "a new room: say in MAY_IMPORT what it may look at"
    assert rooms(file) <= MAY_IMPORT[room(file)]
    outside = {name.split(".")[0] for name in imported(file)}
    assert not outside & {"configs", "experiments", "tests", "benchmarks"}, "the registry loads these by path"


def test_values_are_standard_library_only():
    for file in LIBRARY:
        if room(file) in NO_JAX - {"cli"}:
            outside = {name.split(".")[0] for name in imported(file)} - {"maijax"}
            assert outside <= sys.stdlib_module_names, file


def test_experiments_and_configs_see_values_only():
    for file in OTHERS:
        folder = file.relative_to(ROOT).parts[0]
        seen = {".".join(name.split(".")[:2]) for name in imported(file) if name.startswith("maijax")}
        others = {name.split(".")[0] for name in imported(file)} - {"maijax"}
        if folder == "configs":
            assert seen <= {"maijax.config", "maijax.hardware"} and not others, file
        if folder == "experiments":
            assert seen <= {"maijax.config", "maijax.registry", "maijax.scaling", "maijax.space"}, file
            assert others <= {"configs", "experiments"} | sys.stdlib_module_names, file


def test_configs_hold_values_only():
    for file in (ROOT / "configs").glob("*.py"):
        for node in ast.parse(file.read_text()).body:
            assert isinstance(node, ast.Assign | ast.ImportFrom | ast.Expr), f"{file}:{node.lineno}"


def test_models_know_one_device():
    for file in (ROOT / "maijax" / "models").rglob("*.py"):
        names = {n.id for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.Name)}
        assert not names & {"TrainConfig", "MeshConfig", "OptimConfig", "DataConfig", "Experiment", "Mesh"}, file


@pytest.mark.parametrize("file", [*LIBRARY, *OTHERS], ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_stay_readable(file):
    text = file.read_text()
    assert len(text.splitlines()) <= LONGEST_FILE, "split it by noun"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno < LONGEST_FUNCTION, f"{node.name} is too long"


def test_no_drawers():
    assert not [p for p in [*LIBRARY, *OTHERS] if p.stem in ("utils", "util", "helpers", "common", "misc")
                or p.stem.endswith("_lib")]


@pytest.mark.parametrize("words", [["list"], ["show", "mai_500b"], ["diff", "phi_tiny", "mai_500b"], ["run", "--help"],
                                   ["compare", "phi_tiny", "mai_500b"],
                                   ["doctor", "mai_70b", "--topology", "v5p:8x8x8"]])
def test_quick_verbs_load_only_the_standard_library(words):
    program = (
        "import sys\nbefore = set(sys.modules)\nfrom maijax import cli\n"
        f"try:\n    cli.main({words!r})\nexcept SystemExit:\n    pass\n"
        "ours = {'maijax', 'configs', 'experiments'} | set(sys.stdlib_module_names)\n"
        "print(*sorted({m.split('.')[0] for m in set(sys.modules) - before} - ours), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr.split() == []
