"""Commands on several ranks of this machine, over loopback, as `mlx.launch` starts them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Ended:
    """What all ranks have printed. mlx.launch's exit code says nothing: it is 0 in any case."""

    out: str
    err: str


def launch(*command: object, ranks: int = 2, seconds: float = 600) -> Ended:
    """Run a command on every rank to its end; a hang is an error.

    Args:
        command: What follows `python`.
        ranks: How many.
        seconds: Until it counts as a hang.
    """
    with launched(*command, ranks=ranks) as (process, said):
        process.wait(seconds)
        return said()


@contextmanager
def launched(
    *command: object, ranks: int = 2
) -> Iterator[tuple[subprocess.Popen[bytes], Callable[[], Ended]]]:
    """A command that runs on every rank, and a function that gives what it has printed so far."""
    launcher = [Path(sys.executable).parent / "mlx.launch", "-n", ranks, "--backend", "ring"]
    rest = ["--starting-port", free_ports(ranks), "--", sys.executable, *command]
    with TemporaryFile() as out, TemporaryFile() as err:

        def said() -> Ended:
            texts = []
            for file in (out, err):
                file.seek(0)
                texts.append(file.read().decode(errors="replace"))
            return Ended(*texts)

        process = subprocess.Popen(
            [*map(str, (*launcher, *rest))],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=err,
            start_new_session=True,
        )
        _calm(process, ranks)
        try:
            yield process, said
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # ranks too, should any be left
            process.wait()


def ranks_of(launcher: int) -> list[int]:
    """The processes of the ranks that a launcher has started, by rank."""
    files = Path(f"/proc/{launcher}/task").glob("*/children")
    return sorted({int(number) for file in files for number in file.read_text().split()})


def _calm(launcher: subprocess.Popen[bytes], ranks: int) -> None:
    """mlx.launch asks without a pause whether ranks take input, which takes a core."""
    while sys.platform == "linux" and len(ranks_of(launcher.pid)) < ranks:
        if launcher.poll() is not None:
            return
        time.sleep(0.01)
    for thread in Path(f"/proc/{launcher.pid}/task").glob("*"):
        with suppress(ProcessLookupError):
            os.setpriority(os.PRIO_PROCESS, int(thread.name), 19)


def free_ports(count: int) -> int:
    """The first of so many neighbouring ports that nobody listens at."""
    while True:
        with socket.socket() as first:
            first.bind(("127.0.0.1", 0))
            port: int = first.getsockname()[1]
        try:
            for other in range(port, port + count):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", other))
        except OSError:
            continue
        return port
