"""The batch size of a run: chosen to fit, lowered when it does not, and without any effect."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mlx_steer.engine.batch import Batch
from mlx_steer.engine.decode import Decoder
from mlx_steer.engine.memory import is_memory_full
from mlx_steer.errors import GenerationError, ModelError
from mlx_steer.experiment.execute import run_experiment
from mlx_steer.experiment.out_of_memory import BatchSize
from mlx_steer.model.load import load_model
from mlx_steer.model.size import weight_bytes_of
from mlx_steer.run.directory import RunDirectory
from tests.helpers.behaviors import behavior_folder
from tests.helpers.small_run import Told, carry_out, config, left_behind
from tests.helpers.tiny import tiny_folder

# As MLX words them, on Metal and in older versions.
FULL = [
    "[metal::malloc] Attempting to allocate 4400193536 bytes which is greater than the maximum "
    "allowed buffer size of 4294967296 bytes.",
    "[malloc_or_wait] Unable to allocate 2000000000 bytes.",
    "[METAL] Command buffer execution failed: Insufficient Memory "
    "(00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)",
]
FREE = {"max_tokens": 4, "batch_size": None}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shared")
    tiny_folder("llama", folder / "model")
    behavior_folder(folder / "behavior", prompts=2)
    return folder


@pytest.fixture(scope="module")
def undisturbed(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    carry_out(small(shared), folder)
    return folder


def small(shared: Path, **generation: Any) -> Any:
    values = {**FREE, **generation}
    return config(shared / "model", shared / "behavior", generation=values)


def manifest(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    return found


def memory_for(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let steps of more rows fail as MLX fails on Metal.

    A CPU knows no such error: MLX does not keep to its memory limit there, and an allocation that
    the system refuses ends the process.
    """
    step = Decoder.step

    def limited(self: Decoder, batch: Batch) -> Any:
        if len(batch) > rows:
            raise RuntimeError(FULL[0])
        return step(self, batch)

    monkeypatch.setattr(Decoder, "step", limited)


@pytest.mark.parametrize("message", FULL)
def test_a_full_memory_is_known_however_mlx_words_it(message: str) -> None:
    assert is_memory_full(RuntimeError(message))


@pytest.mark.parametrize("rows", [pytest.param(1, marks=pytest.mark.slow), 5])
def test_a_batch_that_fills_the_memory_is_halved_and_the_run_goes_on_with_the_same_bytes(
    shared: Path,
    undisturbed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    rows: int,
) -> None:
    memory_for(rows, monkeypatch)
    told = carry_out(small(shared), tmp_path / "run")
    assert left_behind(tmp_path / "run") == left_behind(undisturbed)
    assert told.made["sweep"] == told.stages[0][1]
    about = manifest(tmp_path / "run")
    assert about["batch_size"] == (1 if rows == 1 else 4)
    assert [n for n in about["notes"] if "Memory ran out" in n] == told.notes
    assert told.notes[0].startswith("Memory ran out with 64 rows at a time, so 32 are decoded")
    assert "Memory ran out" in (tmp_path / "run" / "run.log").read_text()


def test_finished_rows_are_not_made_again_when_memory_runs_out_later(
    shared: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, steps = Decoder.step, iter(range(10**6))

    def fails_once(self: Decoder, batch: Batch) -> Any:
        if next(steps) == 6:
            raise MemoryError
        return step(self, batch)

    monkeypatch.setattr(Decoder, "step", fails_once)
    carry_out(small(shared, batch_size=8), tmp_path / "run")
    keys = [json.loads(line)["key"] for line in (tmp_path / "run" / "rows.jsonl").open()]
    assert len(keys) == len(set(keys))
    assert left_behind(tmp_path / "run") == left_behind(undisturbed)
    assert manifest(tmp_path / "run")["batch_size"] == 4


def test_a_memory_that_cannot_take_one_row_is_one_clear_sentence(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory_for(0, monkeypatch)
    with pytest.raises(GenerationError, match=r"full with one row at a time.*--quantize 4"):
        carry_out(small(shared, batch_size=4), tmp_path / "run")


def test_memory_that_runs_out_elsewhere_is_one_clear_sentence(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **more: Any) -> Any:
        raise RuntimeError(FULL[1])

    monkeypatch.setattr("mlx_steer.experiment.results.pair_states", full)
    with pytest.raises(GenerationError, match=r"memory is full \(at extract\)"):
        carry_out(small(shared), tmp_path / "run")


@pytest.mark.parametrize("error", [RuntimeError("[matmul] shapes differ"), ValueError(FULL[1])])
def test_other_errors_are_not_taken_for_a_full_memory(error: Exception) -> None:
    calls: list[int] = []

    def work(rows: int) -> None:
        calls.append(rows)
        raise error

    assert not is_memory_full(error)
    with pytest.raises(type(error)):
        BatchSize(8, print).retried(work)
    assert calls == [8]


def test_every_run_says_at_its_start_what_memory_it_takes(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = carry_out(small(shared), tmp_path / "run", sweep=False, compare=False)
    [line] = told.told
    assert line.startswith("memory in GB with 64 rows at a time: weights 0.00, keys and values")
    assert "peak" in line and "that MLX can use here" in line
    assert line in (tmp_path / "run" / "run.log").read_text()


def test_a_batch_that_does_not_fit_is_lowered_before_the_run_and_changes_no_byte(
    shared: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlx_steer.experiment.plan.working_set", lambda *_: 5_000_000)
    told = carry_out(small(shared, batch_size=64), tmp_path / "run")
    about = manifest(tmp_path / "run")
    assert about["batch_size"] < 64
    assert told.notes == [n for n in about["notes"] if "A batch of 64 rows may need" in n]
    assert len(told.notes) == 1
    assert left_behind(tmp_path / "run") == left_behind(undisturbed)


def test_a_model_of_which_no_row_fits_leaves_no_run(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlx_steer.experiment.plan.working_set", lambda *_: 1000)
    with (
        pytest.raises(ModelError, match="this machine can use"),
        RunDirectory.open(tmp_path / "run") as run,
    ):
        run_experiment(small(shared), run, Told())
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_weights_that_cannot_fit_are_refused_before_they_are_read(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*_: Any) -> Any:
        raise AssertionError("the weights were read")

    folder = shared / "model"
    monkeypatch.setattr("mlx_steer.model.load._load", read)
    small_enough = weight_bytes_of(folder, quantize=4)
    monkeypatch.setattr("mlx_steer.model.size.working_set", lambda: small_enough)
    with pytest.raises(ModelError, match=r"use fewer bits \(--quantize 4 makes 0\.0 GB\)"):
        load_model(str(folder))
    monkeypatch.setattr("mlx_steer.model.size.working_set", lambda: 10)
    with pytest.raises(ModelError, match=r"use a smaller model$"):
        load_model(str(folder), quantize=4)
