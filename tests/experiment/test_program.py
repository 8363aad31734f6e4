"""The program as plain data: which stages there are, and what it asks of its results."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mlx_steer.behaviors import load_behavior
from mlx_steer.conditions import Condition, Gate
from mlx_steer.errors import ConfigError
from mlx_steer.experiment.doses import DoseSearch
from mlx_steer.experiment.program import Program, Stage
from mlx_steer.experiment.stand_ins import stand_in
from mlx_steer.model.shape import layer_of
from mlx_steer.run.records import Choice, GatedChoice
from mlx_steer.vectors import SteeringVector, SteeringVectorSet, relative_dose
from tests.helpers.small_run import behavior_folder, config
from tests.helpers.vector_sets import metadata

DETAILED, CALIBRATED = (
    "Decline when the request is harmful, and answer all others.",
    "Answer briefly.",
)


class Fixed:
    """Results that are known beforehand; counts what is asked for."""

    def __init__(self, *kept: str) -> None:
        about = metadata().model_copy(update={"hidden_size": 16, "num_layers": 6})
        self.vectors = SteeringVectorSet([stand_in(2), stand_in(4)], about)
        self.asked: list[object] = []
        self._kept = kept

    def layer(self, index: int) -> int:
        return layer_of(index, 6, "the model")

    def gate(self, system_prompt: str | None) -> Gate:
        self.asked.append(system_prompt)
        return Gate(1, stand_in(0).array, 0.0, "plain" if system_prompt is None else "other")

    def shuffled(self, layers: Sequence[int]) -> list[SteeringVector]:
        self.asked.append(tuple(layers))
        return [stand_in(layer, seed=1) for layer in layers]

    def kept(self, screened: Stage, keep: int) -> tuple[str, ...]:
        self.asked.append((screened.name, keep))
        return self._kept

    def harmless(self, read: Stage) -> set[str]:
        """What adds at most 0.2 times the hidden state, or costs as much."""
        self.asked.append((read.name, len(read.conditions) - 1, len(read.items)))
        return {c.name for c in read.conditions if c.interventions and self._dose(c) <= 0.2}

    def _dose(self, condition: Condition) -> float:
        acts = condition.interventions
        return relative_dose([self.vectors[i.layer] for i in acts], acts[0].strength) or 0.0

    def found(self, gated: bool, searches: Sequence[DoseSearch]) -> None:
        self.asked.append([(s.place, round(s.within, 3), round(s.beyond, 3)) for s in searches])

    def ahead(self, decoded: Stage) -> set[str]:
        """The first half of each kind."""
        self.asked.append((decoded.name, len(decoded.items)))
        own: dict[str, list[str]] = {}
        for condition in decoded.conditions:
            own.setdefault(condition.kind, []).append(condition.name)
        return {name for names in own.values() for name in names[: (len(names) + 1) // 2]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return behavior_folder(tmp_path_factory.mktemp("program") / "behavior", prompts=2)


def program(folder: Path, results: Fixed | None = None, **changes: Any) -> Program:
    values = config("model", folder, **changes)
    return Program(values, load_behavior(folder), results or Fixed())


def cell(condition: Condition) -> tuple[str, str | None, list[tuple[int, float]]]:
    acts = [(i.layer, i.strength) for i in condition.interventions]
    return condition.kind, condition.system_prompt, acts


def test_the_full_grid_is_every_layer_at_every_strength_on_the_select_half(folder: Path) -> None:
    [stage] = program(folder, sweep={"strengths": [0.0, 1.0, -0.5]}).search()
    assert (stage.name, stage.decoded) == ("sweep", True)
    assert [cell(c) for c in stage.conditions] == [
        ("base", None, []),
        ("prompt", DETAILED, []),
        ("prompt", CALIBRATED, []),
        ("steering", None, [(2, 1.0)]),
        ("steering", None, [(2, -0.5)]),
        ("steering", None, [(4, 1.0)]),
        ("steering", None, [(4, -0.5)]),
    ]
    assert {(i.set, i.split) for i in stage.items} == {("target", "select"), ("other", "select")}


def test_a_gated_grid_follows_the_plain_one_with_strengths_of_its_own(folder: Path) -> None:
    results = Fixed()
    [stage] = program(folder, results, gate={"strengths": [2.0]}, sweep={"layers": [-2]}).search()
    gated = [c for c in stage.conditions if c.kind == "gated"]
    assert [cell(c) for c in gated] == [("gated", None, [(4, 2.0)])]
    assert [g.name for c in gated for g in c.gates] == ["plain"]
    assert results.asked == [None]


def test_a_screening_reads_all_cells_and_what_it_keeps_is_decoded(folder: Path) -> None:
    results = Fixed("layer 4, strength 0.5")
    stages = program(folder, results, sweep={"screen": 1}).search()
    first = next(stages)
    assert (first.name, first.decoded) == ("screen", False)
    assert [c.kind for c in first.conditions] == ["base"] + ["steering"] * 4
    assert results.asked == [], "the screening has not been carried out yet"
    [second] = stages
    assert results.asked == [("screen", 1)]
    names = [c.name for c in second.conditions]
    assert names == ["base", "prompt detailed", "prompt calibrated", "layer 4, strength 0.5"]


def test_a_race_decodes_the_better_half_on_twice_the_prompts_round_by_round(
    folder: Path, tmp_path: Path
) -> None:
    kept = [f"layer {layer}, strength {s:g}" for layer in (2, 4) for s in (0.5, 1.0)]
    results = Fixed(*kept)
    large = behavior_folder(tmp_path / "large", prompts=8)
    race = {"strategy": "race", "race": {"cells": 4, "rounds": 3, "screened_prompts": 3}}
    screen, *rounds = program(large, results, sweep=race).search()
    assert (screen.name, screen.decoded, len(screen.items)) == ("screen", False, 6)
    assert [stage.name for stage in rounds] == ["race 1", "race 2", "race 3"]
    # A quarter, half and all of 8 prompts of each set; rounds begin with the same ones.
    assert [len(stage.items) for stage in rounds] == [4, 8, 16]
    first, second, last = rounds
    assert {item.id for item in first.items} < {item.id for item in second.items}
    prompts = ["prompt detailed", "prompt calibrated"]
    assert [c.name for c in first.conditions] == ["base", *prompts, *kept]
    assert [c.name for c in second.conditions] == ["base", prompts[0], *kept[:2]]
    assert [c.name for c in last.conditions] == ["base", kept[0]]
    assert results.asked == [("screen", 4), ("race 1", 4), ("race 2", 8)]


def test_doses_are_read_up_a_ladder_or_by_halving_and_cells_stand_below_the_largest_harmless_one(
    folder: Path,
) -> None:
    results = Fixed()
    asked = program(folder, results, sweep={"strengths": "auto"}, gate={}, prompts_per_set=2)
    *read, last = asked.search()
    assert [(s.name, s.decoded, s.priced) for s in read] == [
        *((f"doses {number}", False, False) for number in (1, 2, 3, 4)),
        ("base", True, False),
        *((f"gated doses {number}", False, True) for number in (1, 2, 3, 4, 5)),
    ]
    assert {i.set for i in read[0].items} == {"target", "other"}
    assert {i.set for s in read[4:] for i in s.items} == {"target"}
    # Two layers: five rungs each, then one dose each at a time.
    assert [len(s.conditions) - 1 for s in read] == [10, 2, 2, 2, 0, 2, 2, 2, 2, 2]
    plain, gated = (a for a in results.asked if isinstance(a, list))
    for found in (plain, gated):
        assert [place for place, _, _ in found] == [2, 4]
        assert all(0.18 < within <= 0.2 < beyond < 0.22 for _, within, beyond in found)
    doses = [results._dose(c) for c in last.conditions if c.interventions]
    assert len(doses) == 2 * 2 * 3
    assert doses[:3] == pytest.approx([0.6 * plain[0][1], 0.8 * plain[0][1], plain[0][1]], rel=0.01)


def test_the_comparison_has_the_prompt_the_vector_and_both_and_then_the_same_gated(
    folder: Path,
) -> None:
    results = Fixed()
    chosen = Choice(
        layer=2,
        strength=0.5,
        system_prompt="calibrated",
        gated=GatedChoice(layer=4, strength=2.0),
    )
    compare, controls = program(folder, results, gate={}).compare(chosen)
    assert [cell(c) for c in compare.conditions] == [
        ("base", None, []),
        ("prompt", CALIBRATED, []),
        ("steering", None, [(2, 0.5)]),
        ("steering", None, [(2, 1.0)]),
        ("prompt+steering", CALIBRATED, [(2, 0.5)]),
        ("prompt+steering", CALIBRATED, [(2, 1.0)]),
        ("gated", None, [(4, 1.0)]),
        ("gated", None, [(4, 2.0)]),
        ("prompt+gated", CALIBRATED, [(4, 1.0)]),
        ("prompt+gated", CALIBRATED, [(4, 2.0)]),
    ]
    # Under a system prompt the hidden states are others, so that gate is another.
    gates = [g.name for c in compare.conditions for g in c.gates]
    assert gates == ["plain"] * 2 + ["other"] * 2
    assert len({c.name for c in compare.conditions}) == len(compare.conditions)
    assert {i.set for i in compare.items} == {"target", "other", "borderline"}
    assert [cell(c) for c in controls.conditions] == [
        (kind, None, [(2, 0.5)]) for kind in ("random", "negated", "shuffled")
    ]
    assert {i.set for i in controls.items} == {"target", "other"}
    assert results.asked == [None, CALIBRATED, (2,)]


def test_the_configs_own_layer_and_prompt_come_before_the_choice(folder: Path) -> None:
    chosen = Choice(layer=2, strength=0.5, system_prompt="calibrated")
    own = {"layer": 4, "system_prompt": "detailed", "controls": {"random": 0, "negated": False}}
    compare, controls = program(folder, compare=own).compare(chosen)
    assert {c.system_prompt for c in compare.conditions} == {None, DETAILED}
    layers = {i.layer for s in (compare, controls) for c in s.conditions for i in c.interventions}
    assert layers == {4}
    none = {**own, "controls": {"random": 0, "negated": False, "shuffled": False}}
    assert [s.name for s in program(folder, compare=none).compare(chosen)] == ["compare"]


@pytest.mark.parametrize(
    ("strengths", "usual"), [([0.5, 1.0, 3.0], 1.0), ([0.5, 2.0, 3.0], 2.0), ([0.0, -2.0], -2.0)]
)
def test_without_a_search_controls_are_at_strength_1_or_the_middle_one(
    folder: Path, strengths: list[float], usual: float
) -> None:
    given = {"layer": 4, "strengths": strengths}
    *_, controls = program(folder, compare=given).compare(None)
    assert {i.strength for c in controls.conditions for i in c.interventions} == {usual}


def test_what_cannot_be_steered_is_said(folder: Path) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"sweep": {"layers": [3]}}, "layer 3 is to be steered but has no vector.*layers 2, 4"),
        ({"sweep": {"strengths": [0.0]}}, "sweep.strengths has no strength other than 0"),
        ({"compare": {"layer": 2, "strengths": [0.0]}}, "compare.strengths has no strength other"),
        ({}, "say which layer to steer"),
    ]
    for changes, message in cases:
        asked = program(folder, **changes)
        with pytest.raises(ConfigError, match=message):
            list(asked.search() if "sweep" in changes else asked.compare(None))


def test_every_condition_that_steers_has_the_scope_of_the_config(folder: Path) -> None:
    asked = program(folder, scope="answer", gate={})
    stages = [*asked.search(), *asked.compare(Choice(layer=2, strength=1.0))]
    scopes = {i.scope for s in stages for c in s.conditions for i in c.interventions}
    assert scopes == {"answer"}


def test_a_program_needs_no_mlx() -> None:
    code = "import sys, mlx_steer.experiment.program; sys.exit('mlx.core' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_what_the_answer_needs_is_the_chosen_cells_alone_and_controls_on_target_prompts(
    folder: Path,
) -> None:
    chosen = Choice(
        layer=2,
        strength=0.5,
        system_prompt="calibrated",
        gated=GatedChoice(layer=4, strength=2.0),
    )
    results = Fixed()
    made = program(folder, results, gate={}, compare={"extent": "answer"}).compare(chosen)
    compare, both, controls = made
    assert [cell(c) for c in compare.conditions] == [
        ("base", None, []),
        ("prompt", CALIBRATED, []),
        ("steering", None, [(2, 0.5)]),
        ("gated", None, [(4, 2.0)]),
    ]
    assert {i.set for i in compare.items} == {"target", "other", "borderline"}
    assert [cell(c) for c in both.conditions] == [("prompt+steering", CALIBRATED, [(2, 0.5)])]
    assert {i.set for i in both.items} == {"target", "other"}
    assert {i.set for i in controls.items} == {"target"}
    assert results.asked == [None, (2,)], "no gate is fitted under the system prompt"
