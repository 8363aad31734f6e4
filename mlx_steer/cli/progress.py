"""Progress for people: a live bar on a terminal, plain lines elsewhere, nothing with --quiet."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from mlx_steer.cli.output import safe
from mlx_steer.cli.watchdog import watched
from mlx_steer.team import launched_rank

if TYPE_CHECKING:
    from mlx_steer.experiment.progress import Progress


# So many rows, or a tenth of them all, tell how long the others take. Rows are decoded together:
# when the first of them ends, nearly all the work of the others may be done, or nearly none.
_TELLING_ROWS = 128


def time_left(made: int, left: int, seconds: float) -> float | None:
    """Seconds that what is left will take; None while that would be a guess.

    Args:
        made: Rows finished in this time.
        left: Rows that are still to come.
        seconds: The time they took.
    """
    if not left or made < min(_TELLING_ROWS, (made + left) / 10) or seconds < 5:
        return None
    return seconds / made * left


class Quiet:
    """Says nothing but notes."""

    def stage(self, name: str, total: int, done: int) -> None:
        """Nothing."""

    def advance(self, units: int = 0, tokens: int = 0) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """One line on standard error."""
        click.echo(f"note: {safe(text)}", err=True)

    def tell(self, text: str) -> None:
        """Nothing."""


class Silent(Quiet):
    """Says nothing: rank 0 speaks for all."""

    def note(self, text: str) -> None:
        """Nothing."""


class Lines(Quiet):
    """A line when a stage begins, one every few seconds, and one when it ends."""

    every = 10.0

    def __init__(self) -> None:
        """No stage yet."""
        self._name = ""

    def stage(self, name: str, total: int, done: int) -> None:
        """Announce a stage."""
        self._name, self._total, self._done = name, total, done
        self._tokens, self._start = 0, time.monotonic()
        self._at_start, self._last = done, self._start
        before = f", {done} done before" if done else ""
        click.echo(f"{name}: {total} rows{before}", err=True)

    def tell(self, text: str) -> None:
        """One line on standard error."""
        click.echo(safe(text), err=True)

    def advance(self, units: int = 0, tokens: int = 0) -> None:
        """Count, and print now and then."""
        self._done += units
        self._tokens += tokens
        now = time.monotonic()
        if now - self._last >= self.every or (units and self._done == self._total):
            self._last = now
            click.echo(f"{self._name}: {self._done}/{self._total} rows{self._speed(now)}", err=True)

    def _speed(self, now: float) -> str:
        spent = max(now - self._start, 1e-9)
        parts = [f"{self._tokens / spent:.0f} tokens/s"] if self._tokens else []
        left = time_left(self._done - self._at_start, self._total - self._done, spent)
        parts += [] if left is None else [f"{left:.0f} s left"]
        return f" ({', '.join(parts)})" if parts else ""


class Bar(Quiet):
    """A live bar with rows done, tokens per second and time left."""

    def __init__(self) -> None:
        """Made, not shown yet."""
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
        )

        self.live = Progress(
            TextColumn("{task.description:>8}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("rows  {task.fields[speed]:>14}"),
            TextColumn("{task.fields[left]:>12}"),
            console=Console(stderr=True),
        )

    def stage(self, name: str, total: int, done: int) -> None:
        """A new bar."""
        self._task = self.live.add_task(name, total=total, completed=done, speed="", left="")
        self._made, self._left = 0, total - done
        self._tokens, self._start = 0, time.monotonic()

    def advance(self, units: int = 0, tokens: int = 0) -> None:
        """Move the bar."""
        self._tokens += tokens
        self._made += units
        self._left -= units
        spent = max(time.monotonic() - self._start, 1e-9)
        speed = f"{self._tokens / spent:.0f} tokens/s" if self._tokens else ""
        seconds = time_left(self._made, self._left, spent)
        left = "" if seconds is None else f"{seconds:.0f} s left"
        self.live.update(self._task, advance=units, speed=speed, left=left)

    def note(self, text: str) -> None:
        """A line above the bars."""
        self.live.console.print(f"note: {safe(text)}", markup=False)

    def tell(self, text: str) -> None:
        """A line above the bars."""
        self.live.console.print(safe(text), markup=False)


class Stoppable:
    """Passes everything on; after Ctrl-C it ends the run where no work is lost: between two steps.

    A second Ctrl-C ends it at once, as does the first before any stage has begun.

    Args:
        told: What everything is passed on to.
    """

    def __init__(self, told: Progress) -> None:
        """See the class."""
        self._told = told
        self._in_stage = self._decoding = self._asked = False

    def stage(self, name: str, total: int, done: int) -> None:
        """Pass it on."""
        self.check()
        self._in_stage, self._decoding = True, False
        self._told.stage(name, total, done)

    def advance(self, units: int = 0, tokens: int = 0) -> None:
        """Pass it on; stop if asked to."""
        self._told.advance(units, tokens)
        self._decoding = self._decoding or tokens > 0
        # Rows that end in one step are told one by one: the others of the step are still to come.
        if tokens or not self._decoding:
            self.check()

    def note(self, text: str) -> None:
        """Pass it on."""
        self._told.note(text)

    def tell(self, text: str) -> None:
        """Pass it on."""
        self._told.tell(text)

    def ask(self, *_: object) -> None:
        """What Ctrl-C does."""
        if self._asked or not self._in_stage:
            raise KeyboardInterrupt
        self._asked = True
        # Not through click or rich: this runs between any two instructions of theirs.
        os.write(2, b"\nstopping after this step; Ctrl-C again stops at once\n")

    def check(self) -> None:
        """Stop if asked to."""
        if self._asked:
            raise KeyboardInterrupt


@contextmanager
def progress(quiet: bool) -> Iterator[Progress]:
    """The progress that suits the terminal; Ctrl-C waits for the end of a step."""
    with _shown(quiet) as shown, watched(shown) as told:
        stoppable = Stoppable(told)
        if threading.current_thread() is not threading.main_thread():
            yield stoppable  # signals are the main thread's
            return
        before = signal.getsignal(signal.SIGINT)
        if before is not signal.default_int_handler:
            yield stoppable  # ignored, as a shell has it for what runs in the background
            return
        signal.signal(signal.SIGINT, stoppable.ask)
        try:
            yield stoppable
            stoppable.check()
        finally:
            signal.signal(signal.SIGINT, before)


@contextmanager
def _shown(quiet: bool) -> Iterator[Progress]:
    import sys

    if launched_rank():
        yield Silent()
    elif quiet:
        yield Quiet()
    elif sys.stderr.isatty():
        bar = Bar()
        with bar.live:
            yield bar
    else:
        yield Lines()
