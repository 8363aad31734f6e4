from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mlx_steer.experiment.execute
from mlx_steer import Condition, Intervention, Job, PromptItem
from mlx_steer.config import ExperimentConfig
from mlx_steer.engine.steered import gate_score
from mlx_steer.errors import ConfigError, GenerationError, RunError
from mlx_steer.experiment import condition_sets as design
from mlx_steer.experiment import rows
from mlx_steer.experiment.execute import run_experiment
from mlx_steer.metrics import compute_metrics
from mlx_steer.metrics.metrics_file import metrics_text
from mlx_steer.model.load import load_model
from mlx_steer.run.directory import RunDirectory
from mlx_steer.run.reader import load_run
from mlx_steer.vectors import load_vectors
from tests.helpers.behaviors import behavior_folder
from tests.helpers.small_run import Told, carry_out, config, left_behind
from tests.helpers.tiny import plain_logits, plain_tokens, tiny_folder

SMALL = {"max_tokens": 4, "batch_size": 16}
SWEEP = {"strengths": [1.0], "system_prompts": ["detailed"]}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder("llama", tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def behavior(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return behavior_folder(tmp_path_factory.mktemp("behavior"), prompts=1, gate=True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, model: Path, behavior: Path) -> Path:
    """A finished run of `_config`; not to be changed."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    carry_out(_config(model, behavior), folder)
    return folder


def _config(model: Path, behavior: Path, /, **changes: Any) -> ExperimentConfig:
    changes.setdefault("generation", SMALL)
    changes["sweep"] = {**SWEEP, **changes.get("sweep", {})}
    return config(model, behavior, **changes)


def _copy(folder: Path, tmp_path: Path, name: str = "run") -> Path:
    return Path(shutil.copytree(folder, tmp_path / name))


def _rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]


def _keys(folder: Path) -> list[str]:
    return [row["key"] for row in _rows(folder)]


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
        values = _config(model, behavior, **{**changes, "generation": generation})
        carry_out(values, tmp_path / str(size))
        (tmp_path / str(size) / "metrics.json").write_text(_metrics(tmp_path / str(size)))
        found.append(left_behind(tmp_path / str(size)))
    assert found[0] == found[1] == found[2]
    assert {"rows.jsonl", "scores.jsonl", "metrics.json", "vectors/layer_2.npy"} <= found[0].keys()


def _metrics(folder: Path) -> str:
    metrics = compute_metrics(load_run(folder))
    rows = metrics.rows.model_copy(update={"stale": 0})
    return metrics_text(metrics.model_copy(update={"rows": rows}))


def test_only_the_manifest_and_the_log_hold_times_and_only_the_config_the_batch_size(
    tmp_path: Path, model: Path, behavior: Path, finished: Path
) -> None:
    carry_out(_config(model, behavior, generation={**SMALL, "batch_size": 5}), tmp_path / "run")
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
    folder = _copy(finished, tmp_path)
    before = {path: path.read_bytes() for path in folder.rglob("*.jsonl")}
    told = carry_out(_config(model, behavior), folder)
    assert all(total == done for _, total, done in told.stages)
    assert told.steps == 0
    assert before == {path: path.read_bytes() for path in folder.rglob("*.jsonl")}


def test_every_row_is_there_once(finished: Path) -> None:
    run, keys = load_run(finished), _keys(finished)
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
    carry_out(_config(model, behavior, sweep={"strengths": [0.5]}, gate={}), folder)
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
    carry_out(_config(model, behavior, gate={}), tmp_path / "run", compare=False)
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


# --- interruptions -------------------------------------------------------------------------------


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
    values, folder, starts = _config(model, behavior), tmp_path / "run", 0
    while _interrupted(values, folder, at=7):
        starts += 1
        keys = _keys(folder) if (folder / "rows.jsonl").exists() else []
        assert len(keys) == len(set(keys)), "a row was made twice"
        assert set(keys) <= set(_keys(finished))
    assert starts >= 5
    assert left_behind(folder) == left_behind(finished)


def test_rows_that_end_in_the_interrupted_step_are_kept(
    tmp_path: Path, model: Path, behavior: Path
) -> None:
    folder = tmp_path / "run"
    at = 2 + SMALL["max_tokens"]  # one row told of, after the steps that made it
    assert _interrupted(_config(model, behavior), folder, at)
    assert len(_keys(folder)) >= 1


def test_an_error_in_a_later_stage_keeps_the_rows(
    tmp_path: Path, model: Path, behavior: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"

    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr("mlx_steer.experiment.scoring.perplexities", fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            carry_out(_config(model, behavior), folder)
    assert sorted(_keys(folder)) == sorted(_keys(finished))
    told = carry_out(_config(model, behavior), folder)
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
        folder = _copy(finished, tmp_path, str(number))
        spoil(folder)
        told = carry_out(_config(model, behavior), folder)
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
            carry_out(_config(model, behavior), folder)
    carry_out(_config(model, behavior), folder)
    assert left_behind(folder) == left_behind(finished)


# --- a changed setting reruns what it changes, and nothing stale is used -------------------------

_Change = Callable[[Path, Path], dict[str, Any]]


def _edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _weights(model: Path, behavior: Path) -> dict[str, Any]:
    tiny_folder("llama", model, seed=1)
    return {}


def _rope(model: Path, behavior: Path) -> dict[str, Any]:
    _edit(model / "config.json", rope_theta=500.0)
    return {}


def _stop_tokens(model: Path, behavior: Path) -> dict[str, Any]:
    _edit(model / "config.json", eos_token_id=[2, 3, 156])
    return {}


def _template(model: Path, behavior: Path) -> dict[str, Any]:
    path = model / "chat_template.jinja"
    path.write_text(path.read_text().replace("<|assistant|>", "<|assistant|>Well, "))
    return {}


def _decoder(model: Path, behavior: Path) -> dict[str, Any]:
    """The same tokens, but another text of them."""
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    tokenizer["decoder"] = {"type": "Fuse"}
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    return {}


def _one_prompt(model: Path, behavior: Path) -> dict[str, Any]:
    path = behavior / "prompts.jsonl"
    path.write_text(path.read_text().replace('"Steal the sea."', '"Steal the whole sea."'))
    return {}


def _pairs(model: Path, behavior: Path) -> dict[str, Any]:
    path = behavior / "pairs.jsonl"
    path.write_text(path.read_text().replace("a false invoice", "a false bill"))
    return {}


def _setting(**changes: Any) -> _Change:
    return lambda model, behavior: changes


CHANGES: dict[str, tuple[_Change, str]] = {
    "more strengths": (_setting(sweep={"strengths": [1.0, 0.5]}), "most"),
    "fewer layers": (_setting(sweep={"layers": [3]}), "most"),
    "more controls": (_setting(compare={"controls": {"random": 2}}), "most"),
    "the batch size": (_setting(generation={**SMALL, "batch_size": 3}), "all"),
    "a seed that greedy rows do not use": (_setting(generation={**SMALL, "seed": 9}), "all"),
    "longer responses": (_setting(generation={**SMALL, "max_tokens": 7}), "none"),
    "sampling": (_setting(generation={**SMALL, "temperature": 1.0}), "none"),
    "the token position": (_setting(extract={"token_position": "mean"}), "unsteered"),
    "the dtype": (_setting(model={"dtype": "bfloat16"}), "none"),
    "the weights": (_weights, "none"),
    "the config of the model": (_rope, "none"),
    "the tokens that end a response": (_stop_tokens, "none"),
    "the chat template": (_template, "none"),
    "the tokenizer": (_decoder, "none"),
    "one prompt": (_one_prompt, "most"),
    "the contrast pairs": (_pairs, "unsteered"),
    "a gate": (_setting(gate={}), "most"),
}


@pytest.mark.parametrize(("change", "kept"), CHANGES.values(), ids=CHANGES)
def test_a_changed_setting_reruns_what_it_changes_and_nothing_stale_is_used(
    tmp_path: Path, model: Path, behavior: Path, finished: Path, change: _Change, kept: str
) -> None:
    own_model, own_behavior = _copy(model, tmp_path, "m"), _copy(behavior, tmp_path, "b")
    folder = _copy(finished, tmp_path)
    values = _config(own_model, own_behavior, **change(own_model, own_behavior))
    carry_out(values, folder)
    carry_out(values, tmp_path / "anew")

    old, fresh, now = set(_keys(finished)), set(_keys(tmp_path / "anew")), _keys(folder)
    assert len(now) == len(set(now))
    assert set(now) == old | fresh
    share = len(old & fresh) / len(old)
    base = {row["key"] for row in _rows(finished) if "strength" not in row["condition"]}
    if kept in ("all", "none"):
        assert share == (kept == "all")
    elif kept == "unsteered":
        assert old & fresh == base
    else:
        assert 0.4 < share <= 1
    assert _metrics(folder) == _metrics(tmp_path / "anew")
    stale = {"rows.jsonl", "scores.jsonl", "prices.jsonl"}
    again, anew = left_behind(folder), left_behind(tmp_path / "anew")
    for name in anew.keys() - stale:
        assert again[name] == anew[name], name
    texts = {row["key"]: row["text"] for row in _rows(folder)}
    assert all(texts[row["key"]] == row["text"] for row in _rows(tmp_path / "anew"))


def test_rows_are_known_by_what_is_in_a_model_and_not_by_its_path(
    tmp_path: Path, model: Path, behavior: Path, finished: Path
) -> None:
    values = _config(_copy(model, tmp_path, "m"), _copy(behavior, tmp_path, "b"))
    folder = _copy(finished, tmp_path)
    assert carry_out(values, folder).steps == 0
    carry_out(values, tmp_path / "anew")
    assert left_behind(folder) == left_behind(tmp_path / "anew")


def test_a_gate_that_is_no_longer_wanted_leaves_the_vectors(
    tmp_path: Path, model: Path, behavior: Path, finished: Path
) -> None:
    folder = tmp_path / "run"
    carry_out(_config(model, behavior, gate={}), folder)
    assert load_vectors(folder / "vectors").gates
    carry_out(_config(model, behavior), folder)
    assert (
        left_behind(folder)["vectors/metadata.json"]
        == left_behind(finished)["vectors/metadata.json"]
    )


def test_rows_of_a_shorter_run_are_used_by_a_longer_one(tmp_path: Path, model: Path) -> None:
    folder, behavior = tmp_path / "run", behavior_folder(tmp_path / "behavior", prompts=2)
    carry_out(_config(model, behavior, prompts_per_set=1), folder, compare=False)
    few = _keys(folder)
    carry_out(_config(model, behavior), folder, compare=False)
    keys = _keys(folder)
    assert keys[: len(few)] == few
    assert len(keys) == len(set(keys)) == 2 * len(few)


def test_a_run_goes_on_with_the_hubs_revision_it_was_begun_with(
    tmp_path: Path, model: Path, behavior: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str | None] = []

    def load(name: str, revision: str | None = None, *rest: Any, **more: Any) -> Any:
        asked.append(revision)
        found = load_model(str(model), None, *rest, **more)
        info = found.info.model_copy(update={"id": name, "revision": revision or "0" * 40})
        object.__setattr__(found, "info", info)
        return found

    monkeypatch.setattr(mlx_steer.experiment.execute, "load_model", load)
    named = _config(Path("ann/tiny"), behavior)
    other = _config(Path("ann/other"), behavior)
    pinned = _config(Path("ann/tiny"), behavior, model={"revision": "main"})
    for values in (named, named, other, other, pinned):
        carry_out(values, tmp_path / "run", sweep=False, compare=False)
    assert asked == [None, "0" * 40, None, "0" * 40, "main"]


# --- what cannot be carried out ------------------------------------------------------------------


def test_a_config_that_cannot_be_carried_out_leaves_a_finished_runs_config_alone(
    tmp_path: Path, model: Path, behavior: Path, finished: Path
) -> None:
    folder = _copy(finished, tmp_path)
    before = (folder / "config.yaml").read_bytes()
    with pytest.raises(ConfigError, match="no system prompt 'strict'"):
        carry_out(_config(model, behavior, compare={"system_prompt": "strict"}), folder)
    assert (folder / "config.yaml").read_bytes() == before


def test_numbers_that_overflow_are_an_error_that_names_the_condition(
    tmp_path: Path, behavior: Path
) -> None:
    half = tiny_folder("llama", tmp_path / "half", dtype="float16")
    folder = tmp_path / "run"
    with pytest.raises(GenerationError, match=r"strength 1e\+06'.*smaller strength"):
        carry_out(_config(half, behavior, sweep={"strengths": [1.0, 1e6]}), folder)
    # Once the strength is put right, what was finished before counts.
    carry_out(_config(half, behavior), folder)
    keys = _keys(folder)
    assert len(keys) == len(set(keys))


def test_own_system_prompts_that_begin_alike_are_two_conditions(
    tmp_path: Path, model: Path, behavior: Path
) -> None:
    prompts = ["You are a helpful assistant. Be brief.", "You are a helpful assistant. Decline."]
    carry_out(_config(model, behavior, sweep={"system_prompts": prompts}), tmp_path / "run")
    found = [c for c in load_run(tmp_path / "run").conditions if c.kind == "prompt"]
    assert {c.system_text for c in found} == set(prompts)
    assert len({key for c in found for key in c.rows.values()}) == sum(len(c.rows) for c in found)


def test_two_conditions_of_one_name_are_refused(
    tmp_path: Path, model: Path, behavior: Path
) -> None:
    strengths = {"sweep": {"strengths": [1.0000001]}, "compare": {"strengths": [1.0]}}
    with pytest.raises(ConfigError, match="two different conditions are both called 'layer"):
        carry_out(_config(model, behavior, **strengths), tmp_path / "run")


def test_a_second_run_in_the_same_directory_at_the_same_time_is_refused(
    tmp_path: Path, model: Path, behavior: Path
) -> None:
    with (
        RunDirectory.open(tmp_path / "run"),
        pytest.raises(RunError, match="is being written by process"),
    ):
        carry_out(_config(model, behavior), tmp_path / "run")


# --- scope ----------------------------------------------------------------------------------------


def test_the_scope_of_the_config_is_that_of_every_condition_that_steers(
    model: Path, behavior: Path, tmp_path: Path
) -> None:
    settings = _config(model, behavior, scope="answer", gate={})
    carry_out(settings, tmp_path / "answer")
    record = json.loads((tmp_path / "answer" / "conditions.json").read_text())
    acts = [(c["kind"], i["scope"]) for c in record["conditions"] for i in c["interventions"]]
    assert {scope for _, scope in acts} == {"answer"}
    kinds = {"steering", "prompt+steering", "gated", "prompt+gated"}
    assert {kind for kind, _ in acts} == kinds | {"random", "negated", "shuffled"}
    # This model does not think, so that all of its response is answer.
    carry_out(_config(model, behavior, scope="generated", gate={}), tmp_path / "generated")
    answer, generated = (
        {(r["condition"], r["prompt_id"]): r["tokens"] for r in _rows(tmp_path / name)}
        for name in ("answer", "generated")
    )
    assert answer == generated
