"""Progress for people: a live bar on a terminal, plain lines elsewhere, nothing with --quiet."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from mlx_steer.cli.output import duration, safe
from mlx_steer.cli.timeline import Timeline
from mlx_steer.cli.watchdog import watched
from mlx_steer.team import launched_rank

if TYPE_CHECKING:
    from mlx_steer.experiment.progress import Expected, Progress


class Quiet:
    """Says nothing but notes."""

    def expect(self, stages: Sequence[Expected], known: bool) -> None:
        """Nothing."""

    def stage(self, name: str, total: int, done: int) -> None:
        """Nothing."""

    def advance(self, units: int = 0, tokens: int = 0) -> None:
        """Nothing."""

    def interim(self, text: str) -> None:
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


class _Timed(Quiet):
    """Keeps how far the run is."""

    def __init__(self) -> None:
        """Nothing is known yet."""
        self._line = Timeline()
        self._name = ""

    def expect(self, stages: Sequence[Expected], known: bool) -> None:
        """Keep it."""
        self._line.expect(stages, known)

    def stage(self, name: str, total: int, done: int) -> None:
        """A stage begins."""
        self._line.stage(name, total, done)
        self._name, self._total, self._done = name, total, done
        self._tokens, self._start = 0, time.monotonic()

    def advance(self, units: int = 0, tokens: int = 0) -> None:
        """Count it."""
        self._line.advance(units, tokens)
        self._done += units
        self._tokens += tokens

    def _speed(self) -> str:
        spent = max(time.monotonic() - self._start, 1e-9)
        return f"{self._tokens / spent:.0f} tokens/s" if self._tokens else ""

    def _left(self) -> str:
        seconds = self._line.left()
        return "" if seconds is None else f"{duration(seconds)} left"


class Lines(_Timed):
    """A line when a stage begins, one every few seconds, and one when it ends."""

    every = 10.0

    def stage(self, name: str, total: int, done: int) -> None:
        """Announce a stage."""
        super().stage(name, total, done)
        self._last = self._start
        before = f", {done} done before" if done else ""
        click.echo(f"{name} ({self._line.place}): {total} rows{before}", err=True)

    def interim(self, text: str) -> None:
        """One line on standard error."""
        click.echo(safe(text), err=True)

    def tell(self, text: str) -> None:
        """One line on standard error."""
        click.echo(safe(text), err=True)

    def advance(self, units: int = 0, tokens: int = 0) -> None:
        """Count, and print now and then."""
        super().advance(units, tokens)
        now = time.monotonic()
        if now - self._last >= self.every or (units and self._done == self._total):
            self._last = now
            done, of = self._line.rows
            whole = f"{done}/{of} in all" if of > self._total else ""
            parts = ", ".join(part for part in (self._speed(), whole, self._left()) if part)
            said = f" ({parts})" if parts else ""
            click.echo(f"{self._name}: {self._done}/{self._total} rows{said}", err=True)


class Bar(_Timed):
    """One live bar over the whole run; under it, what the rows say so far."""

    def __init__(self) -> None:
        """Made, not shown yet."""
        super().__init__()
        from rich.console import Console, RenderableType
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
        from rich.text import Text

        outer = self

        class Shown(Progress):
            def get_renderables(self) -> Iterator[RenderableType]:
                yield self.make_tasks_table(self.tasks)
                if outer._interim:
                    yield Text(outer._interim, style="dim")

        self._interim = ""
        self.live = Shown(
            TextColumn("{task.description:>16}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[rows]} rows  {task.fields[speed]:>13}"),
            TextColumn("{task.fields[left]:>12}"),
            console=Console(stderr=True),
        )
        self._task = self.live.add_task("", total=1.0, visible=False, rows="", speed="", left="")

    def stage(self, name: str, total: int, done: int) -> None:
        """Another part of the bar."""
        super().stage(name, total, done)
        self._show()

    def advance(self, units: int = 0, tokens: int = 0) -> None:
        """Move the bar."""
        super().advance(units, tokens)
        self._show()

    def interim(self, text: str) -> None:
        """The line under the bar."""
        self._interim = safe(text)

    def note(self, text: str) -> None:
        """A line above the bar."""
        self.live.console.print(f"note: {safe(text)}", markup=False)

    def tell(self, text: str) -> None:
        """A line above the bar."""
        self.live.console.print(safe(text), markup=False)

    def _show(self) -> None:
        done, of = self._line.rows
        self.live.update(
            self._task,
            visible=True,
            description=f"{safe(self._name)} {self._line.place}",
            completed=self._line.part,
            rows=f"{done}/{of}",
            speed=self._speed(),
            left=self._left(),
        )


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

    def expect(self, stages: Sequence[Expected], known: bool) -> None:
        """Pass it on."""
        self._told.expect(stages, known)

    def interim(self, text: str) -> None:
        """Pass it on."""
        self._told.interim(text)

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
