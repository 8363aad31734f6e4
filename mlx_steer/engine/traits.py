"""What holds of a kind of network, so that the engine does no more with it than is right."""

from __future__ import annotations

from dataclasses import dataclass

from mlx_steer.model.families import NOTES, Together


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
        return NOTES.get(self.together)
