"""A command that several processes of this machine carry out together, sharing its rows.

On a CPU, matrix products are all that more cores make faster; processes of fewer cores each do
everything else side by side, too. A GPU is shared by nothing better than one process.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click

from mlx_steer.blas import compute_on, cores
from mlx_steer.errors import TeamError
from mlx_steer.team import RANK_LOST, is_rank_lost, launched_rank

if TYPE_CHECKING:
    from mlx_steer.config import ExperimentConfig

AUTO = "auto"
_MOST = 4
# Seconds for the others to end in, once this one has made everything.
_GRACE = 60.0
# And from when one is no longer to be reached until it is known which has ended by itself.
_SETTLED = 3.0


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
def shared_among(count: int) -> Iterator[None]:
    """Have other processes carry out the command that this one was started with, as its ranks.

    This one is rank 0. What the others say is told if one of them is why this one ends. Nothing is
    done in a process that is a rank already.

    Args:
        count: How many in all.
    """
    if count == 1 or launched_rank() is not None:
        yield
        return
    with TemporaryDirectory() as beside:
        hosts = Path(beside) / "hosts.json"
        hosts.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in _free_ports(count)]))
        compute_on(max(1, cores() // count))
        os.environ |= {"MLX_HOSTFILE": str(hosts), "MLX_RANK": "0"}
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, _end)
        others: list[subprocess.Popen[bytes]] = []
        try:
            others += (_start(rank, Path(beside)) for rank in range(1, count))
            yield
            for other in others:
                with suppress(subprocess.TimeoutExpired):
                    other.wait(_GRACE)
        except (RuntimeError, TeamError) as error:
            if isinstance(error, TeamError) or is_rank_lost(error):
                _tell_why(others, Path(beside))
            raise
        finally:
            for other in others:
                other.kill()
                other.wait()


def automatic(config: ExperimentConfig) -> int:
    """How many processes suit an experiment here: each holds the weights, and as much again.

    One where there is a GPU, or where the model is not on this machine yet.

    Raises:
        ModelError: If the model's files are damaged.
    """
    import mlx.core as mx

    from mlx_steer.experiment.model_facts import weights_of
    from mlx_steer.model.machine import working_set

    if mx.default_device() != mx.cpu or launched_rank() is not None:
        return 1
    weights = weights_of(config.model)
    if weights is None:
        return 1
    return max(1, min(_MOST, cores(), working_set() // (2 * weights)))


def _end(number: int, _: object) -> None:
    sys.exit(128 + number)


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


def _tell_why(others: Sequence[subprocess.Popen[bytes]], beside: Path) -> None:
    """What a process said last that has ended, and not because another one had."""
    deadline = time.monotonic() + _SETTLED
    while time.monotonic() < deadline:
        for rank, other in enumerate(others, 1):
            if other.poll() is not None:
                said = _said(rank, beside).read_text("utf-8", "replace").strip()
                how = f"mlx-steer: rank {rank}: ended by {_how(other.returncode)}"
                if RANK_LOST not in said:
                    click.echo(said.splitlines()[-1] if said else how, err=True)
                    return
        time.sleep(0.05)


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
