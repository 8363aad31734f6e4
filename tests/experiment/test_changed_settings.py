"""A changed setting makes again what it changes, and nothing stale is used."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mlx_steer.experiment.execute
from mlx_steer.model.load import load_model
from mlx_steer.vectors import load_vectors
from tests.experiment.conftest import SMALL, copied, keys_of, metrics_of, rows_of, small
from tests.helpers.behaviors import behavior_folder
from tests.helpers.small_run import carry_out, left_behind
from tests.helpers.tiny import tiny_folder

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


# Of changes that go the same way through a run, one or two are tried each time.
SLOW = ["fewer layers", "a seed that greedy rows do not use", "sampling", "the dtype"]
SLOW += ["the config of the model", "the tokenizer"]


@pytest.mark.parametrize(
    ("change", "kept"),
    [pytest.param(*c, marks=[pytest.mark.slow] * (n in SLOW)) for n, c in CHANGES.items()],
    ids=CHANGES,
)
def test_a_changed_setting_reruns_what_it_changes_and_nothing_stale_is_used(
    tmp_path: Path, model: Path, behavior: Path, finished: Path, change: _Change, kept: str
) -> None:
    own_model, own_behavior = copied(model, tmp_path, "m"), copied(behavior, tmp_path, "b")
    folder = copied(finished, tmp_path)
    values = small(own_model, own_behavior, **change(own_model, own_behavior))
    carry_out(values, folder)
    carry_out(values, tmp_path / "anew")

    old, fresh, now = set(keys_of(finished)), set(keys_of(tmp_path / "anew")), keys_of(folder)
    assert len(now) == len(set(now))
    assert set(now) == old | fresh
    share = len(old & fresh) / len(old)
    base = {row["key"] for row in rows_of(finished) if "strength" not in row["condition"]}
    if kept in ("all", "none"):
        assert share == (kept == "all")
    elif kept == "unsteered":
        assert old & fresh == base
    else:
        assert 0.4 < share <= 1
    assert metrics_of(folder) == metrics_of(tmp_path / "anew")
    stale = {"rows.jsonl", "scores.jsonl", "prices.jsonl"}
    again, anew = left_behind(folder), left_behind(tmp_path / "anew")
    for name in anew.keys() - stale:
        assert again[name] == anew[name], name
    texts = {row["key"]: row["text"] for row in rows_of(folder)}
    assert all(texts[row["key"]] == row["text"] for row in rows_of(tmp_path / "anew"))


def test_rows_are_known_by_what_is_in_a_model_and_not_by_its_path(
    tmp_path: Path, model: Path, behavior: Path, finished: Path
) -> None:
    values = small(copied(model, tmp_path, "m"), copied(behavior, tmp_path, "b"))
    folder = copied(finished, tmp_path)
    assert carry_out(values, folder).steps == 0
    carry_out(values, tmp_path / "anew")
    assert left_behind(folder) == left_behind(tmp_path / "anew")


def test_a_gate_that_is_no_longer_wanted_leaves_the_vectors(
    tmp_path: Path, model: Path, behavior: Path, finished: Path
) -> None:
    folder = tmp_path / "run"
    carry_out(small(model, behavior, gate={}), folder)
    assert load_vectors(folder / "vectors").gates
    carry_out(small(model, behavior), folder)
    assert (
        left_behind(folder)["vectors/metadata.json"]
        == left_behind(finished)["vectors/metadata.json"]
    )


def test_rows_of_a_shorter_run_are_used_by_a_longer_one(tmp_path: Path, model: Path) -> None:
    folder, behavior = tmp_path / "run", behavior_folder(tmp_path / "behavior", prompts=2)
    carry_out(small(model, behavior, prompts_per_set=1), folder, compare=False)
    few = keys_of(folder)
    carry_out(small(model, behavior), folder, compare=False)
    keys = keys_of(folder)
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
    named = small(Path("ann/tiny"), behavior)
    other = small(Path("ann/other"), behavior)
    pinned = small(Path("ann/tiny"), behavior, model={"revision": "main"})
    for values in (named, named, other, other, pinned):
        carry_out(values, tmp_path / "run", sweep=False, compare=False)
    assert asked == [None, "0" * 40, None, "0" * 40, "main"]
