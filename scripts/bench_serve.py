"""Time the server beside `mlx_lm.server` on the same model: 32 streams at once, and a second turn.

    python scripts/bench_serve.py [--rounds 5] [--streams 32] [--tokens 48] [--json]

Each of the steered streams has a vector, a layer and a strength of its own, and every other one a
gate, of which half are open; at the end each is asked alone, and must give the same. All servers
are up during the whole run and are asked in turn, so that what else the machine does falls on all
of them alike. On Linux mlx_lm.server gets OpenBLAS too, as ours has it.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import httpx
import numpy as np
from measuring import publish, ratio

from mlx_steer.conditions import Condition, Gate, Intervention
from mlx_steer.engine.guard import load_model
from mlx_steer.engine.jobs import Sampling
from mlx_steer.model.hub import BUILT_IN, locate
from mlx_steer.serve.direct import Direct
from mlx_steer.serve.messages import Ask, Begun
from mlx_steer.serve.shipped import shipped_vectors
from mlx_steer.vectors import GateInfo, load_vectors

_OURS = "from mlx_steer.cli import main; main()"
_THEIRS = "import mlx_steer.blas; import mlx_lm.server; mlx_lm.server.main()"
_TOPICS = ("bread", "tea", "a kite", "a garden", "a letter", "soup", "a bench", "a song")
_LONG = "The river runs past the mill, and the miller counts the sacks of grain in the yard. " * 50


def prompt(place: int, round_: int = 0) -> str:
    """Prompts of like length that no two streams and rounds share, but for their beginning."""
    topic = _TOPICS[place % len(_TOPICS)]
    return f"Tell me, for reader number {place} of group {round_}, how one makes {topic}."


def steering(place: int) -> list[dict[str, Any]]:
    """Each stream's own vector, layer, strength and gate; none so strong that the text breaks."""
    vector = f"v{place % 4}"
    gate = {"gate": "half"} if place % 2 else {}
    # At least 0.1, and never twice the same.
    return [{"vector": vector, "layer": 14 + place % 3, "strength": 0.1 + 0.01 * place, **gate}]


def gated_vectors(folder: Path, count: int) -> list[str]:
    """The shipped vectors with a gate that is open for half of the prompts, as --vectors."""
    model = load_model(BUILT_IN)
    options: list[str] = []
    for i, source in enumerate(shipped_vectors(BUILT_IN)[:4]):
        vectors = load_vectors(source)
        act = vectors[15]
        unit = (act.array / act.norm).astype(np.float32)
        open_gate = Gate(15, unit, 0.0, "half")
        condition = Condition("", None, (Intervention(15, act.array, 0.1),), (open_gate,))
        asks = [
            Ask(tuple(model.chat.prompt_ids(prompt(place))), condition, Sampling(1))
            for place in range(count)
            if place % 4 == i
        ]
        events = [event for _, event in Direct(model).stream(asks) if isinstance(event, Begun)]
        threshold = statistics.median(event.gates[0] for event in events)
        gate = Gate(15, unit, threshold, "half")
        info = GateInfo(
            name="half", file="gate_half.npy", sha256="0" * 64, layer=15, threshold=threshold,
            method="median", auc=0.5, false_positive_rate=0.5, prompts={},
            system_prompt_sha256=None,
        )  # fmt: skip
        vectors.with_gate(gate, info).save(folder / f"v{i}")
        options += ["--vectors", f"v{i}={folder / f'v{i}'}"]
    return options


@dataclass(frozen=True)
class Server:
    """A server in a process of its own."""

    address: str
    pid: int

    def cpu_seconds(self) -> float | None:
        """What it has computed so far, where the system tells it finely enough."""
        try:
            fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return None
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def server(program: str, arguments: list[str]) -> Iterator[Server]:
    """Start one, and end it afterwards."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-c", program, *arguments, "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        until = time.monotonic() + 300
        while True:
            try:
                if httpx.get(f"{address}/health", timeout=5).status_code == 200:
                    break
            except httpx.TransportError:
                pass
            if process.poll() is not None or time.monotonic() > until:
                raise click.ClickException(f"a server did not start: {' '.join(command)}")
            time.sleep(0.3)
        yield Server(address, process.pid)
    finally:
        process.terminate()
        process.wait(30)


async def pieces(
    client: httpx.AsyncClient, address: str, body: dict[str, Any]
) -> AsyncIterator[Any]:
    """The chunks of a streamed response."""
    url = f"{address}/v1/chat/completions"
    more = {"temperature": 0, "stream": True, "stream_options": {"include_usage": True}}
    async with client.stream("POST", url, json={**more, **body}, timeout=600) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                yield json.loads(line.removeprefix("data: "))


async def one_stream(
    client: httpx.AsyncClient, address: str, body: dict[str, Any]
) -> tuple[str, int]:
    """The text and the number of its tokens."""
    while True:
        text, made = "", 0
        try:
            async for chunk in pieces(client, address, body):
                if chunk.get("usage"):
                    made = chunk["usage"]["completion_tokens"]
                text += (chunk["choices"] and chunk["choices"][0]["delta"].get("content")) or ""
            return text, made
        except httpx.TransportError:
            # mlx_lm.server takes 5 new connections at once, and resets the others.
            if text:
                raise
            await asyncio.sleep(0.05)


@dataclass(frozen=True)
class Side:
    """A server, and how it is asked."""

    server: Server
    model: str
    steered: bool = False

    @property
    def address(self) -> str:
        """The server's."""
        return self.server.address

    def body(self, place: int, tokens: int, round_: int) -> dict[str, Any]:
        """The request of one stream."""
        messages = [{"role": "user", "content": prompt(place, round_)}]
        more = {"steering": steering(place)} if self.steered else {}
        return {"model": self.model, "messages": messages, "max_tokens": tokens, **more}


