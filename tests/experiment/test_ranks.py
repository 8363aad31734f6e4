"""An experiment over ranks leaves the files that one process leaves, after kills too."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.experiment.test_screened_sweep import OPENINGS
from tests.helpers.behaviors import behavior_folder
from tests.helpers.ranks import Ended, launch, launched
from tests.helpers.small_run import left_behind, settings
from tests.helpers.tiny import tiny_folder

# Rows are exchanged within stages too, which here take no 30 seconds.
COMMAND = (
    "from mlx_steer.experiment import exchange; exchange.EVERY = 0.2; "
    "from mlx_steer.cli import main; main()"
)
# Everything that is dealt out, or done by rank 0 for all: vectors, gates, doses and their prices,
# screening, rows, scores.
ASKED = {
    "gate": {"layers": [3], "methods": ["mean_difference"]},
    "generation": {"max_tokens": 12, "batch_size": 4},
    "sweep": {
        "strategy": "race",
        "strengths": "auto",
        "system_prompts": ["detailed"],
        "race": {"cells": 2, "rounds": 2, "screened_prompts": 2},
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`config.yaml`, and `run`: its run by one process."""
    folder = tmp_path_factory.mktemp("ranks")
    model = tiny_folder("llama", folder / "model")
    behavior = behavior_folder(folder / "behavior", prompts=3, gate=True, openings=OPENINGS)
    (folder / "config.yaml").write_text(yaml.safe_dump(settings(model, behavior, **ASKED)))
    command = [sys.executable, "-c", COMMAND, "run", str(folder / "config.yaml"), "--out"]
    subprocess.run([*command, str(folder / "run")], check=True, capture_output=True)
    return folder


def check(folder: Path, run: Path) -> None:
    found, alone = left_behind(run), left_behind(folder / "run")
    assert found.keys() == alone.keys()
    for name, content in alone.items():
        if name != "report.md":  # it names the run's own directory
            assert found[name] == content, name


def start(folder: Path, run: Path, ranks: int) -> Ended:
    return launch("-c", COMMAND, "run", folder / "config.yaml", "--out", run, ranks=ranks)


@pytest.mark.slow
def test_rows_over_ranks_are_those_of_one_process(folder: Path, tmp_path: Path) -> None:
    ended = start(folder, tmp_path / "run", 2)
    assert ended.out.strip().endswith("report.md"), ended.err
    check(folder, tmp_path / "run")
    log = (tmp_path / "run" / "run.log").read_text()
    assert all(f"{part}: of " in log for part in ("extract", "sweep", "compare", "score"))


@pytest.mark.slow
def test_a_run_goes_on_after_kills_of_any_rank_with_another_number_of_ranks(
    folder: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    command = ("-c", COMMAND, "run", folder / "config.yaml", "--out", run)
    for ranks, victim, rows in [(2, 1, 1), (3, 0, 12), (2, 0, 30)]:
        with launched(*command, ranks=ranks) as (process, said):
            while _rows_in(run) < rows:
                assert process.poll() is None, said().err
                time.sleep(0.02)
            os.kill(_ranks_of(process.pid)[victim], signal.SIGKILL)
            process.wait(60)
            assert "Traceback" not in said().err
            assert "another rank has ended; finished rows are kept" in said().err
        assert _rows_in(run) >= rows
    ended = start(folder, run, 2)
    assert ended.out.strip().endswith("report.md"), ended.err
    check(folder, run)


def _rows_in(run: Path) -> int:
    path = run / "rows.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def _ranks_of(launcher: int) -> list[int]:
    files = Path(f"/proc/{launcher}/task").glob("*/children")
    return sorted({int(number) for file in files for number in file.read_text().split()})
