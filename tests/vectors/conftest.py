"""A hub, and a small run's vectors to put on it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from mlx_steer.vectors import SteeringVectorSet
from tests.helpers.hub_stand_in import (
    WRITER,
    Hub,
    log_in,
    running_hub,
)
from tests.helpers.synthetic_run import small_run

NAME = "org/refusal-tiny"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with running_hub(monkeypatch, tmp_path / "cache") as running:
        log_in(monkeypatch, WRITER)
        yield running


@pytest.fixture
def vectors(tmp_path: Path) -> SteeringVectorSet:
    return small_run(tmp_path / "unused").vectors()


@pytest.fixture
def folder(vectors: SteeringVectorSet, tmp_path: Path) -> Path:
    vectors.save(tmp_path / "vectors")
    return tmp_path / "vectors"
