"""The living batch without a server: responses as they come, in the thread that asks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from mlx_steer.engine.guard import forward_of
from mlx_steer.engine.jobs import Job, check_jobs
from mlx_steer.model.load import Model
from mlx_steer.model.machine import working_set
from mlx_steer.serve.limits import Limits
from mlx_steer.serve.living_batch import Failure, LivingBatch, Tally
from mlx_steer.serve.messages import Ask, Event
from mlx_steer.serve.prefix_cache import PrefixCache
from mlx_steer.serve.responses import Seat
from mlx_steer.serve.speech import Speech

# Of the machine's memory, for what conversations have read.
_KEPT_PART = 0.1


@dataclass(eq=False)
class _Place:
    """Where one response's events go."""

    gone: str | None = None
    events: list[Event] = field(default_factory=list)

    def deliver(self, events: Sequence[Event]) -> None:
        self.events += events


class Direct:
    """Answers asks, and knows what earlier turns have read.

    Args:
        model: The model.
    """

    def __init__(self, model: Model) -> None:
        """See the class."""
        self._model = model
        self._turns = PrefixCache(int(_KEPT_PART * working_set()))

    def stream(self, asks: Sequence[Ask]) -> Iterator[tuple[int, Event]]:
        """The events of all responses, each with its ask's place; whoever stops iterating ends all.

        Raises:
            GenerationError: If a prompt is empty or too long for the model.
            ModelError: If a layer does not exist.
            VectorError: If a vector does not fit the model.
        """
        from mlx_lm.generate import wired_limit

        for ask in asks:
            job = Job(ask.condition.name, ask.ids, ask.condition)
            check_jobs(self._model, [job], ask.sampling, 1)
        places = [_Place() for _ in asks]
        seats = [
            Seat(ask, place, Speech(self._model.chat, ask.ids))
            for ask, place in zip(asks, places, strict=True)
        ]
        with forward_of(self._model.network) as forward, wired_limit(self._model.network):
            batch = LivingBatch(self._model, forward, Limits(), self._turns, Tally())
            for seat in seats:
                batch.begin([seat])
            while batch.seats:
                try:
                    batch.read()
                    batch.step()
                except Failure as failure:
                    raise failure.error from None
                for index, place in enumerate(places):
                    yield from ((index, event) for event in place.events)
                    place.events.clear()
