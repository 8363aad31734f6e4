"""What the engine's thread works on: prompts that are being read, and the batch that is decoded."""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field

import mlx.core as mx

from mlx_steer.engine.batch import Batch, Row
from mlx_steer.engine.decode import IDLE, Decoder
from mlx_steer.engine.forward import Forward
from mlx_steer.model.load import Model
from mlx_steer.serve.limits import Limits
from mlx_steer.serve.messages import Ended
from mlx_steer.serve.prefix_cache import PrefixCache
from mlx_steer.serve.problems import Problem
from mlx_steer.serve.reading import Reader, Ready
from mlx_steer.serve.responses import Seat

_log = logging.getLogger(__name__)

# MLX keeps freed memory for later; after so many steps it gives it back.
_STEPS_TO_CLEAR = 256


@dataclass
class Tally:
    """What was done since the start.

    Attributes:
        prompt: Prompt tokens read.
        cached: Prompt tokens that had been read before.
        response: Response tokens made.
        steps: Decoding steps.
        step_seconds: Seconds they took.
        finished: Responses by how they ended.
    """

    prompt: int = 0
    cached: int = 0
    response: int = 0
    steps: int = 0
    step_seconds: float = 0.0
    finished: Counter[str] = field(default_factory=Counter)


class Failure(Exception):
    """Something that several responses took part in has failed.

    Attributes:
        seats: Whose responses; none of them is in the batch any more.
        error: Why.
    """

    def __init__(self, seats: Sequence[Seat], error: Exception) -> None:
        """See the class."""
        super().__init__(str(error))
        self.seats = list(seats)
        self.error = error


@dataclass(eq=False)
class _Reading:
    """Prompts that are being read."""

    seats: list[Seat]
    steps: Generator[None, None, Ready]


class LivingBatch:
    """Reads prompts piece by piece and decodes what was read, a step at a time.

    Args:
        model: The model.
        forward: Its network.
        limits: How much is read at once.
        turns: What was read before.
        tally: What is counted.
    """

    def __init__(
        self, model: Model, forward: Forward, limits: Limits, turns: PrefixCache, tally: Tally
    ) -> None:
        """See the class."""
        self._decoder = Decoder(model, forward, drops=False)
        self._reader = Reader(model, forward, turns)
        self._limits = limits
        self._turns = turns
        self._tally = tally
        self._batch: Batch | None = None
        self._seats: dict[Row, Seat] = {}
        self._readings: deque[_Reading] = deque()

    @property
    def seats(self) -> list[Seat]:
        """All that are read or decoded."""
        reading = [seat for one in list(self._readings) for seat in one.seats]
        return [*list(self._seats.values()), *reading]

    @property
    def readings(self) -> int:
        """How many groups of prompts are being read."""
        return len(self._readings)

    def unread(self, seat: Seat) -> int:
        """How many of its prompt's tokens have to be read."""
        return self._reader.unread(seat.ask)

    def piece(self) -> int:
        """How many prompt tokens may be read at once now."""
        return self._limits.idle_piece if self._batch is None else self._limits.busy_piece

    def begin(self, seats: list[Seat]) -> None:
        """Begin to read prompts together."""
        asks = [seat.ask for seat in seats]
        self._readings.append(_Reading(seats, self._reader.read(asks, self.piece)))

    def release(self) -> None:
        """Let go of what nobody waits for."""
        for row, seat in list(self._seats.items()):
            if seat.ticket.gone is not None:
                row.done = True
                self._leave(row, seat.ticket.gone)
        for reading in [r for r in self._readings if all(s.ticket.gone for s in r.seats)]:
            self._readings.remove(reading)
            self._tally.finished["cancelled"] += len(reading.seats)
        self._drop()

    def read(self) -> None:
        """Read a piece; who is read to the end joins the batch.

        Raises:
            Failure: If that cannot be done.
        """
        if not self._readings:
            return
        reading = self._readings.popleft()
        try:
            next(reading.steps)
        except StopIteration as done:
            self._join(reading.seats, done.value)
        except Exception as error:
            raise Failure(reading.seats, error) from error
        else:
            self._readings.append(reading)

    def step(self) -> None:
        """Give every row a token.

        Raises:
            Failure: If that cannot be done; then no row is left.
        """
        if self._batch is None:
            return
        before = time.perf_counter()
        try:
            self._decoder.step(self._batch)
        except Exception as error:
            raise self._lost(error) from error
        self._tally.step_seconds += time.perf_counter() - before
        self._tally.steps += 1
        self._tell()
        if self._tally.steps % _STEPS_TO_CLEAR == 0:
            mx.clear_cache()

    def _join(self, seats: list[Seat], ready: Ready) -> None:
        rows = ready.batch.rows
        for seat, row, begun in zip(seats, rows, ready.begun, strict=True):
            self._seats[row] = seat
            self._tally.prompt += len(seat.ask.ids) - begun.cached
            self._tally.cached += begun.cached
            seat.begin(begun)
        try:
            if self._batch is not None:
                self._decoder.land(self._batch)
                self._tell()
            if self._batch is not None:
                self._batch.drop_finished()
                self._batch = Batch.joined([self._batch, ready.batch])
            else:
                self._batch = ready.batch
        except Exception as error:
            raise self._lost(error) from error

    def _lost(self, error: Exception) -> Failure:
        """All rows are gone."""
        seats = list(self._seats.values())
        self._batch = None
        self._seats.clear()
        mx.clear_cache()
        return Failure(seats, error)

    def _tell(self) -> None:
        """Hand out what the last step gave; rows that are done leave."""
        assert self._batch is not None
        for row in self._batch.rows:
            seat = self._seats.get(row)
            if seat is None:
                continue
            try:
                events = seat.news(row)
            except Problem as problem:
                row.done = True
                seat.ticket.deliver([Ended(problem=problem)])
                self._leave(row, "failed")
                continue
            self._tally.response += len(events)
            if row.done:
                last = seat.end(row)
                events.append(last)
                self._leave(row, last.reason)
            if events:
                seat.ticket.deliver(events)
        self._drop()

    def _leave(self, row: Row, reason: str) -> None:
        """A row that is done goes; what it has read is kept for the next turn."""
        del self._seats[row]
        self._tally.finished[reason] += 1
        if self._batch is None:
            return
        try:
            self._reader.keep(self._batch, row)
        except Exception:  # most likely memory; the response itself is whole
            _log.exception("a conversation could not be kept")
            self._turns.forget()

    def _drop(self) -> None:
        if self._batch is None:
            return
        self._batch.drop_finished(at_least=max(1, len(self._batch.rows) // IDLE))
        if not len(self._batch):
            self._batch = None
            mx.clear_cache()
