from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlx_steer import Condition, Intervention, Job, PromptItem
from mlx_steer.engine.steered import gate_score
from mlx_steer.errors import ConfigError, GenerationError, RunError
from mlx_steer.experiment import condition_sets as design
from mlx_steer.experiment import rows
from mlx_steer.model.load import load_model
from mlx_steer.run.directory import RunDirectory
from mlx_steer.run.reader import load_run
from mlx_steer.vectors import load_vectors
from tests.experiment.conftest import SMALL, copied, keys_of, metrics_of, rows_of, small
from tests.helpers.behaviors import behavior_folder
from tests.helpers.plain import plain_logits, plain_tokens
from tests.helpers.small_run import carry_out, left_behind
from tests.helpers.tiny import tiny_folder

# --- the same config gives the same bytes --------------------------------------------------------


VARIANTS: dict[str, dict[str, Any]] = {
    "greedy and gated": {"gate": {}},
    "sampled": {"generation": {**SMALL, "temperature": 0.8, "seed": 3}},
}


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_the_batch_size_changes_no_byte(
    tmp_path: Path, model: Path, behavior: Path, changes: dict[str, Any]
) -> None:
    _check_batch_sizes(tmp_path, model, behavior, changes)


@pytest.mark.slow
@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("family", ["qwen3", "gemma2", "gemma3_text", "phi3", "mixtral"])
def test_the_batch_size_changes_no_byte_in_any_family(
    tmp_path: Path, family: str, changes: dict[str, Any]
) -> None:
    model = tiny_folder(family, tmp_path / "model")
    behavior = behavior_folder(tmp_path / "behavior", prompts=3, gate=True)
    _check_batch_sizes(tmp_path, model, behavior, changes)


def _check_batch_sizes(
    tmp_path: Path, model: Path, behavior: Path, changes: dict[str, Any]
) -> None:
    found = []
    for size in (1, 7, 64):
        generation = {**SMALL, **changes.get("generation", {}), "batch_size": size}
        values = small(model, behavior, **{**changes, "generation": generation})
        carry_out(values, tmp_path / str(size))
        (tmp_path / str(size) / "metrics.json").write_text(metrics_of(tmp_path / str(size)))
        found.append(left_behind(tmp_path / str(size)))
    assert found[0] == found[1] == found[2]
    assert {"rows.jsonl", "scores.jsonl", "metrics.json", "vectors/layer_2.npy"} <= found[0].keys()


def test_only_the_manifest_and_the_log_hold_times_and_only_the_config_the_batch_size(
    tmp_path: Path, model: Path, behavior: Path, finished: Path
) -> None:
    carry_out(small(model, behavior, generation={**SMALL, "batch_size": 5}), tmp_path / "run")
    different = {
        path.name
        for path in finished.iterdir()
        if path.is_file() and path.read_bytes() != (tmp_path / "run" / path.name).read_bytes()
    }
    # Rows and scores stand in the order they were finished.
    assert different - {"rows.jsonl", "scores.jsonl", "prices.jsonl", ".lock"} <= {
        "manifest.json",
        "run.log",
        "config.yaml",
    }
    first = (finished / "config.yaml").read_text().splitlines()
    second = (tmp_path / "run" / "config.yaml").read_text().splitlines()
    changed = [a for a, b in zip(first, second, strict=True) if a != b]
    assert changed == ["  batch_size: 16"]


def test_a_finished_run_makes_nothing_again(
    tmp_path: Path, model: Path, behavior: Path, finished: Path
) -> None:
    folder = copied(finished, tmp_path)
    before = {path: path.read_bytes() for path in folder.rglob("*.jsonl")}
    told = carry_out(small(model, behavior), folder)
    assert all(total == done for _, total, done in told.stages)
    assert told.steps == 0
    assert before == {path: path.read_bytes() for path in folder.rglob("*.jsonl")}


def test_every_row_is_there_once(finished: Path) -> None:
    run, keys = load_run(finished), keys_of(finished)
    named = {key for condition in run.conditions for key in condition.rows.values()}
    assert sorted(keys) == sorted(named)
    scores = [json.loads(line) for line in (finished / "scores.jsonl").read_text().splitlines()]
    assert len(scores) == len({score["key"] for score in scores}) == len(run.scores) > 0
    assert run.scores.keys() <= named


