"""`mlx-steer run --processes N`: the rows of one process, shared by several."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
import yaml

from mlx_steer.blas import cores
from tests.helpers.behaviors import behavior_folder
from tests.helpers.ranks import ranks_of
from tests.helpers.small_run import left_behind, settings
from tests.helpers.tiny import tiny_folder

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes are found in /proc"),
]

MLX_STEER = Path(sys.executable).parent / "mlx-steer"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`config.yaml`, and `run`: its run by one process."""
    folder = tmp_path_factory.mktemp("processes")
    model = tiny_folder("llama", folder / "model")
    behavior = behavior_folder(folder / "behavior", prompts=4, gate=True)
    changes = {
        "gate": {"layers": [3], "methods": ["mean_difference"]},
        "generation": {"max_tokens": 24, "batch_size": 7},
    }
    values = settings(model, behavior, **changes)
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    assert run(folder / "config.yaml", folder / "run", 1).returncode == 0
    return folder


def run(config: Path, out: Path, processes: int | str) -> subprocess.CompletedProcess[str]:
    command = _command(config, out, processes)
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


def _command(config: Path, out: Path, processes: int | str) -> Sequence[str]:
    return [*map(str, (MLX_STEER, "run", config, "--out", out, "--processes", processes))]


@pytest.mark.parametrize("processes", [3, "auto"])
def test_several_processes_leave_what_one_leaves(
    folder: Path, tmp_path: Path, processes: int | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "2")  # cores; tests have one else
    ended = run(folder / "config.yaml", tmp_path / "run", processes)
    assert ended.returncode == 0, ended.stderr
    count = min(2, cores()) if processes == "auto" else processes
    ranks = set(re.findall(r"extract: of .* rank (\d)", (tmp_path / "run/run.log").read_text()))
    assert len(ranks) == count or count == 1
    assert ended.stdout.strip().endswith("report.md")
    found, alone = left_behind(tmp_path / "run"), left_behind(folder / "run")
    assert found.keys() == alone.keys()
    for name, content in alone.items():
        if name != "report.md":  # it names the run's own directory
            assert found[name] == content, name
    if processes == 3:  # they share the memory, and the machine's other work comes and goes
        assert _usable(tmp_path / "run") < _usable(folder / "run") / 2


def _usable(run: Path) -> float:
    """Gigabytes of the memory that one process was to use."""
    return float(run.joinpath("run.log").read_text().split("peak")[1].split(" of ")[1].split()[0])


def test_one_that_is_killed_is_named_and_the_same_command_goes_on(
    folder: Path, tmp_path: Path
) -> None:
    where = tmp_path / "run"
    command = _command(folder / "config.yaml", where, 2)
    begun = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    rows = where / "rows.jsonl"
    while not (rows.exists() and rows.stat().st_size):
        assert begun.poll() is None
        time.sleep(0.01)
    (other,) = ranks_of(begun.pid)
    os.kill(other, signal.SIGKILL)
    _, said = begun.communicate(timeout=120)
    assert begun.returncode == 2
    assert "Traceback" not in said
    assert "mlx-steer: rank 1: ended by signal 9\n" in said
    assert said.endswith(
        "another rank has ended; finished rows are kept, run the same command again\n"
    )
    assert run(folder / "config.yaml", where, 2).returncode == 0
    assert _rows(where) == _rows(folder / "run")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_others_end_with_the_first(
    folder: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    begun = subprocess.Popen(
        _command(folder / "config.yaml", tmp_path / "run", 2),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        # A shell has what runs in its background ignore Ctrl-C, and so all that is started there.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    while not (tmp_path / "run" / "rows.jsonl").exists():
        assert begun.poll() is None
        time.sleep(0.01)
    (other,) = ranks_of(begun.pid)
    begun.send_signal(number)
    assert begun.wait(60) == code
    assert not Path(f"/proc/{other}").exists()


def test_what_all_of_them_find_wrong_is_said_once(folder: Path, tmp_path: Path) -> None:
    values = yaml.safe_load((folder / "config.yaml").read_text())
    values["model"]["name"] = str(tmp_path / "none")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    ended = run(tmp_path / "config.yaml", tmp_path / "run", 2)
    assert ended.returncode == 2
    assert ended.stderr.count("mlx-steer:") == 1
    assert "none" in ended.stderr


def _rows(run: Path) -> list[dict[str, object]]:
    lines = map(json.loads, (run / "rows.jsonl").read_text().splitlines())
    return sorted(lines, key=lambda row: str(row["key"]))
