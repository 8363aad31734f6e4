"""What holds of a kind of network, so that the engine does no more with it than is right."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Together = Literal["padded", "even", "single"]


@dataclass(frozen=True)
class Traits:
    """What of the engine's ways holds for a network (`guard.py` finds it out).

    Attributes:
        together: Which rows one call may compute: `padded`, any; `even`, those with as many new
            tokens, since the network reads the padding of shorter ones; `single`, one at a time.
        skips: Blocks may be left out of a call whose logits are not wanted.
        replays: A prompt that is steered from some layer on may start at that layer.
        uncached: A call without caches computes what one with caches does.
        undoes: A step can be taken back.
    """

    together: Together = "padded"
    skips: bool = True
    replays: bool = True
    uncached: bool = True
    undoes: bool = True

    @property
    def note(self) -> str | None:
        """What a run should say of a network that is run in a slower way; None if it is not."""
        if self.together == "single":
            return (
                "This kind of model cannot be run in a batch: its rows run one at a time, with "
                "the same results, and take longer."
            )
        if self.together == "even":
            return (
                "This kind of model reads the padding of a batch: its prompts are read in "
                "batches of one length each, with the same results, and take longer."
            )
        return None
