"""`strengths: auto`: what the search finds, on numbers and on a tiny model."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlx_steer.errors import ConfigError
from mlx_steer.experiment.doses import DoseSearch
from mlx_steer.experiment.plan import plan_experiment
from mlx_steer.vectors import SteeringVector, SteeringVectorSet, load_vectors
from tests.experiment.test_screened_sweep import OPENINGS
from tests.helpers.behaviors import behavior_folder
from tests.helpers.small_run import Told, carry_out, config, left_behind
from tests.helpers.tiny import tiny_folder

VECTOR = SteeringVector(3, [3.0, 4.0], 10.0)


def searched(search: DoseSearch, harmless: Callable[[float], bool]) -> tuple[DoseSearch, int]:
    """A finished search, and how many doses it read."""
    read = 0
    while asked := search.asked():
        read += len(asked)
        search.told([x for x in asked if harmless(search.dose(x))])
    return search, read


@pytest.mark.parametrize("limit", [0.07, 0.2, 0.26, 0.9])
@pytest.mark.parametrize("start", [DoseSearch.up_the_ladder, DoseSearch.by_halving])
def test_what_is_found_is_within_nine_percent_below_the_limit(
    limit: float, start: Callable[..., DoseSearch]
) -> None:
    search, read = searched(start([VECTOR]), lambda dose: dose <= limit)
    assert limit / 1.1 < search.within <= limit < search.beyond < limit * 1.1
    assert read <= 8
    top = search.strength(search.within)
    assert search.placed([1.0, 0.5]) == [pytest.approx(top / 2, rel=0.01), top]
    assert search.dose(top) == pytest.approx(search.within)


def test_a_ladder_stops_at_the_first_dose_beyond_though_higher_ones_look_harmless() -> None:
    """A model that babbles leans to nothing."""
    search, _ = searched(DoseSearch.up_the_ladder([VECTOR]), lambda dose: not 0.2 < dose < 0.6)
    assert 0.18 < search.within <= 0.2


def test_limits_outside_the_ladder_are_not_looked_for() -> None:
    ladder, read = searched(DoseSearch.up_the_ladder([VECTOR]), lambda dose: True)
    assert (ladder.within, ladder.beyond, read) == (1.0, math.inf, 5)
    ladder, read = searched(DoseSearch.up_the_ladder([VECTOR]), lambda dose: False)
    assert 1 / 32 == ladder.within < ladder.beyond < 0.04 and read == 8


def test_a_band_is_searched_by_what_it_adds_together() -> None:
    band = [VECTOR, SteeringVector(4, [3.0, 4.0], 20.0)]
    search, _ = searched(DoseSearch.by_halving(band), lambda dose: dose <= 0.25)
    assert search.place == "3-4" and search.strength(0.25) == 0.5


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("doses")
    tiny_folder("llama", folder / "model")
    behavior_folder(folder / "behavior", prompts=3, gate=True, openings=OPENINGS)
    return folder


def auto(shared: Path, **changes: Any) -> Any:
    section = {"strengths": "auto", "layers": [3, "3-4"], "system_prompts": ["detailed"]}
    values: dict[str, Any] = {
        "extract": {"layers": [3, 4]},
        "sweep": section,
        "compare": {"extent": "answer", "controls": {"random": 1}},
        "gate": {"layers": [2]},
        "generation": {"max_tokens": 3},
    }
    return config(shared / "model", shared / "behavior", **{**values, **changes})


class Stopping(Told):
    """Stops at a stage."""

    def __init__(self, at: str) -> None:
        super().__init__()
        self._at = at

    def stage(self, name: str, total: int, done: int) -> None:
        super().stage(name, total, done)
        if name == self._at:
            raise KeyboardInterrupt


def test_cells_stand_at_what_the_search_found_and_an_interrupted_one_goes_on_to_the_same_bytes(
    shared: Path, tmp_path: Path
) -> None:
    from mlx_steer.experiment.execute import run_experiment
    from mlx_steer.run.directory import RunDirectory

    whole, folder = tmp_path / "whole", tmp_path / "run"
    told = carry_out(auto(shared), whole)
    names = [name for name, _, _ in told.stages]
    assert names[0] == "doses 1" and names.index("base") < names.index("gated doses 1")
    doses = json.loads((whole / "doses.json").read_text())
    assert (
        [d["layer"] for d in doses["plain"]] == [d["layer"] for d in doses["gated"]] == [3, "3-4"]
    )
    conditions = json.loads((whole / "conditions.json").read_text())["conditions"]
    swept = {c["name"] for c in conditions if c["kind"] in ("steering", "gated")}
    for gated, found in ((False, doses["plain"]), (True, doses["gated"])):
        for one in found:
            place = f"layers {one['layer']}" if isinstance(one["layer"], str) else "layer 3"
            own = f"{'gated ' if gated else ''}{place}, strength {one['strength']:g}"
            assert own in swept
    planned = {stage.name: stage.rows for stage in plan_experiment(auto(shared)).stages}
    for name, total, _ in told.stages:
        assert planned[name] >= total or name == "sweep", name
    for at in ("doses 1", "doses 2", "gated doses 3", "sweep", "compare"):
        if at in names:
            with RunDirectory.open(folder) as run, pytest.raises(KeyboardInterrupt):
                run_experiment(auto(shared), run, Stopping(at))
    again = carry_out(auto(shared), folder)
    assert not any("doses" in name for name, _, _ in again.stages), "the doses were kept"
    assert left_behind(folder) == left_behind(whole)


def test_vectors_whose_doses_are_unknown_need_strengths(shared: Path, tmp_path: Path) -> None:
    carry_out(auto(shared, sweep={"strengths": [1.0]}), tmp_path / "run", compare=False)
    found = load_vectors(tmp_path / "run" / "vectors")
    unknown = [SteeringVector(v.layer, v.array, None) for v in found.vectors]
    metadata = found.metadata.model_copy(update={"gates": []})
    SteeringVectorSet(unknown, metadata).save(tmp_path / "imported")
    asked = auto(shared, extract={"vectors": str(tmp_path / "imported")})
    with pytest.raises(ConfigError, match="vector of layer 3 is unknown; name the strengths"):
        plan_experiment(asked)


@pytest.mark.parametrize("section", ["sweep", "gate"])
def test_another_word_than_auto_is_refused(shared: Path, section: str) -> None:
    with pytest.raises(ConfigError, match=rf"{section}\.strengths.*'auto' or a list"):
        auto(shared, **{section: {"strengths": "some"}})
