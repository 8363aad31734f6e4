"""The order of the rooms and what each may know; `make lint` holds it, and these show it bites."""

import ast
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "mlx_steer"

pytest.importorskip("importlinter")


def imports_lint(folder: Path) -> subprocess.CompletedProcess[str]:
    entry = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    return subprocess.run(
        [sys.executable, "-c", entry, "--no-cache"], cwd=folder, capture_output=True, text=True
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    shutil.copytree(PACKAGE, tmp_path / "mlx_steer", ignore=shutil.ignore_patterns("data", "*.pyc"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_every_contract_on_imports_is_kept():
    done = imports_lint(ROOT)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("module", "wrong", "contract"),
    [
        ("engine/steering.py", "from mlx_steer.run import directory", "A room imports only"),
        ("config.py", "from mlx_steer import behaviors", "A room imports only"),
        ("attic.py", "", "A room imports only"),
        ("judge/text.py", "from mlx_steer.judge.refusal import verdict", "No circle"),
        ("metrics/choose.py", "import mlx.core", "know no mlx"),
        ("behaviors/load.py", "import click", "Only the command line"),
    ],
)
@pytest.mark.parametrize("within", ["{}", "def later():\n    {}"], ids=["module", "function"])
def test_a_wrong_import_breaks_its_contract_wherever_it_stands(
    copy, module, wrong, contract, within
):
    with (copy / "mlx_steer" / module).open("a") as file:
        file.write(f"\n{within.format(wrong or 'pass')}\n")
    done = imports_lint(copy)
    assert done.returncode == 1
    broken = [line for line in done.stdout.splitlines() if " BROKEN" in line]
    assert len(broken) == 1 and contract in broken[0], done.stdout


def test_printing_outside_the_command_line_is_found(copy):
    pytest.importorskip("ruff")
    (copy / "mlx_steer" / "stats" / "ranking.py").write_text('"""Ranks."""\n\nprint("x")\n')
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--no-cache", "."],
        cwd=copy,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and "T201" in done.stdout


def imported(path: Path) -> Iterator[tuple[str, list[str]]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            yield node.module or "", [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            yield from ((alias.name, []) for alias in node.names)


def is_module(dotted: str) -> bool:
    place = ROOT.joinpath(*dotted.split("."))
    return place.is_dir() or place.with_suffix(".py").is_file()


def test_no_module_imports_a_package_it_lies_in_or_anything_private():
    for path in sorted(PACKAGE.rglob("*.py")):
        check_imports(path)


def check_imports(path):
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for source, names in imported(path):
        if not source.startswith("mlx_steer"):
            continue
        things = [name for name in names if not is_module(f"{source}.{name}")]
        upwards = module.startswith(f"{source}.") and not (names and not things)
        assert not upwards, f"{module} imports the package it lies in: {source} {names}"
        private = [name for name in things if name.startswith("_") and not name.startswith("__")]
        assert not private, f"{module} imports {private} of {source}"


def test_the_list_of_commands_loads_nothing_heavy():
    code = (
        "import sys; sys.argv = ['mlx-steer', '--help']; from mlx_steer.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = ('mlx', 'numpy', 'pydantic', 'rich', 'yaml')\n"
        "sys.exit(', '.join(name for name in heavy if name in sys.modules) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
