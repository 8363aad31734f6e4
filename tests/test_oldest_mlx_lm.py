"""The oldest mlx-lm that the package admits: the engine's core checks pass with it too."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]

# What the engine relies on in mlx-lm, rows in batches and replays, a decoder's own numbers, and a
# model type of every odd kind.
CORE = (
    "tests/engine/test_mlx_lm_interface.py",
    "tests/engine/test_families.py",
    "tests/engine/test_shared_prefill.py",
    "tests/oracle/test_reference.py",
    "tests/zoo/test_zoo.py",
)

pytestmark = pytest.mark.slow


def oldest() -> str:
    """The lowest version that the package's requirement names."""
    required = map(Requirement, metadata.requires("mlx-steer") or [])
    (own,) = [one for one in required if one.name == "mlx-lm"]
    (lowest,) = [part.version for part in own.specifier if part.operator == ">="]
    return lowest


def python(*arguments: object, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run this environment's Python in the repository, with a folder's packages before its own."""
    first = [str(path)] if path else []
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env=own | {"PYTHONPATH": os.pathsep.join([*first, str(ROOT)])},
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the oldest mlx-lm and nothing else."""
    folder = tmp_path_factory.mktemp("oldest")
    # Without what it depends on: that is here, and newer.
    options = ["--quiet", "--no-deps", "--target", folder]
    done = python("-m", "pip", "install", *options, f"mlx-lm=={oldest()}")
    if done.returncode:
        pytest.skip(f"mlx-lm {oldest()} cannot be installed beside: {done.stderr[-300:]}")
    return folder


def test_the_engines_core_checks_pass_with_the_oldest_mlx_lm(packages: Path) -> None:
    read = "import mlx_lm, importlib.metadata as m; print(mlx_lm.__file__, m.version('mlx-lm'))"
    file, version = python("-c", read, path=packages).stdout.split()
    assert Path(file).is_relative_to(packages) and version.startswith(oldest())
    options = ["-q", "-m", "not slow", "-p", "no:cacheprovider"]
    done = python("-m", "pytest", *options, *CORE, path=packages)
    assert done.returncode == 0, done.stdout[-5000:]
