"""The answer of a run on a terminal: the verdict, the table and the findings."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlx_steer.report.first_screen import FirstScreen

_COLOURS = {"works": "green", "works behind a gate": "green", "does harm": "red"}


def print_answer(first: FirstScreen | None, title: str = "") -> None:
    """Print what a report opens with; nothing for a run without an answer.

    Args:
        first: The answer.
        title: What it is about, if that has to be said.
    """
    if first is None:
        return
    from rich.table import Table
    from rich.text import Text

    from mlx_steer.cli.output import console, safe

    out = console()
    colour = _COLOURS.get(first.verdict, "yellow")
    heading = f"{title}: {first.label}" if title else first.label
    out.print(Text(safe(heading), style=f"bold {colour}"))
    out.print(Text(safe(first.sentence)))
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for what, value in first.facts:
        table.add_row(Text(safe(what), style="dim"), Text(safe(value)))
    out.print(table)
    for finding in first.findings:
        out.print(Text(f"- {safe(finding)}"))
