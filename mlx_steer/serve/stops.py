"""Stop strings in a stream of text: what may be the beginning of one is held back."""

from __future__ import annotations

from collections.abc import Sequence


class Stops:
    """Cuts a stream at the first stop string.

    Args:
        strings: The stop strings, none empty.

    Attributes:
        stopped: Whether one was found.
        after: What had come behind it.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        """See the class."""
        self._strings = tuple(strings)
        self._held = ""
        self.stopped = False
        self.after = ""

    def feed(self, text: str) -> str:
        """What may be shown now that more text has come; sets `stopped` at a stop string."""
        if self.stopped:
            return ""
        held = self._held + text
        places = [place for one in self._strings if (place := held.find(one)) >= 0]
        if places:
            first = min(places)
            stop = next(one for one in self._strings if held.startswith(one, first))
            self.stopped, self._held, self.after = True, "", held[first + len(stop) :]
            return held[:first]
        keep = max((_beginning(held, one) for one in self._strings), default=0)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]

    def rest(self) -> str:
        """What was held back, now that no more text comes."""
        held, self._held = self._held, ""
        return held


def _beginning(text: str, stop: str) -> int:
    """The length of the longest end of the text that begins the stop string."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
