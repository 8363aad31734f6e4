"""A rank that hangs does not keep the others for ever."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mlx_steer.cli.watchdog import Watched, watched
from tests.helpers.ranks import free_ports, launch
from tests.helpers.small_run import Told

SCRIPT = """
import time
from mlx_steer.cli.progress import progress
from mlx_steer.team import team
us = team()
us.told()
with progress(quiet=True) as told:
    told.stage("sweep", 2, 0)
    if us.rank == 1:
        while True:
            time.sleep(0.1)
            told.advance(1)
    us.told()  # rank 1 never answers
"""


@pytest.mark.slow
def test_a_rank_that_waits_too_long_ends_and_so_do_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLX_STEER_DEADLINE", "1.5")
    start = time.monotonic()
    ended = launch("-c", SCRIPT, seconds=60)
    assert time.monotonic() - start < 60
    said = [line for line in ended.err.splitlines() if line.startswith("mlx-steer: ")]
    assert said == [
        "mlx-steer: rank 0: for 1.5 s no step has come to its end, so another rank hangs; finished "
        "rows are kept, run the same command again (MLX_STEER_DEADLINE=SECONDS waits longer)"
    ]


DYING = """
import os, signal
from mlx_steer.cli import cli, main
from mlx_steer.team import team

def work(**_):
    us = team()
    us.told()
    if us.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    us.gathered(b"here")  # what rank 0 tells comes back to it as it was, whoever is gone

cli.main = work
main()
"""


def test_when_a_rank_dies_the_others_say_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Started without mlx.launch, which drops what ranks say while it ends them."""
    first = free_ports(2)
    hosts = tmp_path / "hosts.json"
    hosts.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in (first, first + 1)]))
    monkeypatch.setenv("MLX_HOSTFILE", str(hosts))
    ranks = []
    for rank in ("0", "1"):
        monkeypatch.setenv("MLX_RANK", rank)
        with (tmp_path / rank).open("wb") as said:
            ranks.append(subprocess.Popen([sys.executable, "-c", DYING], stderr=said))
    assert ranks[1].wait(60) == -signal.SIGKILL
    ranks[0].terminate()  # as mlx.launch does
    assert ranks[0].wait(60) == 2
    text = (tmp_path / "0").read_text()
    assert text.splitlines()[-1] == (
        "mlx-steer: another rank has ended; finished rows are kept, run the same command again"
    )
    assert text.count("another rank") == 1
    assert "Traceback" not in text


def test_alone_nothing_is_watched() -> None:
    told = Told()
    with watched(told) as same:
        assert same is told


def test_everything_is_passed_on() -> None:
    told = Told()
    signs = Watched(told)
    signs.stage("sweep", 3, 1)
    signs.advance(2, tokens=5)
    signs.note("a note")
    signs.tell("a word")
    assert told.stages == [("sweep", 3, 1)]
    assert (told.made, told.steps) == ({"sweep": 2}, 1)
    assert (told.notes, told.told) == (["a note"], ["a word"])
