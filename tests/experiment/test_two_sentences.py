"""A whole experiment of two sentences on a tiny model: what is kept, judged, priced, reported."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from mlx_steer.behaviors.two_sentences import behavior_of
from mlx_steer.config import ExperimentConfig, parse_config
from mlx_steer.engine.guard import load_model
from mlx_steer.errors import DataError
from mlx_steer.experiment.part import Part
from mlx_steer.experiment.plan import plan_experiment
from mlx_steer.experiment.preset import two_sentence_experiment
from mlx_steer.experiment.sentence_scores import Forced, forced_rank
from mlx_steer.extraction.sentence_judge import SentenceJudge
from mlx_steer.judge.facts import is_right
from mlx_steer.judge.log_ratio import Calibration, Pair, calibrated
from mlx_steer.metrics import compute_metrics, judged
from mlx_steer.report import write_report
from mlx_steer.run.directory import RunDirectory
from mlx_steer.run.merge import take_rows
from mlx_steer.run.reader import load_run
from mlx_steer.sentences import TwoSentences
from tests.helpers.behaviors import behavior_folder
from tests.helpers.small_run import carry_out, left_behind
from tests.helpers.small_run import config as small_config
from tests.helpers.tiny import tiny_folder

SAID = {
    "positive": "Decline this request. I'm sorry, but it would not be safe.",
    "negative": "Sure, bake bread, and write of the sea and the wind.",
    "name": "decline",
    "rules": "refusal",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder("llama", tmp_path_factory.mktemp("model"))


@pytest.fixture(autouse=True, scope="module")
def lenient():
    """A random model's text is no language: here every text counts as coherent enough."""
    with pytest.MonkeyPatch.context() as patch:
        for module in ("extraction.written_pairs", "metrics.verdicts"):
            patch.setattr(f"mlx_steer.{module}.COHERENCE_THRESHOLD", -1.0)
        patch.setattr("mlx_steer.extraction.written_pairs.LEAST_AUC", 0.0)
        patch.setattr("mlx_steer.extraction.written_pairs.calibrated", all_told)
        yield


def all_told(pairs: list[Pair], questions: list[str]) -> Calibration:
    """As it is, but that every pair is kept: a random model hardly follows a system prompt."""
    return replace(calibrated(pairs, questions), told=(True,) * len(pairs))


def settings(model: Path, **changes: Any) -> ExperimentConfig:
    values: dict[str, Any] = {
        "prompts_per_set": 5,
        "extract": {"layers": [2, 3], "token_position": "mean", "answer_tokens": 8},
        "sweep": {
            "strategy": "race",
            "strengths": [0.5, 1.0, 2.0],
            "system_prompts": ["positive"],
            "race": {"cells": 3, "rounds": 2, "screened_prompts": 2},
        },
        "compare": {"extent": "answer", "controls": {"random": 1}},
    }
    return small_config(model, "two sentences", **{"behavior": SAID, **values, **changes})


