"""A command that several processes of this machine carry out together, sharing its rows.

On a CPU, matrix products are all that more cores make faster; processes of fewer cores each do
everything else side by side, too. A GPU is shared by nothing better than one process.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

from mlx_steer.blas import compute_on, cores
from mlx_steer.errors import TeamError
from mlx_steer.team import is_rank_lost, launched_rank

AUTO = "auto"
# Each holds the weights.
_MOST = 4
# Seconds for the others to end in, once this one has made everything.
_GRACE = 60.0
# And from when a process is no longer to be reached until it is gone.
_SETTLED = 0.5


class Processes(click.ParamType[Any]):
    """How many processes, or `auto`."""

    name = "processes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number, or the word."""
        text = str(value)
        if text == AUTO:
            return text
        if not text.isdecimal() or not 1 <= int(text) <= 64:
            self.fail(f"{text!r} is no number of processes; write 1 to 64, or auto", param, ctx)
        return int(text)


processes_option = click.option(
    "--processes",
    type=Processes(),
    metavar="N",
    default=1,
    show_default=True,
    help="Share the rows among so many processes of this machine; auto: one a core where there is "
    f"no GPU, {_MOST} at most.",
)


@contextmanager
def shared_among(processes: int | str) -> Iterator[None]:
    """Have other processes carry out the command that this one was started with, as its ranks.

    This one is rank 0. What the others say is told if one of them is why this one ends. Nothing is
    done in a process that is a rank already.

    Args:
        processes: How many in all, or "auto".
    """
    count = _for_this_machine() if processes == AUTO else int(processes)
    if count == 1 or launched_rank() is not None:
        yield
        return
    with TemporaryDirectory() as beside:
        hosts = Path(beside) / "hosts.json"
        hosts.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in _free_ports(count)]))
        compute_on(max(1, cores() // count))
        os.environ |= {"MLX_HOSTFILE": str(hosts), "MLX_RANK": "0"}
        others = [_start(rank, Path(beside)) for rank in range(1, count)]
        try:
            yield
            for other in others:
                with suppress(subprocess.TimeoutExpired):
                    other.wait(_GRACE)
        except (RuntimeError, TeamError) as error:
            if isinstance(error, TeamError) or is_rank_lost(error):
                _tell_first(others, Path(beside))
            raise
        finally:
            for other in others:
                other.kill()
                other.wait()


def _for_this_machine() -> int:
    import mlx.core as mx

    return min(_MOST, cores()) if mx.default_device() == mx.cpu else 1


def _start(rank: int, beside: Path) -> subprocess.Popen[bytes]:
    with _said(rank, beside).open("wb") as said:
        return subprocess.Popen(
            [sys.executable, *sys.orig_argv[1:]],
            # Its copy of the run goes with the folder, whatever ends it.
            env={**os.environ, "MLX_RANK": str(rank), "TMPDIR": str(beside)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=said,
            start_new_session=True,  # Ctrl-C is for this process, which ends the others
        )


def _said(rank: int, beside: Path) -> Path:
    return beside / f"rank_{rank}.txt"


def _tell_first(others: list[subprocess.Popen[bytes]], beside: Path) -> None:
    """What the first of the processes that have ended said last."""
    time.sleep(_SETTLED)
    for rank, other in enumerate(others, 1):
        if other.poll() is not None:
            last = _said(rank, beside).read_text("utf-8", "replace").strip().splitlines()[-1:]
            told = last[0] if last else f"mlx-steer: rank {rank}: ended by {_how(other.returncode)}"
            click.echo(told, err=True)
            return


def _how(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"code {code}"


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()