# --- rows are what they are said to be -----------------------------------------------------------


@pytest.fixture(scope="module")
def gated(tmp_path_factory: pytest.TempPathFactory, model: Path, behavior: Path) -> Path:
    """A finished run whose chosen strength is not 1 and that has a gate; not to be changed."""
    folder = tmp_path_factory.mktemp("runs") / "gated"
    carry_out(small(model, behavior, sweep={"strengths": [0.5]}, gate={}), folder)
    return folder


def test_the_sweep_runs_on_the_select_half_and_the_comparison_on_the_test_half(gated: Path) -> None:
    run, layer = load_run(gated), json.loads((gated / "choice.json").read_text())["layer"]
    swept = {("target", "select"), ("other", "select")}
    compared = {("target", "test"), ("other", "test"), ("borderline", "test")}
    controls = {("target", "test"), ("other", "test")}
    kinds = set()
    for condition in run.conditions:
        found = {(run.prompts[i].set, run.prompts[i].split) for i in condition.rows}
        if condition.is_control:
            wanted = controls
            assert (condition.layer, condition.strength) == (layer, 0.5), "as the sweep has chosen"
        elif condition.kind.startswith("prompt+"):
            wanted = compared
        elif condition.kind == "steering" and condition.layer != layer:
            wanted = swept
        elif condition.kind == "steering" and condition.strength == 1.0:
            wanted = compared  # only the config's comparison asks for it
        elif condition.kind == "gated":
            wanted = found
            assert found and (found <= swept or compared <= found)
        else:
            wanted = swept | compared
        assert found == wanted, condition.name
        kinds.add(condition.kind)
    assert kinds >= {"base", "prompt", "steering", "gated", "prompt+steering", "prompt+gated"}
    assert kinds >= {"random", "negated", "shuffled"}


def test_every_row_and_its_perplexity_are_those_of_plain_passes(gated: Path, model: Path) -> None:
    """Computed anew from what the run's files say, each row by itself, uncached."""
    run, plain, vectors = load_run(gated), load_model(str(model)), load_vectors(gated / "vectors")
    layer = json.loads((gated / "choice.json").read_text())["layer"]
    shuffled = load_vectors(gated / "vectors_shuffled")[layer]
    made = design.controls(
        [vectors[layer]],
        0.5,
        run.config.compare.controls,
        [shuffled],
        run.config.statistics.seed,
    )
    controls = {c.name: c.interventions for c in made}
    opened, scored = set(), set()
    for condition in run.conditions:
        for prompt_id, key in condition.rows.items():
            ids = tuple(plain.chat.prompt_ids(run.prompts[prompt_id].prompt, condition.system_text))
            acts = controls.get(condition.name) or tuple(
                Intervention(i.layer, vectors[i.layer].array, i.strength)
                for i in condition.interventions
            )
            for use in condition.gates:
                score = gate_score(plain.network, vectors.gate(use.name), ids)
                assert condition.gate_scores[use.name][prompt_id] == pytest.approx(score, abs=1e-3)
                acts = acts if score >= 0 else ()
                opened.add(score >= 0)
            tokens = run.rows[key].tokens
            job = Job(key, ids, Condition("", None, acts))
            assert tokens == plain_tokens(plain, job, SMALL["max_tokens"]), (condition.name, ids)
            logits = np.array(plain_logits(plain, [*ids, *tokens], (), 0)).astype(np.float64)
            steps = logits[len(ids) - 1 : -1]
            chances = np.exp(steps) / np.exp(steps).sum(axis=-1, keepdims=True)
            loss = -np.log(chances[range(len(tokens)), tokens]).mean()
            if key in run.scores:
                found = run.scores[key].perplexity
                assert found == pytest.approx(np.exp(loss), rel=2e-3), condition.name
                scored.add(condition.kind)
    assert opened == {True, False}
    assert scored >= {"base", "prompt", "steering", "gated", "prompt+steering", "prompt+gated"}


