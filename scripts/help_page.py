"""Write docs/commands.md: the help of every command, as the command line prints it.

    python scripts/help_page.py

A test compares the page with the commands.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from mlx_steer.cli import cli

PAGE = Path(__file__).parents[1] / "docs" / "commands.md"

_HEAD = """\
# Commands

What `mlx-steer COMMAND --help` says, written by `python scripts/help_page.py`. Change the help, not
this page.
"""


def page() -> str:
    """The whole page."""
    # Click leaves two columns of a terminal free; this is what it prints on one of 80.
    root = click.Context(cli, info_name="mlx-steer", terminal_width=78, **cli.context_settings)
    return "\n".join([_HEAD, *_sections(root)])


def _sections(context: click.Context) -> Iterator[str]:
    """The help of a command, then that of the commands below it, in the order users see."""
    command = context.command
    yield f"## {context.command_path}\n\n```text\n{command.get_help(context)}\n```\n"
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            if below := command.get_command(context, name):
                yield from _sections(click.Context(below, parent=context, info_name=name))


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    click.echo(PAGE)
