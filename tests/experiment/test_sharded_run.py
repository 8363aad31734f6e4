"""An experiment with a model over two ranks: one run, which rank 0 keeps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from mlx_steer.run.reader import RunData, load_run
from tests.helpers.behaviors import behavior_folder
from tests.helpers.ranks import Ended, launch
from tests.helpers.small_run import carry_out, config, settings
from tests.helpers.tiny import tiny_folder

FEW = {
    "sweep": {"strengths": [1.0], "system_prompts": ["detailed"]},
    "generation": {"max_tokens": 4, "batch_size": 16},
}
# As if each rank had a config file of its own.
COMMAND = (
    "import os, sys; from mlx_steer.cli import main; "
    "sys.argv = ['mlx-steer', *(a.replace('RANK', os.environ['MLX_RANK']) for a in sys.argv[1:])]; "
    "main()"
)


def start(folder: Path, *arguments: object) -> Ended:
    return launch("-c", COMMAND, "run", folder / "config_RANK.yaml", "--out", *arguments)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    model = tiny_folder("llama", folder / "model")
    behavior = behavior_folder(folder / "behavior", prompts=1, gate=True)
    values = settings(model, behavior, gate={"layers": [3]}, **FEW)
    values["model"]["shard"] = "tensor"
    for rank in range(2):
        (folder / f"config_{rank}.yaml").write_text(yaml.safe_dump(values))
    return folder


def rows(run: RunData) -> dict[tuple[str, str], tuple[int, ...]]:
    return {(c.name, p): run.rows[k].tokens for c in run.conditions for p, k in c.rows.items()}


@pytest.mark.slow
def test_a_run_over_two_ranks_is_that_of_one(folder: Path) -> None:
    ended = start(folder, folder / "run")
    assert ended.out.strip().endswith("report.md"), ended.err
    found = load_run(folder / "run")
    whole = config(folder / "model", folder / "behavior", gate={"layers": [3]}, **FEW)
    carry_out(whole, folder / "whole")
    wanted = load_run(folder / "whole")
    assert rows(found) == rows(wanted)
    assert found.choice == wanted.choice
    assert found.vectors is not None and wanted.vectors is not None
    for layer in wanted.vectors:
        np.testing.assert_allclose(
            found.vectors[layer].array, wanted.vectors[layer].array, rtol=1e-4, atol=1e-5
        )
    assert (folder / "run" / "report.md").exists()
    # The second start finds everything there, on both ranks.
    again = start(folder, folder / "run")
    assert "done before" in again.err, again.err
    assert load_run(folder / "run").rows == found.rows


@pytest.mark.slow
def test_ranks_that_have_read_different_experiments_are_refused(folder: Path) -> None:
    text = (folder / "config_1.yaml").read_text()
    try:
        (folder / "config_1.yaml").write_text(text.replace("max_tokens: 4", "max_tokens: 5"))
        ended = start(folder, folder / "refused")
    finally:
        (folder / "config_1.yaml").write_text(text)
    assert "mlx-steer: rank 1 (" in ended.err
    assert "has another experiment than rank 0" in ended.err
    assert "Traceback" not in ended.err
    assert not (folder / "refused").exists()


@pytest.mark.slow
def test_when_the_run_is_taken_every_rank_ends(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "other.txt").write_text("mine")
    ended = start(folder, tmp_path)
    assert "holds other things than a run" in ended.err
    assert "mlx-steer: rank 1: another rank has ended" in ended.err
    assert "Traceback" not in ended.err
