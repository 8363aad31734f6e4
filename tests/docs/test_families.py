"""docs/families.md is what its script writes."""

from scripts import families_page


def test_the_families_page_is_what_its_script_writes() -> None:
    assert families_page.PAGE.read_text(encoding="utf-8") == families_page.page(), (
        "run: python scripts/families_page.py"
    )


def test_every_published_model_of_a_config_has_a_size() -> None:
    rows = [row for row in families_page._sizes() if row.startswith("| `")]
    assert len(rows) >= 28
    assert any("from 16 GB" in row for row in rows) and any("from 64 GB" in row for row in rows)
