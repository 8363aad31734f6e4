"""docs/families.md is what its script writes."""

from pathlib import Path

from mlx_steer.config import load_config
from mlx_steer.model.hub import BUILT_IN
from scripts import families_page


def test_the_families_page_is_what_its_script_writes() -> None:
    assert families_page.PAGE.read_text(encoding="utf-8") == families_page.page(), (
        "run: python scripts/families_page.py"
    )


def test_every_published_model_of_a_config_has_a_size() -> None:
    rows = [row for row in families_page._sizes() if row.startswith("| `")]
    assert len(rows) >= 28
    assert any("from 16 GB" in row for row in rows) and any("from 64 GB" in row for row in rows)


def test_the_page_names_every_ready_config_once_and_its_model_beside_it() -> None:
    lines = families_page.PAGE.read_text(encoding="utf-8").splitlines()
    for path in sorted(Path(families_page.ROOT, "configs").glob("*.yaml")):
        model = load_config(path).model.name
        if model != BUILT_IN:
            (line,) = [line for line in lines if f"`{path.stem}`" in line]
            assert model in line