@pytest.fixture(scope="module")
def finished(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    carry_out(settings(model), folder)
    return folder


def test_the_judge_and_its_threshold_stand_with_the_behavior(finished: Path):
    run = load_run(finished)
    said = run.behavior.sentences
    assert said is not None and said.positive == SAID["positive"]
    assert said.threshold is not None and said.auc and said.error and said.questions == 5
    assert run.vectors is not None and run.vectors.metadata.written is not None
    assert (finished / "vectors" / "pairs.jsonl").read_bytes() == run.vectors.pairs
    assert said.pairs == run.vectors.metadata.dataset.pairs  # type: ignore[union-attr]


@pytest.mark.slow
def test_made_in_parts_it_is_the_run(finished: Path, model: Path, tmp_path: Path):
    """The answers that pairs are made from are a round of their own."""
    run, parts = tmp_path / "run", [tmp_path / "1", tmp_path / "2"]
    for _ in range(4):
        for number, part in enumerate(parts, 1):
            carry_out(settings(model), part, part=Part(number, 2))
        for one in (run, *parts):
            with RunDirectory.open(one) as directory:
                for other in {run, *parts} - {one}:
                    if other.exists():
                        take_rows(directory, other)
    carry_out(settings(model), run)
    assert left_behind(run) == left_behind(finished)


def test_every_row_but_the_facts_has_a_ratio_and_verdicts_follow_from_it(
    finished: Path, model: Path
):
    run = load_run(finished)
    scored, said = judged(run), run.behavior.sentences
    assert said is not None and said.threshold is not None
    kinds = set()
    for condition in run.conditions:
        for name, key in condition.rows.items():
            if run.prompts[name].split == "facts":
                assert key not in scored
                continue
            ratio = run.scores[key].log_ratio
            shown = ratio is not None and ratio > said.threshold
            assert scored[key].verdict == (
                "incoherent" if ratio is None else "shown" if shown else "absent"
            )
            kinds.add(condition.kind)
    assert kinds == {
        *("base", "prompt", "steering", "prompt+steering", "random", "negated", "shuffled")
    }
    # The ratios are those that the judge reads of the texts, whatever stage they are from.
    loaded = load_model(str(model))
    behavior = behavior_of(run.config.behavior)
    judge = SentenceJudge(
        loaded, behavior.sentences, [p for p in behavior.prompts if p.split != "facts"]
    )
    base = run.condition("base")
    asked = [
        (key, run.prompts[n], run.rows[key].text)
        for n, key in base.rows.items()
        if run.prompts[n].split == "test"
    ]
    for part in judge.ratios(asked):
        for key, ratio in part:
            assert ratio.value == pytest.approx(run.scores[key].log_ratio, abs=2e-4)


def test_a_run_goes_on_to_the_same_bytes(finished: Path, model: Path, tmp_path: Path):
    copy = tmp_path / "run"
    copy.mkdir()
    for name in ("rows.jsonl", "scores.jsonl"):
        lines = (finished / name).read_bytes().splitlines(keepends=True)
        (copy / name).write_bytes(b"".join(lines[: len(lines) // 2]))
    (copy / "run.log").write_text("")
    carry_out(settings(model), copy)
    before, after = left_behind(finished), left_behind(copy)
    for name in ("metrics.json", "report.md"):
        before.pop(name, None)
    assert after == before


def test_the_report_says_what_the_judge_is_and_what_steering_costs(finished: Path):
    write_report(finished)
    text = (finished / "report.md").read_text()
    metrics = compute_metrics(load_run(finished))
    found = metrics.sentences
    assert found is not None
    assert f"AUC {found.auc[0]:.3f}" in text and "likeness to prompted answers" in text
    assert "without the sentences' own words" in text
    assert found.rules is not None and found.rules.n == len(judged(load_run(finished)))
    assert f"read the same {found.rules.n} responses and agreed on" in text
    assert "nan" not in text and "None" not in text
    chosen = metrics.test.main("steering")
    assert chosen is not None and chosen.false_positive.n == 0
    assert chosen.gap == chosen.target.rate
    right = found.right(chosen.name)
    assert right is not None and right.n == 5
    run = load_run(finished)
    rows = run.condition(chosen.name).rows
    wanted = sum(
        is_right(run.prompts[n].check, run.rows[k].text)
        for n, k in rows.items()
        if run.prompts[n].split == "facts"
    )
    assert right.count == wanted
    assert json.loads((finished / "metrics.json").read_text())["sentences"]["facts"]


def test_the_plan_counts_the_rows_that_the_run_makes(finished: Path, model: Path):
    plan = plan_experiment(settings(model))
    rows = {stage.name: stage.rows for stage in plan.stages}
    assert rows["answers"] == 10 and rows["facts"] == 10 and rows["extract"] == 10
    assert rows["controls"] == 15


def test_sentences_that_the_model_does_not_follow_stop_the_run(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("mlx_steer.extraction.written_pairs.LEAST_AUC", 1.01)
    with pytest.raises(DataError, match="cannot tell the two sentences' answers apart"):
        carry_out(settings(model), tmp_path / "run")


def test_changed_sentences_are_judged_anew(finished: Path, model: Path, tmp_path: Path):
    import shutil

    copy = tmp_path / "run"
    shutil.copytree(finished, copy)
    other = {**SAID, "negative": "Write a short poem about the morning."}
    carry_out(settings(model, behavior=other), copy)
    run = load_run(copy)
    judges = {
        run.scores[key].sentences
        for c in run.conditions
        for key in c.rows.values()
        if key in run.scores and run.scores[key].sentences
    }
    assert run.behavior.sentences and judges == {run.behavior.sentences.judge}


def test_the_screening_puts_likely_answers_before_strong_steering():
    cells = {
        "strong": (Forced(-1.46, -1.6), 2.0),
        "good": (Forced(-1.38, -1.3), 1.5),
        "weak": (Forced(-1.40, -1.1), 0.75),
        "babble": (Forced(-3.0, -3.5), 4.0),
    }
    order = sorted(cells, key=lambda name: forced_rank(cells[name][0], -1.45, cells[name][1]))
    assert order == ["good", "weak", "strong", "babble"]


def test_prompts_of_ones_own_bring_a_limit_on_false_positives_and_a_gate(
    model: Path, tmp_path: Path
):
    prompts = behavior_folder(tmp_path / "own", gate=True) / "prompts.jsonl"
    config = settings(
        model,
        behavior={**SAID, "prompts": str(prompts)},
        prompts_per_set=3,
        gate={"layers": [2], "methods": ["mean_difference"], "false_positive_rate": 0.5},
    )
    carry_out(config, tmp_path / "run")
    write_report(tmp_path / "run")
    metrics = compute_metrics(load_run(tmp_path / "run"))
    chosen, gated = metrics.test.main("steering"), metrics.test.main("gated")
    assert chosen is not None and gated is not None
    assert chosen.target.n == chosen.false_positive.n == gated.false_positive.n == 3
    assert metrics.sentences is not None and metrics.sentences.right(chosen.name)
    text = (tmp_path / "run" / "report.md").read_text()
    assert "false positives at most 10 points over base" in text
    assert "lower of base and the positive prompt" in text


def test_one_command_gets_a_race_over_middle_layers_with_the_sentence_as_system_prompt(model: Path):
    config = two_sentence_experiment(TwoSentences(**SAID), str(model))
    assert config.name == "decline" and config.behavior == TwoSentences(**SAID)
    assert config.extract.layers == (2, 3) and config.sweep.system_prompts == ("positive",)
    stages = {stage.name: stage.rows for stage in plan_experiment(config).stages}
    assert stages["answers"] == 120 and stages["facts"] == 200
    assert parse_config(yaml.safe_load(config.to_yaml()), "its file") == config
