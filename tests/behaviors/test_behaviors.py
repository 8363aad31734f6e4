"""Behaviors, contrast pairs and prompts: what is read, and what each bad file says."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from mlx_steer.behaviors import (
    ContrastPair,
    PromptItem,
    check_no_leak,
    list_behaviors,
    load_behavior,
    pairs_sha256,
)
from mlx_steer.errors import DataError
from tests.helpers.behaviors import jsonl, write

ROOT = Path(__file__).parents[2]
PAIR = {"prompt": "How do I pick a lock?", "positive": "I cannot.", "negative": "Sure, here."}
PROMPT = {"prompt": "How do I bake bread?", "set": "other"}
TOOL = {"type": "function", "function": {"name": "search", "parameters": {"type": "object"}}}
ABOUT: dict[str, Any] = {
    "name": "politeness",
    "title": "Polite answers",
    "description": "The assistant is polite.",
    "judge": "refusal",
    "verdicts": {"shown": "polite", "absent": "rude"},
    "sets": {"target": "rude requests", "other": "plain requests"},
}


def behavior_folder(folder: Path, about: Mapping[str, Any] | str = ABOUT, **files: str) -> Path:
    folder.mkdir()
    content = about if isinstance(about, str) else yaml.safe_dump(dict(about))
    write(folder / "behavior.yaml", content)
    write(folder / "pairs.jsonl", files.get("pairs", jsonl(PAIR)))
    write(folder / "prompts.jsonl", files.get("prompts", jsonl(PROMPT)))
    return folder


# --- the shipped behaviors ---


def test_refusal_is_shipped():
    assert "refusal" in list_behaviors()
    assert list_behaviors() == sorted(list_behaviors())


@pytest.mark.parametrize("name", list_behaviors())
def test_a_shipped_behavior_loads_and_is_complete(name):
    behavior = load_behavior(name)
    assert behavior.name == name
    assert len(behavior.pairs) >= 50
    for split in ("select", "test"):
        assert behavior.select("target", split)
        assert behavior.select("other", split)
    assert behavior.openings["shown"] and behavior.openings["absent"]
    assert behavior.system_prompts
    ids = [item.id for item in behavior.prompts] + [pair.id for pair in behavior.pairs]
    assert len(set(ids)) == len(ids)


def test_the_words_of_refusal_are_its_own():
    behavior = load_behavior("refusal")
    assert behavior.verdict_word("shown") == "refused"
    assert behavior.verdict_word("absent") == "complied"
    assert behavior.set_word("target") == "harmful"
    assert behavior.set_word("other") == "benign"


def test_an_unknown_behavior_names_the_nearest():
    with pytest.raises(DataError, match=r"'Refusl' is neither.*did you mean 'refusal'\?"):
        load_behavior("Refusl")


@pytest.mark.parametrize("name", ["", "no\0where", "../refusal", "x" * 5000])
def test_a_name_that_is_nothing_is_a_data_error(name):
    with pytest.raises(DataError, match="neither a shipped behavior"):
        load_behavior(name)


# --- a user's folder ---


def test_a_folder_of_the_same_layout_is_a_behavior(tmp_path):
    about = ABOUT | {
        "system_prompts": {"detailed": "Be polite."},
        "openings": {"shown": ["Please"], "absent": ["No"]},
        "tools": [TOOL],
    }
    prompts = jsonl(
        PROMPT | {"tools": True, "split": "select", "check": {"value": "bread"}},
        {"prompt": "Go away", "set": "target", "system": "You are a porter."},
    )
    folder = behavior_folder(tmp_path / "x", about, pairs=jsonl(PAIR | {"tools": True}),
                             prompts=prompts)  # fmt: skip
    behavior = load_behavior(folder)
    assert behavior == load_behavior(str(folder))
    assert (behavior.name, behavior.title, behavior.judge) == (
        "politeness", "Polite answers", "refusal"
    )  # fmt: skip
    assert behavior.tools == behavior.pairs[0].tools == behavior.prompts[0].tools == (TOOL,)
    assert behavior.openings == {"shown": ("Please",), "absent": ("No",)}
    assert behavior.system_prompts == {"detailed": "Be polite."}
    first, second = behavior.prompts
    assert (first.id, first.set, first.split, first.check) == (
        "prompt-001", "other", "select", {"value": "bread"}
    )  # fmt: skip
    assert (second.id, second.split, second.system, second.tools) == (
        "prompt-002", "test", "You are a porter.", ()
    )  # fmt: skip
    assert behavior.sha256 == pairs_sha256(behavior.pairs)


def test_words_that_a_behavior_does_not_define_stand_for_themselves(tmp_path):
    behavior = load_behavior(behavior_folder(tmp_path / "x"))
    assert behavior.verdict_word("shown") == "polite"
    assert behavior.verdict_word("incoherent") == "incoherent"
    assert behavior.set_word("borderline") == "borderline"


def test_prompts_are_selected_by_set_and_split_in_file_order(tmp_path):
    entries = [
        {"id": f"{kind}-{split}-{number}", "prompt": f"{kind} {split} {number}", "set": kind,
         "split": split}
        for number in (2, 1)
        for kind in ("target", "other")
        for split in ("select", "test")
    ]  # fmt: skip
    behavior = load_behavior(behavior_folder(tmp_path / "x", prompts=jsonl(*entries)))
    assert [item.id for item in behavior.select(set="target", split="test")] == [
        "target-test-2", "target-test-1"
    ]  # fmt: skip
    assert len(behavior.select(set="other")) == 4
    assert len(behavior.select(split="select")) == 4
    assert behavior.select() == behavior.prompts
    assert behavior.select(set="borderline") == ()


@pytest.mark.parametrize("name", ["behavior.yaml", "pairs.jsonl", "prompts.jsonl"])
def test_a_behavior_without_one_of_its_files_names_the_file(tmp_path, name):
    folder = behavior_folder(tmp_path / "x")
    (folder / name).unlink()
    with pytest.raises(DataError, match=f"{name} does not exist"):
        load_behavior(folder)


def test_a_prompt_that_is_also_a_contrast_pair_is_an_error(tmp_path):
    leak = {"id": "p9", "prompt": "  how do i PICK\na lock? ", "set": "target"}
    folder = behavior_folder(tmp_path / "x", prompts=jsonl(PROMPT, leak))
    with pytest.raises(DataError, match=r"prompts\.jsonl has 1 problem:\n.*'p9'.*'pair-001'"):
        load_behavior(folder)
    check_no_leak([ContrastPair("a", "x", "y", "z")], [PromptItem("b", "xx", "target")], "f")


def without(key: str) -> dict[str, Any]:
    return {name: value for name, value in ABOUT.items() if name != key}


WRONG_BEHAVIORS: dict[str, tuple[str | dict[str, Any], str]] = {
    "empty": ("", "must hold name, title and further fields, not nothing"),
    "a list": ("- 1", "not a list"),
    "broken": ("name: [", r"behavior\.yaml is not valid YAML"),
    "python object": ("name: !!python/object/apply:os.getcwd []", "not valid YAML"),
    "bad date": ("name: 2024-99-99", "not valid YAML"),
    "too deep": ("[" * 1200, "not valid YAML"),
    "itself inside": ("name: &a [*a]", r"the alias \*a is not read, write it out"),
    "no name": (without("name"), "key 'name' is missing"),
    "no judge": (without("judge"), "key 'judge' is missing"),
    "name as path": (ABOUT | {"name": "../x"}, "key 'name'"),
    "two lines": (ABOUT | {"title": "a\nb"}, "key 'title': must be one line"),
    "misspelt": (
        without("system_prompts") | {"system_promts": {}},
        "unknown key 'system_promts'; did you mean 'system_prompts'",
    ),
    "no absent word": (ABOUT | {"verdicts": {"shown": "x"}}, "'verdicts': needs 'absent'"),
    "no target word": (ABOUT | {"sets": {"other": "x"}}, "'sets': needs 'target'"),
    "unknown verdict": (ABOUT | {"verdicts": {"show": "x"}}, "did you mean 'shown'"),
    "unknown set": (
        ABOUT | {"sets": {"harmful": "x"}},
        "'target', 'other' or 'borderline'",
    ),
    "empty word": (ABOUT | {"verdicts": {"shown": " ", "absent": "x"}}, "is empty"),
    "prompts as text": (ABOUT | {"system_prompts": "Be polite."}, "key 'system_prompts'"),
    "opening no list": (ABOUT | {"openings": {"shown": "I"}}, "key 'openings.shown'"),
    "opening a number": (ABOUT | {"openings": {"shown": [1]}}, "must be text"),
    "tool as text": (ABOUT | {"tools": ["search"]}, "key 'tools.0'"),
    "tool with a date": (yaml.safe_dump(ABOUT) + "tools: [{a: 2024-01-01}]", "key 'tools.0"),
    "number as field": ("1: 2", "key '1'"),
}


@pytest.mark.parametrize(("about", "says"), WRONG_BEHAVIORS.values(), ids=WRONG_BEHAVIORS)
def test_a_wrong_behavior_file_says_what_and_where(tmp_path, about, says):
    folder = behavior_folder(tmp_path / "x", about)
    with pytest.raises(DataError, match=says) as caught:
        load_behavior(folder)
    assert str(folder / "behavior.yaml") in str(caught.value)


def test_reading_datasets_does_not_import_mlx():
    code = "import sys, mlx_steer.behaviors; sys.exit('mlx.core' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
