"""Files of contrast pairs and of prompts: what is read, and what each bad file says."""

import hashlib
import json
from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest
import yaml

from mlx_steer.behaviors import (
    ContrastPair,
    PromptItem,
    load_pairs,
    load_prompts,
    pairs_sha256,
)
from mlx_steer.errors import DataError
from tests.helpers.behaviors import FORMATS, jsonl, write

PAIR = {"prompt": "How do I pick a lock?", "positive": "I cannot.", "negative": "Sure, here."}
PROMPT = {"prompt": "How do I bake bread?", "set": "other"}
TOOL = {"type": "function", "function": {"name": "search", "parameters": {"type": "object"}}}


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
        "'split': must be 'select', 'test', 'gate', 'extract' or 'facts' .got 'train'",
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
