"""Ends a rank that waits for another without end.

A rank that has died is noticed by all others at once, and mlx.launch ends them. One that hangs is
not: whatever of MLX waits for it waits for ever, and cannot be interrupted.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mlx_steer.team import RANK_LOST, launched_rank

if TYPE_CHECKING:
    from mlx_steer.experiment.progress import Expected, Progress

DEADLINE = 1800.0
"""Seconds; longer than anything takes that gives no sign of life, which is to extract vectors."""


class OtherEnded(BaseException):
    """Like Ctrl-C: nothing that is under way takes it for an error of its own."""


# Seconds in which a rank that is told to end writes what it has finished.
_GRACE = 3.0


@contextmanager
def ends_with_the_others(who: str) -> Iterator[None]:
    """Have a rank end with a sentence when mlx.launch ends it, because another rank has ended.

    Args:
        who: This rank, as its messages begin.

    Raises:
        OtherEnded: Then, in the main thread.
    """
    if launched_rank() is None:
        yield
        return
    received, told = os.pipe()
    os.set_blocking(told, False)

    def wait() -> None:
        while os.read(received, 1) != bytes([signal.SIGTERM]):
            pass
        time.sleep(_GRACE)  # a main thread that waits within MLX never sees the signal
        os.write(2, f"{who} {RANK_LOST}\n".encode())
        os._exit(2)

    def stop(*_: object) -> None:
        raise OtherEnded

    signal.set_wakeup_fd(told, warn_on_full_buffer=False)
    signal.signal(signal.SIGTERM, stop)
    threading.Thread(target=wait, daemon=True).start()
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it would come on top of what is said now


class Watched:
    """Passes everything on, and notes when it was.

    Args:
        told: What everything is passed on to.
    """

    def __init__(self, told: Progress) -> None:
        """See the class."""
        self._told = told
        self.last = time.monotonic()

    def expect(self, stages: Sequence[Expected], known: bool) -> None:
        """Pass it on."""
        self._told.expect(stages, known)

    def interim(self, text: str) -> None:
        """Pass it on."""
        self._told.interim(text)

    def stage(self, name: str, total: int, done: int) -> None:
        """Pass it on."""
        self.last = time.monotonic()
        self._told.stage(name, total, done)

    def advance(self, units: int = 0, tokens: int = 0) -> None:
        """Pass it on."""
        self.last = time.monotonic()
        self._told.advance(units, tokens)

    def note(self, text: str) -> None:
        """Pass it on."""
        self.last = time.monotonic()
        self._told.note(text)

    def tell(self, text: str) -> None:
        """Pass it on."""
        self.last = time.monotonic()
        self._told.tell(text)


@contextmanager
def watched(told: Progress) -> Iterator[Progress]:
    """On one of several ranks: end the process when nothing was told for too long.

    The environment variable MLX_STEER_DEADLINE gives other seconds than `DEADLINE`.
    """
    rank = launched_rank()
    if rank is None:
        yield told
        return
    deadline = _deadline()
    signs, over = Watched(told), threading.Event()

    def watch() -> None:
        while not over.wait(min(1.0, deadline / 4)):
            if time.monotonic() - signs.last > deadline:
                text = (
                    f"\nmlx-steer: rank {rank}: for {deadline:g} s no step has come to its end, so "
                    "another rank hangs; finished rows are kept, run the same command again "
                    "(MLX_STEER_DEADLINE=SECONDS waits longer)\n"
                )
                os.write(2, text.encode())
                os._exit(2)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield signs
    finally:
        over.set()


def _deadline() -> float:
    try:
        seconds = float(os.environ.get("MLX_STEER_DEADLINE", DEADLINE))
    except ValueError:
        return DEADLINE
    return seconds if seconds > 0 else DEADLINE
