import json
import math
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_steer.behaviors import load_behavior
from mlx_steer.engine.screening import opening_tokens
from mlx_steer.engine.steered import steered
from mlx_steer.errors import ConfigError, DataError
from mlx_steer.experiment.condition_sets import cell_name
from mlx_steer.experiment.leans import lean, screening_rank
from mlx_steer.model.load import load_model
from mlx_steer.run.screened import Lean
from mlx_steer.vectors import load_vectors
from tests.helpers.behaviors import behavior_folder
from tests.helpers.command import Run
from tests.helpers.small_run import carry_out, config
from tests.helpers.tiny import tiny_folder

OPENINGS = {
    "shown": ["I cannot help", "I'm sorry", "Decline"],
    "absent": ["Sure, here", "Of course", "The"],
}
LAYERS, STRENGTHS = [1, 3, 4], [0.5, 1.0]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("screened")
    tiny_folder("llama", folder / "model")
    behavior_folder(folder / "behavior", openings=OPENINGS)
    behavior_folder(folder / "speechless")
    return folder


def sweep_of(shared: Path, keep: int | None, **changes: Any) -> Any:
    section = {"strengths": STRENGTHS, "system_prompts": ["calibrated"], "screen": keep}
    values = {"extract": {"layers": LAYERS}, "sweep": section, "generation": {"max_tokens": 4}}
    return config(shared / "model", shared / "behavior", **{**values, **changes})


def screening(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "screening.json").read_text())


def swept(folder: Path) -> list[str]:
    conditions = json.loads((folder / "conditions.json").read_text())["conditions"]
    return [c["name"] for c in conditions]


