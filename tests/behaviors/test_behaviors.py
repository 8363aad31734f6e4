"""Behaviors, contrast pairs and prompts: what is read, and what each bad file says."""

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_steer.behaviors import (
    ContrastPair,
    PromptItem,
    check_no_leak,
    list_behaviors,
    load_behavior,
    load_pairs,
    load_prompts,
    pairs_sha256,
)
from mlx_steer.errors import DataError

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


def jsonl(*entries: Mapping[str, Any]) -> str:
    return "".join(json.dumps(entry) + "\n" for entry in entries)


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


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


# --- pairs and prompts ---


def yaml_list(entries: list[Mapping[str, Any]]) -> str:
    return yaml.safe_dump([dict(entry) for entry in entries])


FORMATS: dict[str, Callable[[list[Mapping[str, Any]]], str]] = {
    ".jsonl": lambda entries: jsonl(*entries),
    ".json": json.dumps,
    ".yaml": yaml_list,
    ".yml": yaml_list,
    ".JSON": json.dumps,
}


@pytest.mark.parametrize(("suffix", "dump"), FORMATS.items(), ids=FORMATS)
def test_every_format_gives_the_same_entries(tmp_path, suffix, dump):
    entries = [PAIR | {"id": "a", "category": "locks", "system": "Be\tterse.\n"},
               PAIR | {"prompt": "Zweite Frage — ü\u2028?"}]  # fmt: skip
    path = write(tmp_path / f"pairs{suffix}", dump(entries))
    assert (
        load_pairs(path)
        == load_pairs(str(path))
        == (
            ContrastPair("a", **PAIR, category="locks", system="Be\tterse.\n"),
            ContrastPair("pair-002", **(PAIR | {"prompt": "Zweite Frage — ü\u2028?"})),
        )
    )
    path = write(tmp_path / f"prompts{suffix}", dump([PROMPT]))
    assert load_prompts(path) == (PromptItem("prompt-001", PROMPT["prompt"], "other", "test"),)


@pytest.mark.parametrize(
    "content",
    [
        "\ufeff" + jsonl(PROMPT),
        "\n\n" + jsonl(PROMPT) + "  \n",
        jsonl(PROMPT).replace("\n", "\r\n"),
        jsonl(PROMPT).rstrip(),
        json.dumps(PROMPT | {"system": None, "category": None, "check": None, "id": None}),
    ],
    ids=["byte order mark", "blank lines", "windows", "no last newline", "null"],
)
def test_harmless_variations_of_a_file_are_accepted(tmp_path, content):
    path = write(tmp_path / "prompts.jsonl", content)
    assert load_prompts(path) == (PromptItem("prompt-001", PROMPT["prompt"], "other", "test"),)


def test_one_prompt_under_two_system_messages_is_two_prompts(tmp_path):
    entries = [PROMPT | {"system": "Keep the secret."}, PROMPT | {"system": "Tell it."}, PROMPT]
    assert len(load_prompts(write(tmp_path / "p.jsonl", jsonl(*entries)))) == 3


def test_tools_are_offered_where_an_entry_asks_for_them(tmp_path):
    entries = [PROMPT | {"tools": True}, PROMPT | {"prompt": "b", "tools": False}]
    with_tools, without_tools = load_prompts(
        write(tmp_path / "p.jsonl", jsonl(*entries)), tools=[TOOL]
    )
    assert with_tools.tools == (TOOL,) and without_tools.tools == ()
    [pair] = load_pairs(write(tmp_path / "q.jsonl", jsonl(PAIR | {"tools": True})), tools=[TOOL])
    assert pair.tools == (TOOL,)


def test_entries_are_immutable(tmp_path):
    [pair] = load_pairs(write(tmp_path / "p.jsonl", jsonl(PAIR)))
    with pytest.raises(FrozenInstanceError):
        pair.prompt = "x"  # type: ignore[misc]


