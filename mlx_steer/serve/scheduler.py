"""The living batch behind the routes: requests join between steps and leave at any time.

One thread runs `Scheduler.run` and owns the model; every other one hands asks in and gets events
out. What one request does to fail never ends another: a group that fails is run again in halves,
until the one that fails alone is found. Since a request's tokens do not depend on its neighbours,
the others go on from where their clients had come to.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque

from mlx_steer.engine.guard import forward_of
from mlx_steer.engine.memory import is_memory_full
from mlx_steer.errors import SteerError
from mlx_steer.model.load import Model
from mlx_steer.serve.limits import Limits, Memory
from mlx_steer.serve.living_batch import Failure, LivingBatch, Tally
from mlx_steer.serve.messages import Ask, Ended, Load
from mlx_steer.serve.prefix_cache import PrefixCache
from mlx_steer.serve.problems import Problem, invalid
from mlx_steer.serve.responses import EventQueue, Seat
from mlx_steer.serve.speech import Speech

_log = logging.getLogger(__name__)

_LONGEST_WAIT = 120
_STOPPED = Problem(503, "the server is stopping", retry_after=10)


class Scheduler:
    """The living batch (see `messages.Live`).

    Args:
        model: The model.
        limits: How much it takes on.
        memory: Bytes it may use, weights included; what the machine has by default.
    """

    def __init__(
        self, model: Model, limits: Limits | None = None, memory: int | None = None
    ) -> None:
        """See the class."""
        self._model = model
        self._limits = limits or Limits()
        self._memory = Memory(model, memory)
        self._turns = PrefixCache(self._memory.for_turns)
        self._tally = Tally()
        self._changed = threading.Condition()
        self._waiting: deque[Seat] = deque()
        self._batch: LivingBatch | None = None
        # Groups that are run by themselves after a failure, and the one that is due now.
        self._apart: list[list[Seat]] = []
        self._due: deque[Seat] = deque()
        self._isolated = False
        self._stopping = False
        self._deadline = math.inf

    @property
    def alive(self) -> bool:
        """See `messages.Live`."""
        return self._batch is not None and not self._stopping

    def submit(self, ask: Ask) -> EventQueue:
        """See `messages.Live`; to be called on an event loop."""
        if not self._memory.fits([ask]):
            raise Problem(
                400,
                f"a prompt of {len(ask.ids)} tokens with up to {ask.sampling.max_tokens} more "
                "does not fit into memory; shorten it or lower max_tokens",
                "messages",
                "context_length_exceeded",
            )
        ticket = EventQueue(self._wake)
        seat = Seat(ask, ticket, Speech(self._model.chat, ask.ids))
        with self._changed:
            if self._stopping:
                raise _STOPPED
            if len(self._waiting) >= self._limits.waiting:
                wait = self._time_to_wait()
                said = f"{len(self._waiting)} responses wait already; try again in {wait} s"
                raise Problem(429, said, None, "queue_full", wait)
            self._waiting.append(seat)
            self._changed.notify()
        return ticket

    def load(self) -> Load:
        """See `messages.Live`."""
        done = self._tally
        return Load(
            running=len(self._batch.seats) if self._batch else 0,
            waiting=len(self._waiting) + len(self._due) + sum(map(len, self._apart)),
            prompt_tokens=done.prompt,
            cached_tokens=done.cached,
            response_tokens=done.response,
            steps=done.steps,
            step_seconds=done.step_seconds,
            finished=dict(done.finished),
        )

    def stop(self, grace: float = 0.0) -> None:
        """Take nothing new; end what is under way, or give it up after `grace` seconds.

        May be called from any thread and from a signal handler.
        """
        self._deadline = min(self._deadline, time.monotonic() + grace)
        self._stopping = True
        # A signal handler must not wait for the lock; `run` looks now and then by itself.
        if self._changed.acquire(blocking=False):
            self._changed.notify()
            self._changed.release()

    def run(self) -> None:
        """Take steps until stopped; the calling thread owns the model meanwhile."""
        from mlx_lm.generate import wired_limit

        network = self._model.network
        try:
            with forward_of(network) as forward, wired_limit(network):
                batch = LivingBatch(self._model, forward, self._limits, self._turns, self._tally)
                self._batch = batch
                while self._has_work(batch):
                    self._turn(batch)
        finally:
            self._stopping = True
            left = [*self._waiting, *self._due, *(s for group in self._apart for s in group)]
            for seat in [*left, *(self._batch.seats if self._batch else ())]:
                seat.ticket.deliver([Ended(problem=_STOPPED)])
            self._batch = None

    def _has_work(self, batch: LivingBatch) -> bool:
        """Wait until there is something to do; False at the end."""
        with self._changed:
            while not (self._waiting or self._due or self._apart or batch.seats):
                if self._stopping:
                    return False
                self._changed.wait(0.2)
        return not (self._stopping and time.monotonic() > self._deadline)

    def _turn(self, batch: LivingBatch) -> None:
        """Whatever comes next: a piece of one prompt, and a step of the batch."""
        self._forget_gone()
        batch.release()
        try:
            if batch.readings < self._limits.readings and (wave := self._next_wave(batch)):
                batch.begin(wave)
            batch.read()
            batch.step()
        except Failure as failure:
            self._failed(failure)

    def _forget_gone(self) -> None:
        with self._changed:
            for queue in (self._waiting, self._due):
                for seat in [seat for seat in queue if seat.ticket.gone]:
                    queue.remove(seat)
                    self._tally.finished["cancelled"] += 1

    def _next_wave(self, batch: LivingBatch) -> list[Seat]:
        """The first that wait, as far as there is room, taken from their queue.

        Several only if they are read in one piece, all with gates or all without.
        """
        if not batch.seats and not self._due:
            self._isolated = bool(self._apart)
            if self._apart:
                self._due.extend(self._apart.pop())
        elif self._apart and not self._isolated:
            return []  # what is under way ends first
        queue = self._due if self._isolated else self._waiting
        others = [seat.ask for seat in batch.seats]
        wave: list[Seat] = []
        longest = 0
        with self._changed:
            for seat in list(queue):
                ask, asks = seat.ask, [one.ask for one in wave]
                if wave and bool(ask.condition.gates) != bool(asks[0].condition.gates):
                    continue
                if len(others) + len(wave) >= self._limits.rows:
                    break
                longest = max(longest, batch.unread(seat))
                same = wave and ask.ids == asks[-1].ids and ask.condition is asks[-1].condition
                if wave and not same and (len(wave) + 1) * longest > batch.piece():
                    break
                if not self._memory.fits([*others, *asks, ask]):
                    break
                queue.remove(seat)
                wave.append(seat)
        return wave

    def _failed(self, failure: Failure) -> None:
        """Run those that failed together again in halves; who fails alone is told so."""
        _log.error("%d responses failed together", len(failure.seats), exc_info=failure.error)
        if is_memory_full(failure.error):
            self._turns.forget()
        seats = [seat for seat in failure.seats if not seat.ticket.gone]
        if len(failure.seats) == 1:
            for seat in seats:
                seat.ticket.deliver([Ended(problem=_told(failure.error))])
                self._tally.finished["failed"] += 1
            return
        half = (len(seats) + 1) // 2
        self._apart += [group for group in (seats[half:], seats[:half]) if group]

    def _time_to_wait(self) -> int:
        """Seconds until there may be a place: what is ahead, at the speed so far."""
        done = self._tally
        ahead = sum(seat.ask.sampling.max_tokens for seat in self._waiting)
        speed = done.response / done.step_seconds if done.step_seconds else 20.0
        return max(1, min(_LONGEST_WAIT, math.ceil(ahead / max(speed, 0.1) / 4)))

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify()


def _told(error: Exception) -> Problem:
    """What a client is told of a failure; the log has the rest."""
    if is_memory_full(error):
        return Problem(503, "memory is full; try again with fewer tokens", retry_after=30)
    if isinstance(error, SteerError):
        return invalid(str(error))
    return Problem(500, "the response failed; the server's log says how")
