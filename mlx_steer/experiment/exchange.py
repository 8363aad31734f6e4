"""Rows that ranks make, told to one another now and then and at the end of a stage.

Every rank keeps all rows, rank 0 in the run and the others in a copy of it, so that all find the
same choice in them; a rank that is lost costs what it has made since the last time.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from mlx_steer.experiment.progress import Progress
from mlx_steer.run.directory import RunDirectory, json_line, parse_lines
from mlx_steer.run.records import Row, record_json
from mlx_steer.team import Team

EVERY = 30.0
"""Seconds; every rank exchanges so often after a stage's beginning, so that none waits long."""

_MORE, _DONE = b"+", b"."


class Exchange:
    """Of one stage.

    Args:
        team: The ranks.
        run: This rank's run directory.
        progress: Told of others' rows.
    """

    def __init__(self, team: Team, run: RunDirectory, progress: Progress) -> None:
        """See the class."""
        self._team = team
        self._run = run
        self._progress = progress
        self._made: list[Row] = []
        self._next = time.monotonic() + EVERY

    def add(self, rows: Sequence[Row]) -> None:
        """Rows of this rank, which are on its disk."""
        if self._team.size > 1:
            self._made += rows

    def keep_up(self) -> None:
        """Tell and take, if it is time."""
        if self._team.size > 1 and time.monotonic() >= self._next:
            self._next += EVERY
            self._swap(_MORE)

    def finish(self) -> None:
        """This rank has made all of its rows: take those of the others, until all have."""
        while self._team.size > 1 and not self._swap(_DONE):
            pass

    def _swap(self, state: bytes) -> bool:
        """Tell this rank's rows and take the others'; whether all ranks have made all."""
        taken, self._made = self._made, []
        told = state + "".join(json_line(record_json(row)) for row in taken).encode()
        found = self._team.gathered(told)
        for rank, theirs in enumerate(found):
            if rank != self._team.rank:
                rows = parse_lines(theirs[1:], Path(f"rank {rank}"), Row)
                self._run.append("rows.jsonl", rows)
                self._progress.advance(units=len(rows))
        return all(theirs[:1] == _DONE for theirs in found)