LONG = "x" * 100_001
WRONG_ENTRIES: dict[str, tuple[str, str]] = {
    "not json": ("{prompt: 1}", r"line 3, not valid JSON: .*"),
    "cut": ('{"prompt": "a', "line 3, not valid JSON"),
    "too deep": ("[" * 100_000, "line 3, not valid JSON"),
    "giant number": ("9" * 5000, "line 3, not valid JSON"),
    "NaN": ('{"check": {"a": NaN}}', "line 3, not valid JSON: NaN is not a JSON number"),
    "twice": ('{"set": "other", "set": "target"}', "line 3, not valid JSON: 'set' is given twice"),
    "a list": ("[1]", "line 3, must be an object with named fields, not a list"),
    "text": ('"a"', "line 3, must be an object with named fields, not text"),
    "no prompt": ('{"set": "other"}', "line 3, key 'prompt' is missing"),
    "no set": ('{"prompt": "a"}', "line 3, key 'set' is missing"),
    "unknown": (
        '{"prompt": "a", "set": "other", "zzzzz": 1}',
        "'zzzzz'; it may be: id, prompt",
    ),
    "misspelt": (
        '{"promt": "a", "set": "other"}',
        "has 1 problem:\n  line 3, unknown key 'promt'; did you mean 'prompt'",
    ),
    "capital": ('{"Prompt": "a", "set": "other"}', "did you mean 'prompt'"),
    "number": ('{"prompt": 1, "set": "other"}', "'prompt': must be text; put it in quotes .got 1"),
    "null": (
        '{"prompt": null, "set": "other"}',
        "must be text; put it in quotes .got None",
    ),
    "empty": ('{"prompt": "", "set": "other"}', "line 3, key 'prompt': is empty"),
    "blank": ('{"prompt": " \\n\\t\\u00a0", "set": "other"}', "key 'prompt': is empty"),
    "control": ('{"prompt": "a\\u001b[0m", "set": "other"}', r"character '\\x1b' at position 1"),
    "NUL": ('{"prompt": "\\u0000", "set": "other"}', r"control character '\\x00'"),
    "C1 control": ('{"prompt": "a\\u0085", "set": "other"}', r"control character '\\x85'"),
    "surrogate": ('{"prompt": "\\ud800", "set": "other"}', "half of a surrogate pair"),
    "enormous": (json.dumps({"prompt": LONG, "set": "other"}), "100,001 characters; at most 100,"),
    "id of two lines": ('{"id": "a\\nb", "prompt": "a", "set": "other"}', "'id': must be one line"),
    "id as number": ('{"id": 1, "prompt": "a", "set": "other"}', "'id': must be text"),
    "same id": ('{"id": "a", "prompt": "c", "set": "other"}', "'id': 'a' is already .* line 1"),
    "id made up": (
        '{"id": "prompt-002", "prompt": "c", "set": "other"}',
        "'prompt-002' is already the id of line 2",
    ),
    "same prompt": (
        '{"prompt": "First  PROMPT", "set": "other"}',
        "key 'prompt': is the same as in line 1",
    ),
    "wrong set": (
        '{"prompt": "a", "set": "targets"}',
        "'set': must be 'target', .* .got 'targets'.; did you mean 'target'",
    ),
    "capital set": ('{"prompt": "a", "set": "Other"}', "did you mean 'other'"),
    "set as list": (
        '{"prompt": "a", "set": ["other"]}',
        "'set': must be 'target', .*got .'other'",
    ),
    "wrong split": (
        '{"prompt": "a", "set": "other", "split": "train"}',
        "'split': must be 'select', 'test' or 'gate' .got 'train'",
    ),
    "tools as list": ('{"prompt": "a", "set": "other", "tools": []}', "must be true or false"),
    "tools of nobody": ('{"prompt": "a", "set": "other", "tools": true}', "key 'tools': only"),
    "check as text": ('{"prompt": "a", "set": "other", "check": "b"}', "key 'check'"),
}


@pytest.mark.parametrize(("line", "says"), WRONG_ENTRIES.values(), ids=WRONG_ENTRIES)
def test_a_wrong_line_of_prompts_says_what_and_where(tmp_path, line, says):
    good = jsonl({"id": "a", "prompt": "first prompt", "set": "target"}, PROMPT)
    path = write(tmp_path / "p.jsonl", good + line + "\n")
    with pytest.raises(DataError, match=says) as caught:
        load_prompts(path)
    assert str(caught.value).startswith(f"{path} has 1 problem:\n  line 3, ")


