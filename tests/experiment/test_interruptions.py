"""Runs that are interrupted go on where they were, and end with the bytes of an undisturbed one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mlx_steer.config import ExperimentConfig
from mlx_steer.experiment.execute import run_experiment
from mlx_steer.run.directory import RunDirectory
from mlx_steer.vectors import load_vectors
from tests.experiment.conftest import SMALL, copied, keys_of, small
from tests.helpers.small_run import Told, carry_out, left_behind


class _Interrupting(Told):
    """Ends the run at some call of `advance`, as Ctrl-C would."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.left = at

    def advance(self, units: int = 0, tokens: int = 0) -> None:
        super().advance(units, tokens)
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


def _interrupted(values: ExperimentConfig, folder: Path, at: int) -> bool:
    try:
        with RunDirectory.open(folder) as run:
            run_experiment(values, run, _Interrupting(at))
    except KeyboardInterrupt:
        return True
    return False


def test_an_interrupted_run_goes_on_where_it_was_and_ends_the_same(
    tmp_path: Path, model: Path, behavior: Path, finished: Path
) -> None:
    values, folder, starts = small(model, behavior), tmp_path / "run", 0
    while _interrupted(values, folder, at=7):
        starts += 1
        keys = keys_of(folder) if (folder / "rows.jsonl").exists() else []
        assert len(keys) == len(set(keys)), "a row was made twice"
        assert set(keys) <= set(keys_of(finished))
    assert starts >= 5
    assert left_behind(folder) == left_behind(finished)


def test_rows_that_end_in_the_interrupted_step_are_kept(
    tmp_path: Path, model: Path, behavior: Path
) -> None:
    folder = tmp_path / "run"
    at = 2 + SMALL["max_tokens"]  # one row told of, after the steps that made it
    assert _interrupted(small(model, behavior), folder, at)
    assert len(keys_of(folder)) >= 1


def test_an_error_in_a_later_stage_keeps_the_rows(
    tmp_path: Path, model: Path, behavior: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"

    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr("mlx_steer.experiment.scoring.perplexities", fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            carry_out(small(model, behavior), folder)
    assert sorted(keys_of(folder)) == sorted(keys_of(finished))
    told = carry_out(small(model, behavior), folder)
    assert told.steps == 0
    assert left_behind(folder) == left_behind(finished)


def test_vectors_that_were_lost_or_changed_are_made_again(
    tmp_path: Path, model: Path, behavior: Path, finished: Path
) -> None:
    def other_vectors(folder: Path) -> None:
        found = load_vectors(folder / "vectors")
        (found * 2.0).save(folder / "vectors")

    spoilers: list[Callable[[Path], object]] = [
        lambda folder: shutil.rmtree(folder / "vectors"),
        lambda folder: (folder / "vectors" / "layer_2.npy").write_bytes(b""),
        lambda folder: (folder / ".extracted.json").unlink(),
        other_vectors,
    ]
    for number, spoil in enumerate(spoilers):
        folder = copied(finished, tmp_path, str(number))
        spoil(folder)
        told = carry_out(small(model, behavior), folder)
        assert told.steps == 0
        assert left_behind(folder) == left_behind(finished)


def test_a_kill_between_vectors_and_separation_loses_neither(
    tmp_path: Path, model: Path, behavior: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, write = tmp_path / "run", RunDirectory.write

    def killed(run: RunDirectory, name: str, text: str) -> None:
        if name == "separation.json":
            raise KeyboardInterrupt
        write(run, name, text)

    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            carry_out(small(model, behavior), folder)
    carry_out(small(model, behavior), folder)
    assert left_behind(folder) == left_behind(finished)
