"""Time the server beside `mlx_lm.server` on the same model: 32 streams at once, and a second turn.

    python scripts/bench_serve.py [--model FOLDER_OR_NAME] [--rounds 3] [--streams 32]

All servers are up during the whole run and are asked in turn, so that what else the machine does
falls on all of them alike. On Linux mlx_lm.server gets OpenBLAS too, as ours has it.
"""

from __future__ import annotations

import asyncio
import json
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import click
import httpx

from mlx_steer.model.hub import BUILT_IN, locate

_OURS = "from mlx_steer.cli import main; main()"
_THEIRS = "import mlx_steer.blas; import mlx_lm.server; mlx_lm.server.main()"
_TOPICS = ("bread", "tea", "a kite", "a garden", "a letter", "soup", "a bench", "a song")
_LONG = "The river runs past the mill, and the miller counts the sacks of grain in the yard. " * 50


def prompt(place: int) -> str:
    """Prompts of like length that no two streams share."""
    return f"Tell me, for reader number {place}, how one makes {_TOPICS[place % len(_TOPICS)]}."


def steering(place: int) -> list[dict[str, Any]]:
    """Each stream's own vector, layer and strength, none so strong that the text falls apart."""
    vector = ("refusal", "uncertainty", "hierarchy", "tool_restraint")[place % 4]
    return [{"vector": vector, "layer": 14 + place % 3, "strength": 0.1 + 0.01 * place}]


@contextmanager
def server(program: str, arguments: list[str]) -> Iterator[str]:
    """A server in a process of its own; yields its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-c", program, *arguments, "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        until = time.monotonic() + 120
        while True:
            try:
                if httpx.get(f"{address}/health", timeout=5).status_code == 200:
                    break
            except httpx.TransportError:
                pass
            if process.poll() is not None or time.monotonic() > until:
                raise click.ClickException(f"a server did not start: {' '.join(command)}")
            time.sleep(0.3)
        yield address
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


async def streams(address: str, model: str, count: int, tokens: int, steered: bool) -> float:
    """Response tokens a second of so many streams at once."""
    made = 0

    async def one(client: httpx.AsyncClient, place: int) -> None:
        nonlocal made
        body: dict[str, Any] = {
            "model": model,
            "messages": [{"role": "user", "content": prompt(place)}],
            "max_tokens": tokens,
            **({"steering": steering(place)} if steered else {}),
        }
        async for chunk in pieces(client, address, body):
            if chunk.get("usage"):
                made += chunk["usage"]["completion_tokens"]

    async with httpx.AsyncClient(limits=httpx.Limits(max_connections=count)) as client:
        began = time.perf_counter()
        await asyncio.gather(*(one(client, place) for place in range(count)))
        return made / (time.perf_counter() - began)


async def second_turn(address: str, model: str, round_: int, steered: bool) -> float:
    """Seconds to the first text of the second turn of a conversation of some 1,000 tokens."""
    messages = [{"role": "user", "content": f"Round {round_}. {_LONG}Sum it up."}]
    more = {"steering": steering(0)} if steered else {}

    async def turn(client: httpx.AsyncClient) -> tuple[str, float]:
        text, first, began = "", 0.0, time.perf_counter()
        body = {"model": model, "messages": messages, "max_tokens": 24, **more}
        async for chunk in pieces(client, address, body):
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
@click.option("--model", default=BUILT_IN, help="The built-in one, which has its vectors.")
@click.option("--rounds", default=3)
@click.option("--count", "--streams", default=32)
@click.option("--tokens", default=48, help="Response tokens at most.")
def main(model: str, rounds: int, count: int, tokens: int) -> None:
    folder = str(locate(model).folder)
    theirs_more = ["--model", folder, "--decode-concurrency", str(count)]
    speeds: dict[str, list[float]] = {"steered": [], "unsteered": [], "mlx_lm.server": []}
    waits: dict[str, list[float]] = {"steered": [], "unsteered": [], "mlx_lm.server": []}
    with (
        server(_OURS, ["serve", "--model", model]) as ours,
        server(_THEIRS, theirs_more) as theirs,
    ):
        kinds = {
            "steered": (ours, model, True),
            "unsteered": (ours, model, False),
            "mlx_lm.server": (theirs, folder, False),
        }
        for address, name, steered in kinds.values():
            asyncio.run(streams(address, name, 2, 4, steered))  # warms up
        for round_ in range(rounds):
            for kind, (address, name, steered) in kinds.items():
                speeds[kind].append(asyncio.run(streams(address, name, count, tokens, steered)))
                waits[kind].append(asyncio.run(second_turn(address, name, round_, steered)))
                click.echo(f"{kind}: {speeds[kind][-1]:.1f} tokens/s, {waits[kind][-1]:.2f} s")
    speed = {kind: statistics.median(found) for kind, found in speeds.items()}
    wait = {kind: statistics.median(found) for kind, found in waits.items()}
    click.echo(f"\n{count} streams, medians of {rounds} rounds")
    click.echo(
        f"steered / unsteered:       {speed['steered'] / speed['unsteered']:.2f} of the speed"
    )
    click.echo(f"steered / mlx_lm.server:   {speed['steered'] / speed['mlx_lm.server']:.2f}")
    click.echo(f"unsteered / mlx_lm.server: {speed['unsteered'] / speed['mlx_lm.server']:.2f}")
    click.echo("second turn, time to first text against mlx_lm.server's:")
    for kind in ("steered", "unsteered"):
        click.echo(f"{kind}: {wait[kind] / wait['mlx_lm.server']:.2f}")


if __name__ == "__main__":
    main()
