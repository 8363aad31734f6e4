"""A run over ranks is that of one process, byte for byte, however it is interrupted."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from tests.helpers.behaviors import behavior_folder
from tests.helpers.ranks import Ended, launch, launched
from tests.helpers.small_run import left_behind, settings
from tests.helpers.tiny import tiny_folder

COMMAND = "from mlx_steer.cli import main; main()"
FEW = {
    "gate": {"layers": [3], "methods": ["mean_difference"]},
    "generation": {"max_tokens": 4, "batch_size": 4},
    "sweep": {"strengths": [1.0], "system_prompts": ["detailed"]},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`config.yaml`, and `alone`: its run by one process."""
    folder = tmp_path_factory.mktemp("ranks")
    model = tiny_folder("llama", folder / "model")
    behavior = behavior_folder(folder / "behavior", prompts=2, gate=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(settings(model, behavior, **FEW)))
    command = ["python", "-c", COMMAND, "run", str(folder / "config.yaml"), "--out"]
    subprocess.run([*command, str(folder / "alone")], check=True, capture_output=True)
    return folder


def check(folder: Path, run: Path) -> None:
    found, alone = left_behind(run), left_behind(folder / "alone")
    assert found.keys() == alone.keys()
    for name, content in alone.items():
        # The report names the run's own directory and times.
        if name != "report.md":
            assert found[name] == content, name


def start(folder: Path, run: Path, ranks: int) -> Ended:
    return launch("-c", COMMAND, "run", folder / "config.yaml", "--out", run, ranks=ranks)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 3])
def test_rows_over_ranks_are_those_of_one_process(folder: Path, tmp_path: Path, ranks: int) -> None:
    ended = start(folder, tmp_path / "run", ranks)
    assert ended.out.strip().endswith("report.md"), ended.err
    check(folder, tmp_path / "run")


@pytest.mark.slow
def test_a_run_goes_on_after_kills_of_any_rank_with_any_number_of_ranks(
    folder: Path, tmp_path: Path
) -> None:
    rng, kills = random.Random(3), 0
    for _ in range(10):
        command = ("-c", COMMAND, "run", folder / "config.yaml", "--out", tmp_path / "run")
        with launched(*command, ranks=rng.choice([2, 3])) as (process, said):
            time.sleep(rng.uniform(3, 14))
            if process.poll() is None:
                kills += _kill_one(process.pid, rng)
            process.wait(120)
            assert "Traceback" not in said().err
    assert kills >= 3
    ended = start(folder, tmp_path / "run", 2)
    assert ended.out.strip().endswith("report.md"), ended.err
    check(folder, tmp_path / "run")


def _kill_one(launcher: int, rng: random.Random) -> bool:
    """Kill a rank of a launcher without warning; whether there was one."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children")
    threads = Path(f"/proc/{launcher}/task").glob("*/children")
    ranks = sorted({int(p) for file in (children, *threads) for p in file.read_text().split()})
    if not ranks:
        return False
    os.kill(rng.choice(ranks), signal.SIGKILL)
    return True
