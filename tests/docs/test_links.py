"""What the pages point to is there."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)")
FILE = re.compile(r"`((?:mlx_steer|tests|scripts|configs|docs)/[\w./-]+)`")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_a_page_names_is_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = [page.parent / link for link in LINK.findall(text)]
    named += [ROOT / path for path in FILE.findall(text)]
    assert [str(path) for path in named if not path.exists()] == []


def test_the_readme_leads_to_every_page() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [page.name for page in PAGES[1:] if f"](docs/{page.name})" not in text] == []


def test_the_architecture_page_names_what_is_in_the_files_it_names() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    steps = re.findall(r"^\| `(mlx_steer/[\w/]+\.py)` `(\w+)` \|", text, re.MULTILINE)
    assert len(steps) > 10
    for path, name in steps:
        source = (ROOT / path).read_text(encoding="utf-8")
        assert re.search(rf"^(def|class) {name}\b", source, re.MULTILINE), f"{name} in {path}"


def test_the_architecture_page_draws_every_room_in_the_order_that_lint_holds() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    picture = text.partition("```mermaid")[2].partition("```")[0]
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    layers = next(c["layers"] for c in contracts["contracts"] if c["type"] == "layers")
    floor = {"stats"}  # drawn with the files that everything stands on
    rooms = [name for name in layers if (ROOT / "mlx_steer" / name.strip("()")).is_dir()]
    wanted = [name.strip("()") for name in rooms if name not in floor]
    assert re.findall(r'^ *(\w+)\["<b>\1</b>', picture, re.MULTILINE) == wanted
