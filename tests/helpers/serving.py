"""A living batch on a tiny model, and asks to it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn

from mlx_steer.conditions import Condition, Gate, Intervention
from mlx_steer.engine.jobs import Sampling
from mlx_steer.model.load import Model
from mlx_steer.serve.app import make_app
from mlx_steer.serve.catalog import Catalog, Offered
from mlx_steer.serve.completions import Service
from mlx_steer.serve.guard import Access
from mlx_steer.serve.limits import Limits
from mlx_steer.serve.messages import Ask, Begun, Ended, Token
from mlx_steer.serve.problems import Problem
from mlx_steer.serve.scheduler import Scheduler
from mlx_steer.serve.server import Address
from mlx_steer.vectors import SteeringVector, SteeringVectorSet
from tests.helpers.tiny import HIDDEN, LAYERS, random_ids, random_vector
from tests.helpers.vector_sets import metadata

PLAIN = Condition("plain")


@contextmanager
def living(
    model: Model, limits: Limits | None = None, memory: int | None = 1 << 30
) -> Iterator[Scheduler]:
    """A scheduler that takes steps in a thread of its own; stopped at the end."""
    scheduler = Scheduler(model, limits, memory)
    thread = threading.Thread(target=scheduler.run)
    thread.start()
    while not scheduler.alive:
        time.sleep(0.005)
    try:
        yield scheduler
    finally:
        scheduler.stop()
        thread.join(30)
    assert not thread.is_alive()


@dataclass
class Heard:
    """What came back for an ask."""

    begun: Begun | None = None
    tokens: list[Token] = field(default_factory=list)
    ended: Ended | None = None

    @property
    def ids(self) -> list[int]:
        return [token.id for token in self.tokens]

    @property
    def text(self) -> str:
        assert self.ended is not None
        return "".join(token.text for token in self.tokens) + self.ended.text


async def hear(scheduler: Scheduler, ask: Ask, hang_up: int | None = None) -> Heard:
    """Ask and listen to the end, or hang up after so many tokens."""
    ticket, heard = scheduler.submit(ask), Heard()
    async for event in ticket.events():
        if isinstance(event, Begun):
            heard.begun = event
        elif isinstance(event, Token):
            heard.tokens.append(event)
        else:
            heard.ended = event
        if hang_up is not None and len(heard.tokens) >= hang_up:
            ticket.cancel()
            break
    return heard


def hear_all(scheduler: Scheduler, asks: Sequence[Ask]) -> list[Heard]:
    """Ask all at once."""

    async def together() -> list[Heard]:
        return await asyncio.gather(*(hear(scheduler, ask) for ask in asks))

    return asyncio.run(together())


def ask(ids: Sequence[int], condition: Condition = PLAIN, tokens: int = 12, **changes: Any) -> Ask:
    """An ask for greedy tokens, or with other sampling and observations."""
    watched = {k: changes.pop(k) for k in ("logprobs", "projections") if k in changes}
    return Ask(tuple(ids), condition, Sampling(tokens, **changes), **watched)


def varied(count: int, **changes: Any) -> list[Ask]:
    """Asks of many lengths, each under its own vector, strength, layer, scope and gate."""
    scopes = ("all", "generated", "prompt")
    asks = []
    for i in range(count):
        acts = (
            Intervention(i % LAYERS, random_vector(i), 0.2 + 0.1 * (i % 7), scope=scopes[i % 3]),
        )
        if i % 4 == 1:
            acts += (Intervention((i + 3) % LAYERS, random_vector(i + 99), 0.5, "ablate"),)
        gates = ()
        if i % 3 == 0:
            threshold = -100.0 if i % 2 else 100.0
            gates = (Gate((i * 5) % LAYERS, random_vector(i + 7, 1.0), threshold),)
        condition = Condition(f"c{i}", None, () if i % 8 == 7 else acts, gates)
        asks.append(ask(random_ids(i, 3 + (i * 7) % 40), condition, 5 + i % 9, **changes))
    return asks


def tiny_vectors(**changes: Any) -> SteeringVectorSet:
    """Vectors for tiny models at layers 1 and 3, with a gate that opens and one that stays shut."""
    vectors = [SteeringVector(i, random_vector(i), 20.0) for i in (1, 3)]
    gates = [
        Gate(1, random_vector(5, 1.0), -1000.0, "open"),
        Gate(2, random_vector(6, 1.0), 1000.0, "shut"),
    ]
    about = metadata(hidden_size=HIDDEN, num_layers=LAYERS, **{"behavior": "brevity", **changes})
    return SteeringVectorSet(vectors, about, gates)


def service(scheduler: Scheduler, model: Model, **more: SteeringVectorSet) -> Service:
    """What routes need, with vectors called `brevity`."""
    offered = Offered(model.info.id, model.hidden_size, model.num_layers)
    catalog = Catalog(offered, {"brevity": tiny_vectors(), **more})
    return Service(scheduler, model.chat, catalog, model.context)


@contextmanager
def listening(service: Service) -> Iterator[str]:
    """What is served behind uvicorn and a port of this machine; yields the address."""
    listener = Address(port=0).listen()
    config = uvicorn.Config(make_app(service, Access()), log_config=None, lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)


def problem_of(heard: Heard) -> Problem:
    """Why a response could not be finished."""
    assert heard.ended is not None and heard.ended.problem is not None
    return heard.ended.problem
