"""Named experiments: `@register`, and how `experiments/` and `configs/` are found where maijax is installed.

In a checkout or an editable install the two folders lie beside the package; a wheel carries them inside it,
as `maijax/_bundled`. Either way they are loaded by path under their plain names, so that a file of
experiments reads the same everywhere and another package called `configs` does no harm.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import importlib.util
import inspect
import os
import pkgutil
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from maijax import hardware, plain
from maijax.config import Experiment, MeshConfig
from maijax.errors import UserError
from maijax.hardware import Chip, Topology
from maijax.space import Sweep

Maker = Callable[[], Experiment]
SweepMaker = Callable[[], Sweep]
FOLDERS = ("configs", "experiments")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """One registered function."""

    name: str
    make: Maker | SweepMaker
    file: str
    line: int

    @property
    def doc(self) -> str:
        return inspect.getdoc(self.make) or ""


_entries: dict[str, Entry] = {}
_sweeps: dict[str, Entry] = {}
_discovered = False


def register(make: Maker) -> Maker:
    """Decorator of a function without arguments that returns an Experiment; its name is the experiment's.

    Raises UserError if another function already has the name.
    """
    _add(make, _entries)
    return make


def register_sweep(make: SweepMaker) -> SweepMaker:
    """Decorator of a function without arguments that returns a Sweep; as `register`, and of the same names."""
    _add(make, _sweeps)
    return make


def _add(make: Maker | SweepMaker, to: dict[str, Entry]) -> None:
    name, code = make.__name__, make.__code__
    entry = Entry(name=name, make=make, file=code.co_filename, line=code.co_firstlineno)
    other = _entries.get(name) or _sweeps.get(name)
    if other is not None and (other.file, other.line) != (entry.file, entry.line):
        raise UserError(
            f"{'sweep' if name in _sweeps else 'experiment'} {name} is registered twice, at {other.file}:{other.line} "
            f"and {entry.file}:{entry.line}; rename one"
        )
    to[name] = entry


def names() -> list[str]:
    """All experiments, in the order of their files."""
    discover()
    return list(_entries)


def sweep_names() -> list[str]:
    """All sweeps, in the order of their files."""
    discover()
    return list(_sweeps)


def sweep_entry(name: str) -> Entry | None:
    """None if no sweep has the name."""
    discover()
    return _sweeps.get(name)


def sweep(name: str) -> Sweep:
    """The sweep of this name, made anew. Raises UserError if it cannot be made, or has no space that can be read."""
    discover()
    found = _sweeps[name]
    made = _make(found)
    if not isinstance(made, Sweep):
        raise UserError(f"{_where(found)} must return a Sweep, not {type(made).__name__}")
    try:
        _ = made.dimensions  # parsed, as all that use it will
    except UserError as error:
        raise UserError(f"{_where(found)}: {error}") from None
    return dataclasses.replace(made, name=name)


def entry(name: str) -> Entry:
    """Raises UserError, with the nearest names, if there is no such experiment."""
    discover()
    if name in _entries:
        return _entries[name]
    if name in _sweeps:
        raise UserError(f"{name} is a sweep, not an experiment; `maijax sweep {name}` runs it")
    near = difflib.get_close_matches(name, [*_entries, *_sweeps], n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(near)}?" if near else (
        "`maijax list` shows them all, --module adds those of a module of yours")
    raise UserError(f"no experiment {name!r}; {hint}")


def get(name: str) -> Experiment:
    """The experiment of this name, made anew. Raises UserError if there is none."""
    found = entry(name)
    made = _make(found)
    if not isinstance(made, Experiment):
        raise UserError(f"{_where(found)} must return an Experiment, not {type(made).__name__}")
    try:
        plain.from_plain(plain.to_plain(made))  # values of the types that their fields declare
    except UserError as error:
        raise UserError(f"{_where(found)}: {error}") from None
    return dataclasses.replace(made, name=name)  # a variant of another experiment need not name itself


def _make(found: Entry) -> Experiment | Sweep:
    try:
        return found.make()
    except UserError as error:
        raise UserError(f"{_where(found)}: {error}") from None
    except Exception as error:
        raise UserError(f"{_where(found)} cannot be made: {type(error).__name__}: {error}") from error


def _where(found: Entry) -> str:
    return f"{found.file}:{found.line}: {found.name}"


def mesh(name: str) -> MeshConfig:
    """A preset of configs/meshes.py. Raises UserError, with the names there are, if there is none."""
    presets = {key: value for key, value in vars(_configs("meshes")).items() if isinstance(value, MeshConfig)}
    if name not in presets:
        raise UserError(f"no mesh {name!r}; configs/meshes.py has {', '.join(presets)}")
    return presets[name]


def chips() -> dict[str, Chip]:
    """Those of configs/chips.py, by name."""
    return {chip.name: chip for chip in vars(_configs("chips")).values() if isinstance(chip, Chip)}


def chip(name: str) -> Chip:
    """Raises UserError, with the names there are, if there is none."""
    if name not in (found := chips()):
        raise UserError(f"no chip {name!r}; configs/chips.py has {', '.join(found)}")
    return found[name]


def topology(text: str, slices: int = 1) -> Topology:
    """From "v5p:8x8x8", "h100:64x8" or "h100:512". Raises UserError, with the nearest, if there is no such."""
    return hardware.parse(text, chips(), slices)


def building_blocks() -> dict[str, object]:
    """Every named value of configs/, by its full name, e.g. "configs.models.PHI_TINY"."""
    found: dict[str, object] = {}
    for info in pkgutil.iter_modules(_adopt("configs").__path__):
        for key, value in vars(_configs(info.name)).items():
            if key.isupper() and dataclasses.is_dataclass(value):
                found[f"configs.{info.name}.{key}"] = value
    return found


def discover() -> None:
    """Imports the files of experiments/, once; those that start with an underscore are not loaded."""
    global _discovered
    if _discovered:
        return
    _adopt("configs")
    package = _adopt("experiments")
    for info in pkgutil.iter_modules(package.__path__):
        if not info.name.startswith("_"):
            _load(f"experiments.{info.name}")
    _discovered = True


def load_module(name: str) -> None:
    """Imports a module of the user's own, from the current folder too, for the experiments that it registers.

    Raises UserError if it cannot be imported.
    """
    discover()
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # at the end: it must not hide an installed package
    if not _importable(name):
        raise UserError(f"--module {name}: no such module; give a name that Python can import from here")
    _load(name)


def _importable(name: str) -> bool:
    if not all(part.isidentifier() for part in name.split(".")):
        return False
    try:
        return name in sys.modules or importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # of the package that it should be in
        return False


def _configs(name: str) -> ModuleType:
    _adopt("configs")
    return importlib.import_module(f"configs.{name}")


def _load(name: str) -> None:
    """Imports; a failure is told in one line, since a person's own file is as easily wrong as a command."""
    try:
        importlib.import_module(name)
    except UserError:
        raise
    except Exception as error:
        where = [f for f in traceback.extract_tb(error.__traceback__) if "importlib" not in f.filename]
        if isinstance(error, SyntaxError):
            place = f"{error.filename}:{error.lineno}"
        else:
            place = f"{where[-1].filename}:{where[-1].lineno}"
        raise UserError(f"{place}: {type(error).__name__}: {error}") from error


def _folder(name: str) -> Path:
    package = Path(__file__).resolve().parent
    for folder in (package / "_bundled" / name, package.parent / name):
        if (folder / "__init__.py").is_file():
            return folder
    raise UserError(f"no folder {name}/ inside {package} or beside it; install maijax again")


def _adopt(name: str) -> ModuleType:
    """The package of this name from our own folder, put into sys.modules.

    Raises UserError if another package of the name was imported before.
    """
    folder = _folder(name)
    present = sys.modules.get(name)
    if present is not None:
        theirs = [str(Path(path).resolve()) for path in getattr(present, "__path__", [present.__file__])]
        if str(folder) not in theirs:
            raise UserError(
                f"another package {name!r} is already imported, from {theirs[0]}; maijax needs {folder}: "
                "import maijax.registry first, or rename the other"
            )
        return present
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