def test_a_score_at_the_threshold_gives_the_steered_row(
    tmp_path: Path, model: Path, behavior: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Scores are rounded to six digits, so that they can be zero.
    monkeypatch.setattr(rows, "gate_scores", lambda model, gate, prompts: [0.0] * len(prompts))
    carry_out(small(model, behavior, gate={}), tmp_path / "run", compare=False)
    conditions = load_run(tmp_path / "run").conditions
    steered = {(c.layer, c.strength): c.rows for c in conditions if c.kind == "steering"}
    gated_ = {(c.layer, c.strength): c.rows for c in conditions if c.kind == "gated"}
    assert gated_ == steered


def test_a_conditions_system_prompt_follows_the_prompts_own(model: Path) -> None:
    loaded = load_model(str(model))
    item = PromptItem("1", "What is it?", "target", "test", system="You know the sea.")
    for condition, system in (("Be brief.", "You know the sea.\n\nBe brief."), (None, item.system)):
        wanted = loaded.chat.prompt_ids(item.prompt, system)
        assert list(rows.prompt_ids(loaded, item, condition)) == wanted


# --- what cannot be carried out ------------------------------------------------------------------


def test_a_config_that_cannot_be_carried_out_leaves_a_finished_runs_config_alone(
    tmp_path: Path, model: Path, behavior: Path, finished: Path
) -> None:
    folder = copied(finished, tmp_path)
    before = (folder / "config.yaml").read_bytes()
    with pytest.raises(ConfigError, match="no system prompt 'strict'"):
        carry_out(small(model, behavior, compare={"system_prompt": "strict"}), folder)
    assert (folder / "config.yaml").read_bytes() == before


def test_numbers_that_overflow_are_an_error_that_names_the_condition(
    tmp_path: Path, behavior: Path
) -> None:
    half = tiny_folder("llama", tmp_path / "half", dtype="float16")
    folder = tmp_path / "run"
    with pytest.raises(GenerationError, match=r"strength 1e\+06'.*smaller strength"):
        carry_out(small(half, behavior, sweep={"strengths": [1.0, 1e6]}), folder)
    # Once the strength is put right, what was finished before counts.
    carry_out(small(half, behavior), folder)
    keys = keys_of(folder)
    assert len(keys) == len(set(keys))


def test_own_system_prompts_that_begin_alike_are_two_conditions(
    tmp_path: Path, model: Path, behavior: Path
) -> None:
    prompts = ["You are a helpful assistant. Be brief.", "You are a helpful assistant. Decline."]
    carry_out(small(model, behavior, sweep={"system_prompts": prompts}), tmp_path / "run")
    found = [c for c in load_run(tmp_path / "run").conditions if c.kind == "prompt"]
    assert {c.system_text for c in found} == set(prompts)
    assert len({key for c in found for key in c.rows.values()}) == sum(len(c.rows) for c in found)


def test_two_conditions_of_one_name_are_refused(
    tmp_path: Path, model: Path, behavior: Path
) -> None:
    strengths = {"sweep": {"strengths": [1.0000001]}, "compare": {"strengths": [1.0]}}
    with pytest.raises(ConfigError, match="two different conditions are both called 'layer"):
        carry_out(small(model, behavior, **strengths), tmp_path / "run")


def test_a_second_run_in_the_same_directory_at_the_same_time_is_refused(
    tmp_path: Path, model: Path, behavior: Path
) -> None:
    with (
        RunDirectory.open(tmp_path / "run"),
        pytest.raises(RunError, match="is being written by process"),
    ):
        carry_out(small(model, behavior), tmp_path / "run")


# --- scope ----------------------------------------------------------------------------------------


def test_the_scope_of_the_config_is_that_of_every_condition_that_steers(
    model: Path, behavior: Path, tmp_path: Path
) -> None:
    settings = small(model, behavior, scope="answer", gate={})
    carry_out(settings, tmp_path / "answer")
    record = json.loads((tmp_path / "answer" / "conditions.json").read_text())
    acts = [(c["kind"], i["scope"]) for c in record["conditions"] for i in c["interventions"]]
    assert {scope for _, scope in acts} == {"answer"}
    kinds = {"steering", "prompt+steering", "gated", "prompt+gated"}
    assert {kind for kind, _ in acts} == kinds | {"random", "negated", "shuffled"}
    # This model does not think, so that all of its response is answer.
    carry_out(small(model, behavior, scope="generated", gate={}), tmp_path / "generated")
    answer, generated = (
        {(r["condition"], r["prompt_id"]): r["tokens"] for r in rows_of(tmp_path / name)}
        for name in ("answer", "generated")
    )
    assert answer == generated
