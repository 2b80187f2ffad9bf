"""Packaging. The wheel carries configs/ and experiments/ inside the package, as maijax/_bundled."""

import ast
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
BUNDLED = ("configs", "experiments")


class BuildWithFolders(build_py):
    """Two plain folder names would clash in site-packages, so they go where only maijax.registry looks."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return  # the checkout itself is used
        for name in BUNDLED:
            target = Path(self.build_lib) / "maijax" / "_bundled" / name
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(ROOT / name, target, ignore=shutil.ignore_patterns("__pycache__"))


def version() -> str:
    """Of maijax/__init__.py, read without importing it."""
    for node in ast.parse((ROOT / "maijax" / "__init__.py").read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__version__":
            return ast.literal_eval(node.value)
    raise SystemExit("maijax/__init__.py has no __version__")


HF = ["transformers>=5,<6", "torch==2.13.0", "safetensors"]
ZSTD = ["zstandard"]
# Compilers for `maijax plan`, which run without the accelerators; pinned, since others were not tried.
TPU_PLAN = ["libtpu==0.0.52"]
GPU_PLAN = ["jax==0.10.2", "jax-cuda13-plugin==0.10.2", "jax-cuda13-pjrt==0.10.2"]
SWEEP = ["optuna>=4"]
SLURM = ["submitit"]
RAY = ["ray"]
TEST = ["pytest", "pytest-xdist", "hypothesis", "scipy", "setuptools", "tensorboard", "wheel"]
DEV = ["ruff", "pyright[nodejs]"]

setup(
    name="maijax",
    version=version(),
    description="Language-model research in JAX, from a laptop to a pod, one code path for every size",
    long_description=(ROOT / "README.md").read_text() if (ROOT / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    packages=find_packages(include=["maijax", "maijax.*"]),
    package_data={"maijax.train": ["assets/*"], "maijax.compare": ["assets/*"]},  # what the pages are made of
    cmdclass={"build_py": BuildWithFolders},
    python_requires=">=3.11,<3.14",
    install_requires=[
        "jax>=0.10.2,<0.13",
        "flax>=0.12.8,<0.13",
        "optax",
        "orbax-checkpoint",
        "tensorflow-datasets",
        "grain",
        "importlib_resources",  # tensorflow-datasets needs it and does not say so
        "sentencepiece",
        "absl-py",
        "numpy",
        "rich",
        "scipy",
        "tensorboardX",
    ],
    extras_require={
        "hf": HF,
        "zstd": ZSTD,
        "tpu-plan": TPU_PLAN,
        "gpu-plan": GPU_PLAN,
        "sweep": SWEEP,
        "slurm": SLURM,
        "ray": RAY,
        "test": [*TEST, *HF, *ZSTD, *SWEEP, *SLURM],
        "dev": [*TEST, *HF, *ZSTD, *SWEEP, *SLURM, *DEV],
    },
    entry_points={"console_scripts": ["maijax = maijax.cli:main"]},
)