WRONG_PAIRS: dict[str, tuple[dict[str, Any], str]] = {
    "same responses": (PAIR | {"negative": "i  CANNOT."}, "positive and negative are the same"),
    "no negative": ({"prompt": "a", "positive": "b"}, "key 'negative' is missing"),
    "empty positive": (PAIR | {"positive": " "}, "key 'positive': is empty"),
    "a set": (PAIR | {"set": "target"}, "unknown key 'set'"),
    "swapped words": (
        {"prompt": "a", "postive": "b", "negative": "c"},
        "unknown key 'postive'; did you mean 'positive'",
    ),
    "tools of nobody": (PAIR | {"tools": True}, "key 'tools': only a behavior's behavior.yaml"),
}


@pytest.mark.parametrize(("entry", "says"), WRONG_PAIRS.values(), ids=WRONG_PAIRS)
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".yaml"])
def test_a_wrong_pair_says_what_and_where(tmp_path, entry, says, suffix):
    good = PAIR | {"prompt": "a good one"}
    path = write(tmp_path / f"p{suffix}", FORMATS[suffix]([good, entry]))
    unit = "line" if suffix == ".jsonl" else "entry"
    with pytest.raises(DataError, match=rf"has 1 problem:\n  {unit} 2, .*{says}"):
        load_pairs(path)


WRONG_FILES: dict[str, tuple[str, str | bytes, str]] = {
    "empty": ("p.jsonl", "", "holds no entries"),
    "blank": ("p.jsonl", " \n\n", "holds no entries"),
    "only a mark": ("p.jsonl", "\ufeff", "holds no entries"),
    "empty json": ("p.json", "", "holds no entries"),
    "empty list": ("p.json", "[]", "holds no entries"),
    "empty yaml": ("p.yaml", "", "holds no entries"),
    "only comments": ("p.yaml", "# nothing\n", "must hold a list of entries, not nothing"),
    "not utf-8": ("p.jsonl", b'{"a": 1}\n{"b": "\xff"}', r"not UTF-8 text \(line 2\)"),
    "utf-16": ("p.jsonl", jsonl(PROMPT).encode("utf-16"), "not UTF-8 text"),
    "an object": ("p.json", json.dumps(PROMPT), "must hold a list of entries, not an object"),
    "yaml object": ("p.yml", yaml.safe_dump(PROMPT), "must hold a list of entries"),
    "broken json": ("p.json", "[{]", "is not valid JSON"),
    "deep json": ("p.json", "[" * 100_000, "is not valid JSON"),
    "broken yaml": ("p.yaml", "- a: [", "is not valid YAML"),
    "yaml tag": ("p.yaml", "- !!python/name:os.system", "is not valid YAML"),
    "yaml bool tag": ("p.yaml", "- !!bool x", "is not valid YAML"),
    "yaml control": ("p.yaml", "- \x07", "is not valid YAML"),
    "yaml alias": ("p.yaml", "- &a {prompt: x, set: other}\n- *a", r"alias \*a"),
    "other suffix": ("p.txt", jsonl(PROMPT), "must be a .jsonl, .json, .yaml or .yml file"),
    "csv": ("p.csv", "a,b", "must be a .jsonl"),
}


@pytest.mark.parametrize(("name", "content", "says"), WRONG_FILES.values(), ids=WRONG_FILES)
def test_a_wrong_file_says_what_is_wrong(tmp_path, name, content, says):
    path = write(tmp_path / name, content)
    for load in (load_prompts, load_pairs):
        with pytest.raises(DataError, match=says) as caught:
            load(path)
        assert str(path) in str(caught.value)


def test_a_path_that_is_no_file_is_an_error(tmp_path):
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(DataError, match=r"folder\.jsonl is a folder"):
        load_pairs(tmp_path / "folder.jsonl")
    with pytest.raises(DataError, match=r"nowhere\.jsonl does not exist"):
        load_prompts(tmp_path / "nowhere.jsonl")
    with pytest.raises(DataError, match="does not exist"):
        load_prompts("no\0where.jsonl")
    with pytest.raises(DataError, match=r"cannot be read|does not exist"):
        load_prompts("x" * 5000 + ".jsonl")


