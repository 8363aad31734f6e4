"""Ask a server for a long time as the world would: in order, in a hurry, and with garbage.

    python scripts/soak_server.py [--minutes 30] [--clients 8] [--model NAME] [--pause 0.5]

Clients ask what has a known answer, hang up, time out and come back, send fuzzed JSON, bodies that
are huge or slow, and bytes that are no HTTP. What was known must come out as it did when it was
asked alone; nothing may be lost; memory must stay flat; and after `kill -9` a new start must give
the same answers. Ends with exit code 1 if anything of that does not hold.
"""

from __future__ import annotations

import asyncio
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import httpx
from soak_clients import KINDS, LONGEST_WAIT, Soak, answer, known_asks

from mlx_steer.model.hub import BUILT_IN

_PROGRAM = "from mlx_steer.cli import main; main()"


def start(model: str, port: int, log: Path) -> subprocess.Popen[bytes]:
    """The server in a process of its own, once it answers."""
    arguments = ["serve", "--model", model, "--port", str(port)]
    with log.open("ab") as to:
        process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, *arguments], stdout=to, stderr=subprocess.STDOUT
        )
    until = time.monotonic() + 120
    while True:
        try:
            if httpx.get(f"http://127.0.0.1:{port}/health", timeout=5).status_code == 200:
                return process
        except httpx.TransportError:
            pass
        if process.poll() is not None or time.monotonic() > until:
            raise click.ClickException(f"the server did not start; {log} says why")
        time.sleep(0.2)


async def learn(soak: Soak) -> None:
    """The known answers: each asked alone; then second turns of some."""
    async with httpx.AsyncClient(base_url=soak.address, timeout=LONGEST_WAIT) as client:
        vectors = (await client.get("/v1/vectors")).json()["vectors"]
        first = known_asks(vectors)
        for ask in first:
            soak.asks.append(ask)
            soak.answers.append(await answer(client, ask, stream=False))
        for ask, (text, _) in list(zip(first, soak.answers, strict=True))[:8]:
            said = {"role": "assistant", "content": text}
            more = {"role": "user", "content": "And in other words?"}
            soak.asks.append({**ask, "messages": [*ask["messages"], said, more]})
            soak.answers.append(await answer(client, soak.asks[-1], stream=False))


async def client_of(soak: Soak, seed: int, until: float) -> None:
    """One client: does one thing after the other, with pauses."""
    dice = random.Random(seed)
    while time.monotonic() < until:
        (kind,) = dice.choices(list(KINDS), list(KINDS.values()))
        soak.seen[kind.__name__] += 1
        try:
            async with httpx.AsyncClient(base_url=soak.address, timeout=LONGEST_WAIT) as client:
                await kind(soak, client, dice)
        except httpx.HTTPStatusError as error:
            status = error.response.status_code
            if status == 429:
                soak.seen["told to wait"] += 1
                await asyncio.sleep(5)
            else:
                soak.note(f"{kind.__name__}: {status}")
        except Exception as error:
            soak.note(f"{kind.__name__}: {error!r}")
        await asyncio.sleep(dice.expovariate(1 / soak.pause))


async def watch(soak: Soak, pid: int, until: float) -> None:
    """The server's memory, now and then."""
    began = time.monotonic()
    while time.monotonic() < until:
        said = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True)
        soak.memory.append((time.monotonic() - began, 1024 * int(said.stdout or 0)))
        await asyncio.sleep(10)


async def quiet(soak: Soak) -> None:
    """All who asked are gone: so must be their rows."""
    until = time.monotonic() + 120
    async with httpx.AsyncClient(base_url=soak.address, timeout=60) as client:
        while True:
            text = (await client.get("/metrics")).text
            values = dict(x.rsplit(" ", 1) for x in text.splitlines() if not x.startswith("#"))
            busy = [values[f"mlx_steer_requests_{name}"] for name in ("running", "waiting")]
            if busy == ["0", "0"]:
                break
            if time.monotonic() > until:
                soak.note(f"nobody asks any more, and {busy} run and wait")
                break
            await asyncio.sleep(0.5)
    for name, value in values.items():
        click.echo(f"  {name.removeprefix('mlx_steer_')}: {value}")


