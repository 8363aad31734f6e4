"""What the clients of soak_server.py do: what they ask in order, and what no client should do."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import httpx

CHAT = "/v1/chat/completions"
JSON = {"Content-Type": "application/json"}
_TOPICS = ("bread", "tea", "a kite", "a garden", "a letter", "soup", "a bench", "a song")
LONGEST_WAIT = 300
_VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 3, 1e308, 0.5, "", "x", "\u202e", [], [None], {}, {"a": []}, "7" * 400,
)  # fmt: skip
_FIELDS = (
    "messages", "model", "steering", "preset", "max_tokens", "temperature", "top_p", "top_k", "n",
    "min_p", "seed", "stop", "stream", "stream_options", "tools", "logprobs", "projections",
)  # fmt: skip
_WIRE = (b"\x16\x03\x01\x02\x00", b"GET / HTTP/9.9\r\n\r\n", b"\xff" * 3000, b"POST\r\n\r\n")


def known_asks(vectors: dict[str, Any]) -> list[dict[str, Any]]:
    """Requests whose answers are learned at the beginning: of many lengths and conditions."""
    names = sorted(vectors)
    asks: list[dict[str, Any]] = []
    for i in range(16):
        text = f"Tell me how one makes {_TOPICS[i % 8]}. " + "Step by step, please. " * (i % 5) ** 2
        ask: dict[str, Any] = {
            "messages": [{"role": "user", "content": text.strip()}],
            "max_tokens": 4 + 3 * (i % 6),
            "temperature": 0.8 if i % 4 == 3 else 0,
            "seed": i,
        }
        if names and i % 5:
            name = names[i % len(names)]
            layers = sorted(map(int, vectors[name]["layers"]))
            gates = vectors[name]["gates"]
            steer = {"vector": name, "layer": layers[i % len(layers)], "strength": 0.1 * (i % 9)}
            ask["steering"] = [{**steer, **({"gate": gates[0]} if gates and i % 2 else {})}]
        asks.append(ask)
    return asks


@dataclass
class Soak:
    """What is known and what has come out.

    Attributes:
        address: Of the server.
        log: Where the server writes.
        asks: With known answers.
        answers: The known answers.
        seen: How often what came out.
        wrong: What must not have.
        memory: Bytes of the server by seconds since the start.
    """

    address: str
    log: Path
    pause: float
    asks: list[dict[str, Any]] = field(default_factory=list)
    answers: list[tuple[str, str]] = field(default_factory=list)
    seen: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    memory: list[tuple[float, int]] = field(default_factory=list)

    def note(self, what: str) -> None:
        """Something that must not be."""
        self.wrong.append(what)
        click.echo(f"WRONG: {what}", err=True)


async def answer(client: httpx.AsyncClient, ask: dict[str, Any], stream: bool) -> tuple[str, str]:
    """Text and finish reason."""
    if not stream:
        response = await client.post(CHAT, json=ask)
        response.raise_for_status()
        choice = response.json()["choices"][0]
        return choice["message"]["content"], choice["finish_reason"]
    text, reason = "", ""
    async with client.stream("POST", CHAT, json={**ask, "stream": True}) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                found = json.loads(line.removeprefix("data: "))
                for choice in found["choices"]:
                    text += choice["delta"].get("content") or ""
                    reason = choice["finish_reason"] or reason
    return text, reason


Kind = Callable[[Soak, httpx.AsyncClient, random.Random], Awaitable[None]]


async def known(soak: Soak, client: httpx.AsyncClient, dice: random.Random) -> None:
    """Ask what is known, in one of the two ways."""
    i = dice.randrange(len(soak.asks))
    began = time.monotonic()
    found = await answer(client, soak.asks[i], stream=dice.random() < 0.6)
    soak.waits.append(time.monotonic() - began)
    if found != soak.answers[i]:
        soak.note(f"ask {i} gave {found!r}, alone {soak.answers[i]!r}")


async def comes_back(soak: Soak, client: httpx.AsyncClient, dice: random.Random) -> None:
    """Give up too early, and ask again until it is there."""
    i, patience = dice.randrange(len(soak.asks)), dice.uniform(0.02, 0.5)
    while True:
        try:
            async with asyncio.timeout(patience):
                found = await answer(client, soak.asks[i], stream=dice.random() < 0.5)
            break
        except TimeoutError:
            soak.seen["gave up"] += 1
            patience *= 3
    if found != soak.answers[i]:
        soak.note(f"ask {i} gave {found!r} at last, alone {soak.answers[i]!r}")


async def hangs_up(soak: Soak, client: httpx.AsyncClient, dice: random.Random) -> None:
    """Read some of a stream and go."""
    ask = {**dice.choice(soak.asks), "max_tokens": 200, "stream": True}
    lines = dice.randrange(1, 12)
    async with client.stream("POST", CHAT, json=ask) as response:
        async for _ in response.aiter_lines():
            lines -= 1
            if lines < 0:
                return


async def choices(soak: Soak, client: httpx.AsyncClient, dice: random.Random) -> None:
    """Several choices: the first is the known one."""
    i = dice.randrange(len(soak.asks))
    response = await client.post(CHAT, json={**soak.asks[i], "n": 3})
    found = response.raise_for_status().json()["choices"]
    first = (found[0]["message"]["content"], found[0]["finish_reason"])
    if first != soak.answers[i] or len(found) != 3:
        soak.note(f"of 3 choices of ask {i} the first is {first!r}, alone {soak.answers[i]!r}")


async def fuzzed(soak: Soak, client: httpx.AsyncClient, dice: random.Random) -> None:
    """A request with a field of another kind, or with other bytes."""
    body = {**dice.choice(soak.asks), "max_tokens": 3}
    if dice.random() < 0.5:
        body[dice.choice(_FIELDS)] = dice.choice(_VALUES)
    data = bytearray(json.dumps(body).encode())
    for _ in range(dice.choice((0, 0, 1, 3, 5))):
        data[dice.randrange(len(data))] = dice.randrange(256)
    try:
        response = await client.post(CHAT, content=bytes(data), headers=JSON, timeout=60)
    except httpx.ReadTimeout:
        soak.seen["fuzzed, given up"] += 1  # a long answer was asked for
        return
    soak.seen[f"fuzzed: {response.status_code}"] += 1
    if response.status_code not in (200, 400, 404, 429):
        soak.note(f"{bytes(data)!r} gave {response.status_code}")


async def huge(soak: Soak, client: httpx.AsyncClient, dice: random.Random) -> None:
    """More than a body may be, by its header or not."""
    size = dice.randrange((1 << 22) + 1, 3 << 22)

    async def parts() -> Any:
        for _ in range(0, size, 1 << 16):
            yield b" " * (1 << 16)

    content = b" " * size if dice.random() < 0.5 else parts()
    try:
        response = await client.post(CHAT, content=content, headers=JSON)
    except (httpx.WriteError, httpx.ReadError):
        return  # the server stopped listening to it
    if response.status_code != 413:
        soak.note(f"a body of {size} bytes gave {response.status_code}")


async def slow(soak: Soak, client: httpx.AsyncClient, dice: random.Random) -> None:
    """A body that comes in drops: to its end, cut off, or never."""
    i = dice.randrange(len(soak.asks))
    data = json.dumps(soak.asks[i]).encode()
    end = dice.choice(("whole", "cut", "never"))

    async def drops() -> Any:
        for at in range(0, len(data), 64):
            await asyncio.sleep(0.05)
            if end != "whole" and at > len(data) // 2:
                if end == "cut":
                    raise ConnectionError
                await asyncio.sleep(60)
            yield data[at : at + 64]

    try:
        response = await client.post(CHAT, content=drops(), headers=JSON)
    except (ConnectionError, httpx.TransportError):
        if end == "whole":
            soak.note("a slow body was not answered")
        return
    wanted = (200, 429) if end == "whole" else (408,)
    if response.status_code not in wanted:
        soak.note(f"a slow body ({end}) gave {response.status_code}")
    elif response.status_code == 200:
        choice = response.json()["choices"][0]
        if (choice["message"]["content"], choice["finish_reason"]) != soak.answers[i]:
            soak.note(f"ask {i} sent slowly gave {choice!r}")


async def wire(soak: Soak, client: httpx.AsyncClient, dice: random.Random) -> None:
    """Bytes that are no request."""
    host, port = soak.address.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(dice.choice(_WIRE))
        async with asyncio.timeout(5):
            await reader.read(100)
    except (TimeoutError, OSError):
        pass
    finally:
        writer.close()


async def looks(soak: Soak, client: httpx.AsyncClient, dice: random.Random) -> None:
    """What is only read, and routes that are none."""
    path, status = dice.choice(
        [("/", 200), ("/health", 200), ("/metrics", 200), ("/v1/models", 200), ("/v1/vectors", 200),
         ("/v1/nothing", 404), ("/v1/models/x+y", 404), (CHAT, 405)]
    )  # fmt: skip
    response = await client.get(path)
    if response.status_code != status:
        soak.note(f"GET {path} gave {response.status_code}")


async def crowd(soak: Soak, client: httpx.AsyncClient, dice: random.Random) -> None:
    """More at once than may wait; all leave at once."""
    refused = 0

    async def one(many: httpx.AsyncClient) -> None:
        nonlocal refused
        ask = {**dice.choice(soak.asks), "stream": True}
        async with many.stream("POST", CHAT, json=ask) as response:
            if response.status_code == 429:
                refused += 1
                if not response.headers["retry-after"].isdecimal():
                    soak.note("a 429 does not say when to come back")

    async with httpx.AsyncClient(base_url=soak.address, timeout=60, limits=_MANY) as many:
        tasks = [asyncio.create_task(one(many)) for _ in range(400)]
        await asyncio.wait(tasks, timeout=20)
        for task in tasks:
            task.cancel()
        for found in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(found, Exception):
                soak.seen[f"in the crowd: {type(found).__name__}"] += 1
    soak.seen["in the crowd: refused by 429"] += refused


_MANY = httpx.Limits(max_connections=450)
KINDS: dict[Kind, float] = {
    known: 10, comes_back: 2, hangs_up: 3, choices: 1, fuzzed: 4, huge: 0.5, slow: 0.7, wire: 1,
    looks: 2, crowd: 0.02,
}  # fmt: skip
