"""The batch size of a run, which is lowered when memory runs out."""

from __future__ import annotations

import gc
from collections.abc import Callable

import mlx.core as mx

from mlx_steer.engine.memory import is_memory_full
from mlx_steer.errors import GenerationError


class BatchSize:
    """Rows decoded at a time: as many as were chosen, and fewer once they were too many.

    Args:
        rows: To begin with.
        told: Told of every change, in a sentence.
        lowered: Whether it may be: not on one of several ranks, which work in step.
    """

    def __init__(self, rows: int, told: Callable[[str], None], lowered: bool = True) -> None:
        """See the class."""
        self.rows = rows
        self._lowered = lowered
        self._told = told

    def retried(self, work: Callable[[int], None]) -> None:
        """Do some work; where memory runs out, go on with half as many rows at a time.

        Args:
            work: Called with the number of rows; again if need be, and then does what is left.

        Raises:
            GenerationError: If not even one row at a time can be decoded.
        """
        while not self._done(work):
            # Not inside `except`: there the error still holds all that filled the memory.
            gc.collect()
            mx.clear_cache()

    def _done(self, work: Callable[[int], None]) -> bool:
        try:
            work(self.rows)
        except (RuntimeError, MemoryError) as error:
            if not is_memory_full(error):
                raise
            if not self._lowered and self.rows > 1:
                raise GenerationError(
                    f"memory is full with {self.rows} rows at a time on one of the ranks; finished "
                    f"rows are kept: run the same command again with --batch-size {self.rows // 2}"
                ) from error
            if self.rows == 1:
                raise GenerationError(
                    "memory is full with one row at a time; finished rows are kept: close other "
                    "programs, use 4-bit weights (--quantize 4), a smaller model or a smaller "
                    "max_tokens, and run the same command again"
                ) from error
            before, self.rows = self.rows, self.rows // 2
            self._told(
                f"Memory ran out with {before} rows at a time, so {self.rows} are decoded at a "
                "time from here on; finished rows are kept and results do not depend on it."
            )
            return False
        return True
