"""Answers on the terminal while they grow: two columns, or one text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

Draw = Callable[[Sequence[str]], None]
"""Takes the answers as far as they have come."""


@contextmanager
def columns(heads: Sequence[str]) -> Iterator[Draw]:
    """Draw answers side by side; where there is no terminal, once they are whole.

    While they grow, as much of their ends as the terminal has room for is shown.
    """
    from rich.live import Live

    from mlx_steer.cli.output import console

    place = console()
    texts: Sequence[str] = ["" for _ in heads]

    def draw(now: Sequence[str]) -> None:
        nonlocal texts
        texts = list(now)

    try:
        if place.is_terminal:
            with Live(
                console=place,
                transient=True,
                get_renderable=lambda: _table(heads, _ends(place, texts)),
            ):
                yield draw
        else:
            yield draw
    finally:
        if any(texts):
            place.print(_table(heads, texts))


@contextmanager
def text() -> Iterator[Draw]:
    """Write one answer as it comes, without the space around it."""
    from mlx_steer.cli.output import safe

    written = 0

    def draw(now: Sequence[str]) -> None:
        nonlocal written
        said = now[0].strip()
        if len(said) > written:
            click.echo(safe(said[written:]), nl=False)
            written = len(said)

    try:
        yield draw
    finally:
        click.echo()


def _table(heads: Sequence[str], texts: Sequence[str]) -> Table:
    from rich.table import Column, Table
    from rich.text import Text

    from mlx_steer.cli.output import safe

    table = Table(*(Column(Text(safe(head)), ratio=1) for head in heads), expand=True)
    table.add_row(*(Text(safe(one.strip())) for one in texts))
    return table


def _ends(place: Console, texts: Sequence[str]) -> list[str]:
    """The last lines of each, as many as there is room for."""
    from rich.text import Text

    from mlx_steer.cli.output import safe

    width = max(1, (place.width - 1) // len(texts) - 3)
    room = max(1, place.height - 6)
    found = []
    for one in texts:
        lines = Text(safe(one.strip())).wrap(place, width)
        found.append("\n".join(line.plain for line in lines[-room:]))
    return found
