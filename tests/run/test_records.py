"""What is written is what is read, by this version and of the one before."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from mlx_steer.behaviors import PromptItem, load_behavior
from mlx_steer.conditions import Condition, Gate, Intervention
from mlx_steer.metrics import compute_metrics
from mlx_steer.report import write_report
from mlx_steer.run.directory import json_line, parse_lines
from mlx_steer.run.reader import load_run
from mlx_steer.run.records import (
    FORMAT_VERSION,
    BehaviorRecord,
    Choice,
    ConditionRecord,
    Score,
    prompt_json,
    record_json,
)
from mlx_steer.vectors import SteeringVectorSet
from mlx_steer.vectors.vector import SteeringVector
from mlx_steer.words import GateJoin
from tests.helpers.behaviors import behavior_folder
from tests.helpers.small_run import carry_out, config
from tests.helpers.tiny import random_vector, tiny_folder
from tests.helpers.vector_sets import metadata

VECTORS = SteeringVectorSet([SteeringVector(2, random_vector(0, size=8), 10.0)], metadata())
GATES = (Gate(1, random_vector(1, size=8), 0.5, "a"), Gate(2, random_vector(2, size=8), 0.1, "b"))
ACTS = (Intervention(2, random_vector(0, size=8), 1.0),)
# Written by version 0.1 from a tiny random model.
FORMAT_1 = Path(__file__).with_name("format_1")


@pytest.mark.parametrize(("join", "opened"), [("any", True), ("all", False)])
def test_gates_that_disagree_are_read_as_they_were_joined(join: GateJoin, opened: bool) -> None:
    condition = Condition("gated", None, ACTS, GATES, gate_join=join)
    made = ConditionRecord.of(condition, VECTORS, {})
    made = made.with_rows({"p": "key"}, {"a": {"p": 0.25}, "b": {"p": -0.25}})
    made = made.with_rows({"q": "other"}, {"a": {"q": 1.0}, "b": {"q": 1.0}})
    read = ConditionRecord.model_validate_json(json.dumps(record_json(made)))
    assert read == made
    assert read.rows == {"p": "key", "q": "other"}
    assert (read.gate_join, read.opened("p"), read.opened("q")) == (join, opened, True)


def test_no_field_of_a_condition_is_left_to_its_default() -> None:
    written = record_json(ConditionRecord.of(Condition("base"), VECTORS, {}))
    # Of a band alone, so that other records are what they were.
    assert written.keys() | {"band_dose"} == ConditionRecord.model_fields.keys()
    both = [SteeringVector(k, random_vector(k, size=8), 10.0) for k in (2, 3)]
    acts = tuple(Intervention(v.layer, v.array, 0.5) for v in both)
    vectors = SteeringVectorSet(both, metadata())
    band = record_json(ConditionRecord.of(Condition("band", None, acts), vectors, {}))
    assert band.keys() == ConditionRecord.model_fields.keys()


def test_a_score_says_only_what_was_computed() -> None:
    empty = Score(key="a", perplexity=None)
    assert record_json(empty) == {"key": "a", "perplexity": None}
    assert empty.says("perplexity") and not empty.says("judge_model")
    read = Score.model_validate_json('{"key": "a", "judge": "m", "judge_model": null}')
    assert read.says("judge_model") and not read.says("perplexity")


def test_a_choice_without_gates_does_not_speak_of_them() -> None:
    assert record_json(Choice(layer=3, strength=1.0)) == {"layer": 3, "strength": 1.0}


@pytest.mark.parametrize("name", ["refusal", "hierarchy", "tool_restraint"])
def test_prompts_and_words_of_a_behavior_come_back_as_they_were(name: str) -> None:
    behavior = load_behavior(name)
    text = "".join(json_line(prompt_json(item)) for item in behavior.prompts)
    read = parse_lines(text.encode(), Path("prompts.jsonl"), PromptItem)
    assert tuple(read) == behavior.prompts
    record = BehaviorRecord.model_validate(behavior)
    assert record_json(record).keys() == BehaviorRecord.model_fields.keys()
    assert record.verdict_word("shown") == behavior.verdict_word("shown")


def test_a_run_of_format_1_is_reported_on(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(FORMAT_1, tmp_path / "run"))
    run = load_run(folder)
    assert len(run.rows) == len((folder / "rows.jsonl").read_text().splitlines()) == 16
    metrics = compute_metrics(run)
    assert metrics.rows.missing == 0 and metrics.gates and metrics.controls
    assert write_report(folder).markdown.read_text().startswith("# Caution")


def test_a_run_of_format_1_is_continued_without_making_a_row_again(tmp_path: Path) -> None:
    """As format 1 wrote it: rows had two more fields."""
    model, behavior = tiny_folder("llama", tmp_path / "model"), behavior_folder(tmp_path / "b")
    values = config(model, behavior, sweep={"strengths": [1.0], "system_prompts": []})
    carry_out(values, tmp_path / "run", compare=False)
    path, manifest = tmp_path / "run" / "rows.jsonl", tmp_path / "run" / "manifest.json"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    old = "".join(json_line({**row, "gates": [], "steered": True}) for row in rows)
    path.write_text(old)
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format_version": 1}))
    told = carry_out(values, tmp_path / "run", compare=False)
    assert told.steps == 0
    assert path.read_text() == old
    assert json.loads(manifest.read_text())["format_version"] == FORMAT_VERSION
    assert "steered" not in rows[0] and "gates" not in rows[0]
