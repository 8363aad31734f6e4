"""The smallest whole experiment: a model, a behavior, and the run they give."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from mlx_steer.config import ExperimentConfig
from mlx_steer.metrics import compute_metrics
from mlx_steer.metrics.metrics_file import metrics_text
from mlx_steer.run.reader import load_run
from tests.helpers.behaviors import behavior_folder
from tests.helpers.small_run import carry_out, config
from tests.helpers.tiny import tiny_folder

SMALL = {"max_tokens": 4, "batch_size": 16}
SWEEP = {"strengths": [1.0], "system_prompts": ["detailed"]}


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder("llama", tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def behavior(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return behavior_folder(tmp_path_factory.mktemp("behavior"), prompts=1, gate=True)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, model: Path, behavior: Path) -> Path:
    """A finished run of `small`; not to be changed."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    carry_out(small(model, behavior), folder)
    return folder


def small(model: Path, behavior: Path, /, **changes: Any) -> ExperimentConfig:
    changes.setdefault("generation", SMALL)
    changes["sweep"] = {**SWEEP, **changes.get("sweep", {})}
    return config(model, behavior, **changes)


def copied(folder: Path, tmp_path: Path, name: str = "run") -> Path:
    return Path(shutil.copytree(folder, tmp_path / name))


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]


def keys_of(folder: Path) -> list[str]:
    return [row["key"] for row in rows_of(folder)]


def metrics_of(folder: Path) -> str:
    metrics = compute_metrics(load_run(folder))
    rows = metrics.rows.model_copy(update={"stale": 0})
    return metrics_text(metrics.model_copy(update={"rows": rows}))