@pytest.mark.parametrize("value", ["2024-01-01", "yes", "1.5", "[a]", "{a: 1}", "~"])
def test_yaml_values_that_are_not_text_must_be_quoted(tmp_path, value):
    path = write(tmp_path / "p.yaml", f"- prompt: {value}\n  set: other\n")
    with pytest.raises(DataError, match="entry 1, key 'prompt': must be text; put it in quotes"):
        load_prompts(path)
    write(path, f"- prompt: '{value}'\n  set: other\n")
    assert load_prompts(path)[0].prompt == value


def test_all_bad_entries_are_gathered_and_at_most_ten_are_shown(tmp_path):
    lines = [json.dumps({"prompt": f"p{number}", "set": "x"}) for number in range(12)]
    lines.insert(3, json.dumps(PROMPT))
    path = write(tmp_path / "p.jsonl", "\n".join(["", *lines, '{"prompt": "", "set": 1}']))
    with pytest.raises(DataError) as caught:
        load_prompts(path)
    message = str(caught.value).split("\n")
    assert message[0] == f"{path} has 14 problems:"
    assert [line.split(",")[0] for line in message[1:11]] == [
        f"  line {number}" for number in (2, 3, 4, 6, 7, 8, 9, 10, 11, 12)
    ]
    assert message[11:] == ["  and 4 more"]


def test_the_sha256_of_pairs_depends_on_their_content_and_not_on_their_file(tmp_path):
    entries = [PAIR, PAIR | {"prompt": "b", "system": "s"}]
    one = load_pairs(write(tmp_path / "a.jsonl", jsonl(*entries)))
    two = load_pairs(write(tmp_path / "b.yaml", yaml.safe_dump(entries, indent=4)))
    assert pairs_sha256(one) == pairs_sha256(two)
    changes: list[dict[str, Any]] = [
        {"id": "z"}, {"prompt": "z"}, {"positive": "z"}, {"negative": "z"}, {"category": "z"},
        {"system": "z"}, {"tools": (TOOL,)},
    ]  # fmt: skip
    hashes = {pairs_sha256([replace(one[0], **change), one[1]]) for change in changes}
    assert len(hashes | {pairs_sha256(one), pairs_sha256(one[::-1])}) == len(changes) + 2


def test_the_sha256_of_pairs_is_over_canonical_json():
    pair = ContrastPair("a", "ü", "yes", "no")
    text = '[{"id":"a","negative":"no","positive":"yes","prompt":"\\u00fc"}]'
    assert pairs_sha256([pair]) == hashlib.sha256(text.encode()).hexdigest()


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)
FIELDS = st.sampled_from(["id", "prompt", "set", "split", "positive", "negative", "tools", "x"])


@settings(max_examples=120, deadline=None)
@given(entries=st.lists(VALUES | st.dictionaries(FIELDS, VALUES), max_size=4))
def test_no_entries_give_anything_but_a_data_error(entries):
    with tempfile.TemporaryDirectory() as folder:
        for suffix in (".jsonl", ".json", ".yaml"):
            dump = FORMATS[suffix]
            path = write(Path(folder) / f"p{suffix}", dump_or_json(dump, entries))
            read_or_fail(path)


@settings(max_examples=120, deadline=None)
@given(
    data=st.binary(max_size=60)
    | st.text(alphabet="{}[]\"':,-&*!|>?%@ \n\tabtrue012.\\#", max_size=60).map(str.encode)
)
def test_no_bytes_give_anything_but_a_data_error(data):
    with tempfile.TemporaryDirectory() as parent:
        for suffix in (".jsonl", ".json", ".yaml"):
            read_or_fail(write(Path(parent) / f"p{suffix}", data))
        folder = behavior_folder(Path(parent) / "x")
        write(folder / "behavior.yaml", data)
        with pytest.raises(DataError):
            load_behavior(folder)
        shutil.rmtree(folder)


def dump_or_json(dump: Callable[[Any], str], entries: Any) -> str:
    try:
        return dump(entries)
    except (ValueError, TypeError, yaml.YAMLError):  # yaml_list takes objects only
        return json.dumps(entries)


def read_or_fail(path: Path) -> None:
    for load in (load_pairs, load_prompts):
        try:
            assert load(path)
        except DataError as error:
            assert str(path) in str(error)


def test_reading_datasets_does_not_import_mlx():
    code = "import sys, mlx_steer.behaviors; sys.exit('mlx.core' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
