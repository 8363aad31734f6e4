"""Speeds that a run measures of itself, and what later plans learn from them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from mlx_steer.experiment import pace
from mlx_steer.experiment.counts import StageCount
from mlx_steer.experiment.pace import StageTime, speeds
from mlx_steer.experiment.plan import plan_experiment
from mlx_steer.metrics.interim import interim
from tests.helpers.behaviors import behavior_folder
from tests.helpers.command import Run
from tests.helpers.small_run import carry_out, config, left_behind
from tests.helpers.synthetic_run import CHOICE, small_run
from tests.helpers.tiny import tiny_folder


def counted(name: str, rows: int, read: int) -> StageCount:
    return StageCount(name, 1, rows, 1, read, read)


COUNTS = {c.name: c for c in (counted("screen", 100, 2000), counted("sweep", 40, 400))}


def test_speeds_explain_the_time_of_stages_that_read_and_that_decode() -> None:
    made = [StageTime("screen", 100, 100, 0, 20.0), StageTime("sweep", 40, 40, 1000, 4.0 + 10.0)]
    assert speeds(made, COUNTS) == pytest.approx((100.0, 100.0))
    # Half of the stage was there from an earlier start: half of what it reads is read.
    made[1] = StageTime("sweep", 40, 20, 500, 2.0 + 5.0)
    assert speeds(made, COUNTS) == pytest.approx((100.0, 100.0))


def test_where_reading_and_decoding_cannot_be_told_apart_one_speed_is_found() -> None:
    alone = speeds([StageTime("sweep", 40, 40, 1000, 12.0)], COUNTS)
    assert alone is not None and alone[1] == pytest.approx(100.0)
    odd = [StageTime("screen", 100, 100, 0, 0.01), StageTime("sweep", 40, 40, 1000, 12.0)]
    found = speeds(odd, COUNTS)
    assert found is not None and min(found) > 0


def test_a_run_that_made_next_to_nothing_tells_nothing() -> None:
    assert speeds([], COUNTS) is None
    assert speeds([StageTime("sweep", 40, 2, 50, 4.0)], COUNTS) is None
    assert speeds([StageTime("judge", 40, 40, 1000, 12.0)], COUNTS) is None


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, a behavior, and a run that has told its speed."""
    folder = tmp_path_factory.mktemp("pace")
    tiny_folder("llama", folder / "model")
    behavior_folder(folder / "behavior")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pace, "_FEWEST_SECONDS", 0.0)
        carry_out(experiment(folder), folder / "runs" / "first")
    return folder


def experiment(folder: Path, **changes: Any) -> Any:
    return config(folder / "model", folder / "behavior", **changes)


def rates(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_text())["rates"]


def test_a_plan_takes_the_speeds_of_an_earlier_run_and_says_which(
    shared: Path, tmp_path: Path, run: Run
) -> None:
    plan = plan_experiment(experiment(shared), runs=shared / "runs")
    found = rates(shared / "runs" / "first")
    assert plan.rates is not None
    assert plan.rates.read == pytest.approx(found["read"], abs=0.1)
    assert plan.rates.decode == pytest.approx(found["decode"], abs=0.1)
    assert plan.rates.basis.startswith(f"Learned from {shared / 'runs' / 'first'} (")
    stage = next(s for s in plan.stages if s.name == "sweep")
    expected = stage.read / plan.rates.read + stage.decoded / plan.rates.decode
    assert plan.seconds["sweep"] == pytest.approx(expected, abs=0.1)
    file = tmp_path / "x.yaml"
    file.write_text(experiment(shared).to_yaml())
    assert "Learned from" in run("plan", file, "--runs", shared / "runs").out.replace("\n", " ")
    said = run("plan", file, "--runs", tmp_path).out.replace("\n", " ")
    assert "no earlier run" in said and "--measure" in said


def test_speeds_of_another_model_are_taken_by_its_size_and_those_of_another_machine_not_at_all(
    shared: Path, tmp_path: Path
) -> None:
    def changed(name: str, **changes: Any) -> None:
        values = json.loads((shared / "runs" / "first" / "manifest.json").read_text())
        values["rates"] |= changes.pop("rates", {})
        folder = tmp_path / name
        folder.mkdir()
        (folder / "manifest.json").write_text(json.dumps({**values, **changes}))

    found = rates(shared / "runs" / "first")
    for name, changes in (
        ("machine", {"device": "another"}),
        ("width", {"rates": {"dtype_bytes": 2}}),
        ("bits", {"rates": {"parameter_bytes": found["parameter_bytes"] / 4}}),
    ):
        changed(name, **changes)
    (tmp_path / "no_run").mkdir()
    (tmp_path / "no_run" / "manifest.json").write_text("{")
    assert plan_experiment(experiment(shared), runs=tmp_path).rates is None
    changed("larger", rates={"parameters": 3 * found["parameters"]})
    plan = plan_experiment(experiment(shared), runs=tmp_path)
    assert plan.rates is not None
    assert plan.rates.decode == pytest.approx(3 * found["decode"], rel=0.01)
    assert "larger" in plan.rates.basis and "0.33 times as large" in plan.rates.basis
    # The same model comes before another one, and the newest of its runs before the others.
    changed("old", started="2020-01-01T00:00:00+0000", rates={"decode": 1.0})
    changed("new", started="2090-01-01T00:00:00+0000", rates={"decode": 7.0})
    plan = plan_experiment(experiment(shared), runs=tmp_path)
    assert plan.rates is not None and plan.rates.decode == 7.0


def test_a_run_is_told_what_is_to_come_and_a_start_that_makes_nothing_keeps_its_speeds(
    shared: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "runs" / "again"
    shutil.copytree(shared / "runs" / "first", folder)
    before, found = left_behind(folder), rates(folder)
    told = carry_out(experiment(shared), folder)
    names = [stage.name for stage in told.expected]
    assert names == [stage.name for stage in plan_experiment(experiment(shared)).stages]
    assert {name for name, _, _ in told.stages} <= set(names)
    assert sum(stage.seconds for stage in told.expected) > 0
    assert rates(folder) == found and left_behind(folder) == before


def test_what_the_rows_say_so_far_is_the_leading_cell_against_base_on_the_same_prompts(
    tmp_path: Path,
) -> None:
    folder = small_run(tmp_path / "run").write(CHOICE)
    said = interim(folder)
    assert said is not None and said.startswith("so far, test half: layer 8, strength 1")
    assert "harmful refused" in said and "(base " in said
    assert interim(tmp_path) is None


def test_a_run_says_what_its_rows_say_after_each_stage(shared: Path, tmp_path: Path) -> None:
    told = carry_out(experiment(shared), tmp_path / "run")
    assert any(text.startswith("so far, select half: layer") for text in told.interims)
    assert any(text.startswith("so far, test half: layer") for text in told.interims)