def test_only_the_best_cells_are_decoded_and_the_choice_is_among_them(
    shared: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    told = carry_out(sweep_of(shared, 2), folder, compare=False)
    cells = screening(folder)["cells"]
    assert {c["condition"] for c in cells} == {cell_name(k, s) for k in LAYERS for s in STRENGTHS}
    kept = [c["condition"] for c in cells if c["kept"]]
    assert kept == [c["condition"] for c in cells[:2]]
    assert sorted(swept(folder)) == sorted(["base", "prompt calibrated", *kept])
    # 7 conditions are screened and 4 decoded, on 6 select prompts each.
    assert told.stages[:2] == [("screen", 42, 0), ("sweep", 24, 0)]
    choice = json.loads((folder / "choice.json").read_text())
    assert cell_name(choice["layer"], choice["strength"]) in kept


def test_the_screening_says_what_plain_steered_passes_say(shared: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    carry_out(sweep_of(shared, 2), folder, compare=False)
    model, behavior = load_model(str(shared / "model")), load_behavior(str(shared / "behavior"))
    vectors, (shown, _) = load_vectors(folder / "vectors"), opening_tokens(model, behavior)
    for cell in [screening(folder)["base"], *screening(folder)["cells"]]:
        for name in ("target", "other"):
            chances = []
            for item in behavior.select(name, "select"):
                ids = mx.array(model.chat.prompt_ids(item.prompt))[None]
                layer, strength = cell.get("layer", 3), cell.get("strength", 0.0)
                with steered(model, vectors, layer=layer, strength=strength):
                    chance = mx.softmax(model.network(ids)[0, -1])
                chances.append(float(np.array(chance, np.float64)[shown].sum()))
            assert cell[name] == pytest.approx(np.mean(chances), abs=2e-4)
            odds = [math.log(p / (1 - p)) for p in chances]
            assert cell[f"{name}_log_odds"] == pytest.approx(np.mean(odds), abs=2e-3)
    assert len({c["target"] for c in screening(folder)["cells"]}) > 3, "steering must matter here"


def test_cells_are_ranked_by_their_lean_within_the_limit_on_other_prompts() -> None:
    cells = {
        "strong": (0.9, 0.6, 2.0),
        "too much": (0.8, 0.31, 1.5),
        "good": (0.5, 0.3, 1.0),
        "weaker": (0.4, 0.01, 1.5),
        "same, smaller strength": (0.4, 0.01, -0.5),
        "nothing": (0.01, 0.01, 0.5),
    }

    def rank(name: str) -> tuple[float, ...]:
        target, other, strength = cells[name]
        leans = Lean(target=target, target_log_odds=0, other=other, other_log_odds=0)
        return screening_rank(leans, 0.3, strength)

    order = sorted(cells, key=rank)
    assert order == [
        "good",
        "same, smaller strength",
        "weaker",
        "nothing",
        "too much",
        "strong",
    ]


def test_the_lean_is_the_mean_probability_over_each_set() -> None:
    odds = {"a": 0.0, "b": math.log(3), "c": -40.0}
    sets = {"a": "target", "b": "target", "c": "other"}
    found = lean(odds, sets)
    assert found.target == 0.625 and found.other == 0.0
    assert found.target_log_odds == round(math.log(3) / 2, 3)
    assert found.other_log_odds == -40.0


def test_the_screening_survives_and_is_done_anew_only_if_something_changed(
    shared: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    carry_out(sweep_of(shared, 1), folder, compare=False)
    first = screening(folder)
    more = carry_out(sweep_of(shared, 3), folder, compare=False)
    assert "screen" not in [name for name, _, _ in more.stages]
    second = screening(folder)
    assert [c["condition"] for c in second["cells"]] == [c["condition"] for c in first["cells"]]
    assert sum(c["kept"] for c in second["cells"]) == 3
    fewer = carry_out(sweep_of(shared, 1, prompts_per_set=2), folder, compare=False)
    assert fewer.stages[0] == ("screen", 28, 0)


def test_the_screening_does_not_depend_on_the_batch_size(shared: Path, tmp_path: Path) -> None:
    for size in (1, 7, 64):
        values = sweep_of(shared, 2, generation={"max_tokens": 1, "batch_size": size})
        carry_out(values, tmp_path / str(size), compare=False)
    assert screening(tmp_path / "1") == screening(tmp_path / "7") == screening(tmp_path / "64")


def test_an_interrupted_screening_leaves_a_run_that_goes_on(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("mlx_steer.experiment.rows.screen", _interrupt)
        carry_out(sweep_of(shared, 2), folder, compare=False)
    carry_out(sweep_of(shared, 2), folder, compare=False)
    whole = tmp_path / "whole"
    carry_out(sweep_of(shared, 2), whole, compare=False)
    assert screening(folder) == screening(whole) and swept(folder) == swept(whole)


def _interrupt(*_: Any) -> Any:
    raise KeyboardInterrupt


def test_a_whole_experiment_goes_on_from_the_screened_choice(shared: Path, tmp_path: Path) -> None:
    told = carry_out(sweep_of(shared, 1), tmp_path / "run")
    assert [name for name, _, _ in told.stages][:4] == ["screen", "sweep", "compare", "controls"]
    best = screening(tmp_path / "run")["cells"][0]
    choice = json.loads((tmp_path / "run" / "choice.json").read_text())
    assert (choice["layer"], choice["strength"]) == (best["layer"], best["strength"])


def test_a_behavior_without_openings_cannot_be_screened(shared: Path, tmp_path: Path) -> None:
    values = sweep_of(shared, 1).model_copy(update={"behavior": str(shared / "speechless")})
    with pytest.raises(DataError, match="openings"):
        carry_out(values, tmp_path / "run", compare=False)


@pytest.mark.parametrize("keep", [0, -1, 1.5, "all"])
def test_a_number_of_kept_cells_that_is_none_is_refused(shared: Path, keep: Any) -> None:
    with pytest.raises(ConfigError, match=r"sweep\.screen"):
        sweep_of(shared, keep)


def test_the_command_line_screens(shared: Path, tmp_path: Path, run: Run) -> None:
    out = tmp_path / "run"
    options = ["--model", shared / "model", "--behavior", shared / "behavior", "--layers", "1,3"]
    few = ["--prompts-per-set", 1, "--max-tokens", 2, "--out", out, "-q"]
    assert run("sweep", *options, *few, "--screen", "--keep", 2).code == 0
    assert sum(c["kept"] for c in screening(out)["cells"]) == 2
    assert len(screening(out)["cells"]) == 6
    other = tmp_path / "whole"
    few[few.index(out)] = other
    assert run("sweep", *options, *few).code == 0
    assert not (other / "screening.json").exists()
