"""What an experiment tells whoever watches it."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Told what is going on."""

    def stage(self, name: str, total: int, done: int) -> None:
        """A stage of `total` units begins, `done` of which an earlier start has finished."""

    def advance(self, units: int = 0, tokens: int = 0) -> None:
        """So many units are finished, and so many tokens were made, since the last call."""

    def note(self, text: str) -> None:
        """Something a person should know."""

    def tell(self, text: str) -> None:
        """Something good to know, which is no matter for concern."""
