from scripts import help_page


def test_the_commands_page_is_what_the_commands_say() -> None:
    written = help_page.PAGE.read_text(encoding="utf-8")
    assert written == help_page.page(), "the help has changed; run: python scripts/help_page.py"
