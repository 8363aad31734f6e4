"""A race on a tiny model: what is decoded, what goes on, and what an interruption leaves."""

import json
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlx_steer.engine.steered import steered
from mlx_steer.experiment.dose_prices import priced_rank
from mlx_steer.experiment.plan import plan_experiment
from mlx_steer.metrics.metrics_file import read_metrics
from mlx_steer.model.load import load_model
from mlx_steer.report import write_report
from mlx_steer.run.screened import Lean
from mlx_steer.vectors import load_vectors, relative_dose
from tests.experiment.test_screened_sweep import OPENINGS
from tests.helpers.behaviors import behavior_folder
from tests.helpers.small_run import Told, carry_out, config
from tests.helpers.tiny import tiny_folder

LAYERS, STRENGTHS = [1, 3, 4], [0.5, 1.0]
ROUNDS = ["race 1", "race 2", "race 3"]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("race")
    tiny_folder("llama", folder / "model")
    behavior_folder(folder / "behavior", prompts=8, gate=True, openings=OPENINGS)
    return folder


def race(shared: Path, **changes: Any) -> Any:
    values = {
        "extract": {"layers": LAYERS},
        "sweep": {
            "strategy": "race",
            "strengths": STRENGTHS,
            "race": {"cells": 4, "rounds": 3, "screened_prompts": 3},
        },
        "gate": {"layers": [2], "strengths": [1.0]},
        "generation": {"max_tokens": 3},
    }
    return config(shared / "model", shared / "behavior", **{**values, **changes})


@pytest.fixture(scope="module")
def finished(shared: Path) -> tuple[Path, Told]:
    """An undisturbed race, and what it told of itself."""
    told = carry_out(race(shared), shared / "run", compare=False)
    return shared / "run", told


def conditions(folder: Path) -> dict[str, dict[str, Any]]:
    found = json.loads((folder / "conditions.json").read_text())["conditions"]
    return {c["name"]: c for c in found}


def lines(folder: Path, name: str) -> list[str]:
    return sorted((folder / name).read_text().splitlines())


def test_cells_drop_out_round_by_round_and_the_choice_has_all_prompts(
    finished: tuple[Path, Told],
) -> None:
    folder, told = finished
    first = ["base", "screen gated", "screen"]
    assert [name for name, _, _ in told.stages][:6] == [*first, *ROUNDS]
    found = conditions(folder)
    reached = {
        kind: sorted(len(c["rows"]) for c in found.values() if c["kind"] == kind)
        for kind in ("base", "steering", "gated", "prompt")
    }
    # Of 8 prompts of each set: 2, 4 and all of them.
    assert reached["base"] == [16]
    assert reached["steering"] == [4, 4, 8, 16]
    assert reached["gated"] == [4, 8, 16]
    assert reached["prompt"] == [4, 8]  # one that ran alone is chosen
    choice = json.loads((folder / "choice.json").read_text())
    assert len(found[f"prompt {choice['system_prompt']}"]["rows"]) == 8
    name = f"layer {choice['layer']}, strength {choice['strength']:g}"
    assert len(found[name]["rows"]) == 16
    assert len(found[f"gated layer {choice['gated']['layer']}, strength 1"]["rows"]) == 16


def test_gated_cells_enter_by_their_price_and_plain_ones_by_their_lean(
    finished: tuple[Path, Told],
) -> None:
    folder, _ = finished
    cells = json.loads((folder / "screening.json").read_text())["cells"]
    gated = [c for c in cells if c["kind"] == "gated"]
    assert len(gated) == 3 and all(c["nats"] > 0 for c in gated)
    assert all(c.get("nats") is None for c in cells if c["kind"] == "steering")
    priced = json.loads((folder / ".screen_gated.json").read_text())["nats"]
    assert {c["condition"]: c["nats"] for c in gated} == priced


def test_within_the_price_the_lean_decides_and_beyond_it_the_price() -> None:
    def rank(nats: float, target: float, strength: float = 1.0) -> tuple[float, ...]:
        lean = Lean(target=target, target_log_odds=0.0, other=0.1, other_log_odds=0.0)
        return priced_rank(lean, nats, 0.35, strength)

    best = [rank(0.35, 0.6), rank(0.1, 0.5), rank(0.2, 0.5, 1.5), rank(0.4, 0.1), rank(0.7, 0.9)]
    assert best == sorted(best)


def test_an_interrupted_race_goes_on_to_the_same_run(
    shared: Path, finished: tuple[Path, Told], tmp_path: Path
) -> None:
    whole, folder = finished[0], tmp_path / "run"
    shutil.copytree(whole, folder)
    rows = (folder / "rows.jsonl").read_text().splitlines(keepends=True)
    for kept in (rows[: len(rows) // 3], rows[::3]):
        # As a kill leaves it; also with rows of late rounds while early ones are missing.
        (folder / "rows.jsonl").write_text("".join(kept))
        (folder / "choice.json").unlink()
        carry_out(race(shared), folder, compare=False)
        assert lines(folder, "rows.jsonl") == lines(whole, "rows.jsonl")
        assert lines(folder, "conditions.json") == lines(whole, "conditions.json")
        assert lines(folder, "choice.json") == lines(whole, "choice.json")


def test_a_band_is_a_cell_from_the_screening_to_the_report(shared: Path, tmp_path: Path) -> None:
    folder, band = tmp_path / "run", "3-4"
    section = {
        "strategy": "race",
        "layers": [band],
        "strengths": STRENGTHS,
        "race": {"cells": 2, "rounds": 2, "screened_prompts": 3},
    }
    asked = race(shared, sweep=section)
    told = carry_out(asked, folder)
    choice = json.loads((folder / "choice.json").read_text())
    assert choice["layer"] == choice["gated"]["layer"] == band
    kinds = {c["kind"] for c in conditions(folder).values() if len(c["interventions"]) == 2}
    assert kinds >= {"steering", "gated", "prompt+steering", "random", "negated", "shuffled"}
    model, vectors = load_model(str(shared / "model")), load_vectors(folder / "vectors")
    chosen = conditions(folder)[f"layers {band}, strength {choice['strength']:g}"]
    dose = relative_dose([vectors[3], vectors[4]], choice["strength"])
    assert chosen["band_dose"] == pytest.approx(dose, rel=1e-5)
    row = next(
        row
        for row in map(json.loads, lines(folder, "rows.jsonl"))
        if row["condition"] == chosen["name"] and row["split"] == "test"
    )
    with steered(model, vectors, layer=[3, 4], strength=choice["strength"]):
        ids = mx.array(model.chat.prompt_ids(row["prompt"]))[None]
        assert int(mx.argmax(model.network(ids)[0, -1])) == row["tokens"][0]
    planned = {stage.name: stage.rows for stage in plan_experiment(asked).stages}
    made = {name: total - done for name, total, done in told.stages}
    assert planned["screen"] == made["screen"] and planned["controls"] == made["controls"]
    report = write_report(folder).markdown.read_text()
    assert f"layers {band}, strength" in report
    assert read_metrics(folder).select.choice.layer == band


def test_the_plan_counts_no_fewer_rows_than_the_race_makes(
    shared: Path, finished: tuple[Path, Told]
) -> None:
    _, told = finished
    made = {name: total - done for name, total, done in told.stages}
    planned = {stage.name: stage.rows for stage in plan_experiment(race(shared)).stages}
    assert set(ROUNDS) <= set(planned)
    assert sum(planned[name] for name in ROUNDS) >= sum(made[name] for name in ROUNDS) > 0
    assert planned["screen"] == made["screen"]
