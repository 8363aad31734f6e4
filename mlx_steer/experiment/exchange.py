"""What ranks make, told to one another now and then and at the end of a stage.

Every rank keeps all of it, rank 0 in the run and the others in a copy of it, so that all find the
same choice in it; a rank that is lost costs what it has made since the last time.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import BaseModel

from mlx_steer.experiment.work import Work
from mlx_steer.files import json_line
from mlx_steer.run.directory import parse_lines
from mlx_steer.run.records import Row, record_json

EVERY = 30.0
"""Seconds; every rank exchanges so often after a stage's beginning, so that none waits long."""

_MORE, _DONE = b"+", b"."

_Record = TypeVar("_Record", bound=BaseModel)


@contextmanager
def waits_logged(work: Work, name: str) -> Iterator[None]:
    """Notes in run.log how long each rank has waited for others in a part of the experiment."""
    team = work.team
    before, start = replace(team.traffic), time.perf_counter()
    yield
    if team.size == 1:
        return
    spent = time.perf_counter() - start
    own = [team.traffic.seconds - before.seconds, team.traffic.sent - before.sent]
    for rank, told in enumerate(team.gathered(json.dumps(own).encode())):
        seconds, sent = json.loads(told)
        work.run.log(
            f"{name}: of {spent:.1f} s rank {rank} waited {seconds:.2f}, sent {sent} bytes"
        )


class Exchange(Generic[_Record]):
    """Of one file's lines in one stage.

    Args:
        work: The experiment.
        name: The file, of JSON lines.
        kind: What a line is.
    """

    def __init__(self, work: Work, name: str, kind: type[_Record]) -> None:
        """See the class."""
        self._work = work
        self._name, self._kind = name, kind
        self._made: list[_Record] = []
        self._next = time.monotonic() + EVERY

    def add(self, made: Sequence[_Record]) -> None:
        """What this rank has made; it is written."""
        self._work.run.append(self._name, made)
        if self._work.team.size > 1:
            self._made += made

    def keep_up(self) -> None:
        """Tell and take, if it is time."""
        if self._work.team.size > 1 and time.monotonic() >= self._next:
            self._next += EVERY
            self._swap(_MORE)

    def finish(self) -> None:
        """This rank has made its part: take those of the others, until all have made theirs."""
        while self._work.team.size > 1 and not self._swap(_DONE):
            pass

    def _swap(self, state: bytes) -> bool:
        """Tell what this rank has made and take what others have; whether all have made all."""
        team = self._work.team
        taken, self._made = self._made, []
        told = state + "".join(json_line(record_json(one)) for one in taken).encode()
        found = team.gathered(told)
        for rank, theirs in enumerate(found):
            if rank != team.rank:
                made = parse_lines(theirs[1:], Path(f"rank {rank}"), self._kind)
                self._work.run.append(self._name, made)
                tokens = sum(len(one.tokens) for one in made if isinstance(one, Row))
                self._work.progress.advance(units=len(made), tokens=tokens)
        return all(theirs[:1] == _DONE for theirs in found)