@dataclass(frozen=True)
class Streamed:
    """What so many streams at once took, and gave.

    Attributes:
        seconds: For each response token.
        cpu_seconds: Of the server, for each token; the same where the system does not tell.
        texts: The responses.
    """

    seconds: float
    cpu_seconds: float
    texts: list[str]


async def streams(side: Side, count: int, tokens: int, round_: int) -> Streamed:
    """Ask for so many streams at once."""
    async with httpx.AsyncClient(limits=httpx.Limits(max_connections=count)) as client:
        began, before = time.perf_counter(), side.server.cpu_seconds()
        found = await asyncio.gather(
            *(
                one_stream(client, side.address, side.body(place, tokens, round_))
                for place in range(count)
            )
        )
        seconds, after = time.perf_counter() - began, side.server.cpu_seconds()
    made = sum(number for _, number in found)
    used = seconds if before is None or after is None else after - before
    return Streamed(seconds / made, used / made, [text for text, _ in found])


async def each_alone(side: Side, count: int, tokens: int, round_: int) -> list[str]:
    """The texts of the same, one after the other."""
    async with httpx.AsyncClient() as client:
        return [
            (await one_stream(client, side.address, side.body(place, tokens, round_)))[0]
            for place in range(count)
        ]


async def second_turn(side: Side, round_: int) -> float:
    """Seconds to the first text of the second turn of a conversation of some 1,000 tokens."""
    messages = [{"role": "user", "content": f"Round {round_}. {_LONG}Sum it up."}]
    more = {"steering": steering(0)} if side.steered else {}

    async def turn(client: httpx.AsyncClient) -> tuple[str, float]:
        text, first, began = "", 0.0, time.perf_counter()
        body = {"model": side.model, "messages": messages, "max_tokens": 24, **more}
        async for chunk in pieces(client, side.address, body):
            said = chunk["choices"] and chunk["choices"][0]["delta"].get("content")
            if said:
                first = first or time.perf_counter() - began
                text += said
        return text, first

    async with httpx.AsyncClient() as client:
        text, _ = await turn(client)
        messages += [
            {"role": "assistant", "content": text},
            {"role": "user", "content": "And in three words?"},
        ]
        return (await turn(client))[1]


@click.command(help=__doc__)
@click.option("--rounds", default=5)
@click.option("--streams", "count", default=32)
@click.option("--tokens", default=48, help="Response tokens at most.")
@click.option("--json", "as_json", is_flag=True)
def main(rounds: int, count: int, tokens: int, as_json: bool) -> None:
    folder = str(locate(BUILT_IN).folder)
    theirs_more = ["--model", folder, "--decode-concurrency", str(count)]
    kinds = ("steered", "unsteered", "mlx_lm.server")
    done: dict[str, list[Streamed]] = {kind: [] for kind in kinds}
    waits: dict[str, list[float]] = {kind: [] for kind in kinds}
    with (
        tempfile.TemporaryDirectory() as home,
        server(_OURS, ["serve", *gated_vectors(Path(home), count)]) as ours,
        server(_THEIRS, theirs_more) as theirs,
    ):
        sides = (Side(ours, BUILT_IN, True), Side(ours, BUILT_IN), Side(theirs, folder))
        for side in sides:
            # Warms up: every side has read its own system prompt under every condition then.
            asyncio.run(streams(side, count, 2, 0))
        for round_ in range(rounds):
            for kind, side in list(zip(kinds, sides, strict=True))[:: -1 if round_ % 2 else 1]:
                found = asyncio.run(streams(side, count, tokens, 1 + round_))
                done[kind].append(found)
                waits[kind].append(asyncio.run(second_turn(side, round_)))
                click.echo(
                    f"{kind}: {1 / found.seconds:.1f} tokens/s, {1 / found.cpu_seconds:.1f} by CPU "
                    f"time; second turn {waits[kind][-1]:.2f} s",
                    err=True,
                )
        alone = asyncio.run(each_alone(sides[0], count, tokens, rounds))
    together = done["steered"][-1].texts
    paces = {kind: [one.seconds for one in every] for kind, every in done.items()}
    used = {kind: [one.cpu_seconds for one in every] for kind, every in done.items()}
    same = sum(a == b for a, b in zip(alone, together, strict=True))
    pairs = {
        f"{count} steered streams' speed / {count} unsteered": (paces, "unsteered", "steered"),
        "... / mlx_lm.server's, unsteered": (paces, "mlx_lm.server", "steered"),
        "unsteered speed / mlx_lm.server's": (paces, "mlx_lm.server", "unsteered"),
        "the same by CPU time: steered / unsteered": (used, "unsteered", "steered"),
        "... steered / mlx_lm.server": (used, "mlx_lm.server", "steered"),
        "second turn, time to first text, steered / mlx_lm.server's": (
            waits, "steered", "mlx_lm.server",
        ),
        "... unsteered / mlx_lm.server's": (waits, "unsteered", "mlx_lm.server"),
    }  # fmt: skip
    rows = [["what", f"median of {rounds} rounds"]]
    rows += [[name, str(ratio(of[a], of[b]))] for name, (of, a, b) in pairs.items()]
    for kind in kinds:
        pace, wait = statistics.median(paces[kind]), statistics.median(waits[kind])
        rows.append([kind, f"{1 / pace:.1f} tokens/s; second turn after {wait:.2f} s"])
    rows.append(["steered streams as each gives alone", f"{same} of {count}"])
    publish(
        {
            "seconds_a_token": paces,
            "cpu_seconds_a_token": used,
            "seconds_to_second_turn": waits,
            "same": same,
        },
        rows,
        "python scripts/bench_serve.py",
        as_json,
    )


if __name__ == "__main__":
    main()