async def again(soak: Soak) -> None:
    """All known asks at once."""
    async with httpx.AsyncClient(base_url=soak.address, timeout=LONGEST_WAIT) as client:
        found = await asyncio.gather(*(answer(client, ask, True) for ask in soak.asks))
    for i, (one, wanted) in enumerate(zip(found, soak.answers, strict=True)):
        if one != wanted:
            soak.note(f"after a new start ask {i} gave {one!r}, before {wanted!r}")


async def killed(soak: Soak, process: subprocess.Popen[bytes]) -> None:
    """Kill the server while it answers."""

    async def cut(client: httpx.AsyncClient, ask: dict[str, Any]) -> None:
        try:
            await answer(client, {**ask, "max_tokens": 100}, True)
            soak.note("the server was killed, and answered")
        except httpx.TransportError:
            pass

    async with httpx.AsyncClient(base_url=soak.address, timeout=LONGEST_WAIT) as client:
        tasks = [asyncio.create_task(cut(client, ask)) for ask in soak.asks[:6]]
        await asyncio.sleep(1.0)
        process.kill()
        await asyncio.gather(*tasks)
    process.wait()


async def storm(soak: Soak, clients: int, seconds: float, pid: int) -> None:
    """All clients, until the time is over."""
    until = time.monotonic() + seconds
    await asyncio.gather(
        watch(soak, pid, until), *(client_of(soak, seed, until) for seed in range(clients))
    )


def told(soak: Soak) -> None:
    """What came out."""
    for name, count in sorted(soak.seen.items()):
        click.echo(f"  {name}: {count}")
    if soak.waits:
        waits = sorted(soak.waits)
        click.echo(
            f"known answers: {len(waits)}, median {statistics.median(waits):.2f} s, "
            f"longest {waits[-1]:.2f} s"
        )
    quarters = [
        statistics.median(size for _, size in soak.memory[i * n : (i + 1) * n])
        for n in [max(1, len(soak.memory) // 4)]
        for i in range(min(4, len(soak.memory)))
    ]
    click.echo(f"memory by quarters: {', '.join(f'{q / 2**20:.0f} MiB' for q in quarters)}")
    if quarters[-1] > 1.05 * quarters[len(quarters) // 2 - 1 or 0]:
        soak.note("memory grew by more than 5 % from the second quarter to the last")
    log = soak.log.read_text(errors="replace")
    click.echo(f"the server wrote {len(log)} characters, {log.count('Traceback')} tracebacks")
    if "Traceback" in log:
        soak.note(f"a traceback is in {soak.log}")


@click.command(help=__doc__)
@click.option("--minutes", default=30.0)
@click.option("--clients", default=8)
@click.option("--model", default=BUILT_IN)
@click.option("--pause", default=0.5, help="Seconds between what a client does, on average.")
def main(minutes: float, clients: int, model: str, pause: float) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    log = Path(tempfile.mkdtemp()) / "server.log"
    soak = Soak(f"http://127.0.0.1:{port}", log, pause)
    process = start(model, port, log)
    try:
        asyncio.run(learn(soak))
        click.echo(f"{len(soak.asks)} answers are known; {clients} clients for {minutes:g} minutes")
        asyncio.run(storm(soak, clients, 60 * minutes, process.pid))
        asyncio.run(quiet(soak))
        asyncio.run(again(soak))
        for _ in range(2):
            asyncio.run(killed(soak, process))
            process = start(model, port, log)
            asyncio.run(again(soak))
        process.send_signal(signal.SIGTERM)
        if process.wait(60) != 0:
            soak.note(f"it ended with {process.returncode} when it was told to")
    finally:
        process.kill()
    told(soak)
    click.echo(f"{len(soak.wrong)} things were wrong")
    sys.exit(bool(soak.wrong))


if __name__ == "__main__":
    main()
