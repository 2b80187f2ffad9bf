"""The package finds its experiments wherever it is installed. No network: pip builds with what is here."""

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SETUPTOOLS = Path(__import__("setuptools").__file__).parents[1]


def call(*words, cwd: Path, **environment: str) -> str:
    """Output of a command that sees no PYTHONPATH but the one given; fails with its errors."""
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run([*map(str, words)], cwd=cwd, env=clean | environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{words}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A copy of what is packaged, so that building leaves nothing behind."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in ("maijax", "configs", "experiments"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, copy)
    return copy


@pytest.fixture(scope="module")
def wheel(checkout, tmp_path_factory) -> Path:
    """Built from the sdist, which must hold all that the wheel needs."""
    out = tmp_path_factory.mktemp("dist")
    call(sys.executable, "setup.py", "-q", "sdist", "-d", out, cwd=checkout)
    flags = ("--no-deps", "--no-build-isolation", "--no-index", "-q", "-w", out)
    call(sys.executable, "-m", "pip", "wheel", *flags, next(out.glob("*.tar.gz")), cwd=out)
    return next(out.glob("*.whl"))


@pytest.fixture
def python(tmp_path) -> Path:
    """A new environment with nothing in it."""
    venv.create(tmp_path / "venv", with_pip=False)
    return tmp_path / "venv" / "bin" / "python"


def install(python: Path, *what) -> None:
    flags = ("--no-deps", "--no-build-isolation", "--no-index", "-q")
    call(sys.executable, "-m", "pip", "--python", python, "install", *flags, *what, cwd=python.parent,
         PYTHONPATH=str(SETUPTOOLS))


def assert_finds_experiments(maijax: list, cwd: Path, folder: Path, **environment: str) -> None:
    out = call(*maijax, "list", cwd=cwd, **environment)
    assert "phi_tiny" in out and "mai_500b_moe" in out
    out = call(*maijax, "show", "mai_500b", "--json", cwd=cwd, **environment)
    assert f'"file": "{folder.resolve()}' in out
    assert "configs.models.MAI_500B" in out


def test_bare_checkout(checkout):
    assert_finds_experiments([sys.executable, "-m", "maijax"], checkout, checkout / "experiments")


def test_wheel_from_anywhere(wheel, python, tmp_path):
    install(python, wheel)
    inside = next((tmp_path / "venv" / "lib").glob("python*")) / "site-packages"
    bundled = inside / "maijax" / "_bundled"
    assert not (inside / "configs").exists() and not (inside / "experiments").exists()
    maijax = [python.parent / "maijax"]
    assert_finds_experiments(maijax, Path("/"), bundled / "experiments")
    foreign = tmp_path / "foreign" / "configs"
    foreign.mkdir(parents=True)
    (foreign / "__init__.py").write_text("raise SystemExit('the wrong configs')")
    assert_finds_experiments(maijax, tmp_path, bundled / "experiments", PYTHONPATH=str(foreign.parent))


def test_editable_from_anywhere(checkout, python):
    install(python, "-e", checkout)
    assert_finds_experiments([python.parent / "maijax"], Path("/"), checkout / "experiments")


def test_a_module_of_ones_own_beside_the_wheel(wheel, python, tmp_path):
    install(python, wheel)
    lab = tmp_path / "my_lab"
    lab.mkdir()
    (lab / "__init__.py").touch()
    (lab / "runs.py").write_text(
        "from maijax.registry import get, register\n\n@register\ndef mine():\n    '''Mine?'''\n"
        "    return get('phi_tiny')\n"
    )
    out = call(python.parent / "maijax", "show", "mine", "--module", "my_lab.runs", cwd=tmp_path)
    assert out.startswith("mine  (my_lab/runs.py:3)")


def test_template_becomes_an_experiment(checkout, tmp_path):
    """The recipe for a new experiment: copy one file, rename one function."""
    copy = tmp_path / "copy"
    shutil.copytree(checkout, copy)
    text = (copy / "experiments" / "_template.py").read_text()
    (copy / "experiments" / "mine.py").write_text(text.replace("template", "my_question"))
    assert "my_question" in call(sys.executable, "-m", "maijax", "list", "my_*", cwd=copy)
