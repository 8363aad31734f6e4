"""Behaviors whose files are damaged, incomplete or at odds with each other."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.bad_inputs.case import Case, World

_Spoil = Callable[[Path], object]


def _spoilt(name: str, spoil: _Spoil, *says: str) -> Case:
    def build(world: World) -> list[str]:
        folder = world.copy("behavior")
        spoil(folder)
        return world.run(behavior=folder)

    return Case(name, build, says)


def _line(file: str, number: int, text: str | bytes) -> _Spoil:
    """Puts another line in the place of a line."""

    def spoil(folder: Path) -> None:
        path = folder / file
        lines = path.read_bytes().split(b"\n")
        lines[number - 1] = text if isinstance(text, bytes) else text.encode()
        path.write_bytes(b"\n".join(lines))

    return spoil


def _fields(file: str, number: int, **changes: Any) -> _Spoil:
    """Changes fields of a line; one of value `...` is taken out."""

    def spoil(folder: Path) -> None:
        entry = json.loads((folder / file).read_text().split("\n")[number - 1])
        entry = {k: v for k, v in {**entry, **changes}.items() if v is not ...}
        _line(file, number, json.dumps(entry))(folder)

    return spoil


def _about(old: str, new: str) -> _Spoil:
    """Changes behavior.yaml."""

    def spoil(folder: Path) -> None:
        path = folder / "behavior.yaml"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    return spoil


def _without(split: str) -> _Spoil:
    def spoil(folder: Path) -> None:
        path = folder / "prompts.jsonl"
        lines = path.read_text().splitlines()
        path.write_text("".join(f"{line}\n" for line in lines if split not in line))

    return spoil


def _file_for_folder(world: World) -> list[str]:
    return world.run(behavior=world.behavior / "pairs.jsonl")


def _loop(folder: Path) -> None:
    (folder / "pairs.jsonl").unlink()
    (folder / "pairs.jsonl").symlink_to("pairs.jsonl")


def _folder_for_file(folder: Path) -> None:
    (folder / "pairs.jsonl").unlink()
    (folder / "pairs.jsonl").mkdir()


_PAIR = '{"prompt": "p", "positive": "a", "negative": "b"}'

CASES = [
    _spoilt("no pairs file", lambda f: (f / "pairs.jsonl").unlink(), "pairs.jsonl does not exist"),
    _spoilt("no prompts file", lambda f: (f / "prompts.jsonl").unlink(), "prompts.jsonl", "exist"),
    _spoilt("no behavior.yaml", lambda f: (f / "behavior.yaml").unlink(), "behavior.yaml"),
    _spoilt("an empty pairs file", lambda f: (f / "pairs.jsonl").write_text(""), "no entries"),
    _spoilt("a folder for a file", _folder_for_file, "pairs.jsonl is a folder"),
    _spoilt("a link to itself", _loop, "pairs.jsonl"),
    Case("a file for a folder", _file_for_folder, ("pairs.jsonl'", "nor a folder")),
    _spoilt("half a line", _line("pairs.jsonl", 2, '{"prompt": "p'), "pairs.jsonl", "line 2"),
    _spoilt("not UTF-8", _line("pairs.jsonl", 3, b'{"prompt": "\xff"}'), "UTF-8", "line 3"),
    _spoilt("NaN", _line("pairs.jsonl", 1, '{"prompt": NaN}'), "line 1", "NaN"),
    _spoilt("deep nesting", _line("pairs.jsonl", 1, "[" * 100_000), "line 1", "not valid JSON"),
    _spoilt("a list for an entry", _line("prompts.jsonl", 1, "[1, 2]"), "line 1", "an object"),
    _spoilt("no prompt", _fields("prompts.jsonl", 2, prompt=...), "line 2", "'prompt'", "missing"),
    _spoilt("no negative", _fields("pairs.jsonl", 1, negative=...), "'negative'", "missing"),
    _spoilt("a misspelt field", _fields("pairs.jsonl", 1, positve="x"), "did you mean 'positive'"),
    _spoilt("an empty prompt", _fields("prompts.jsonl", 4, prompt=""), "line 4", "is empty"),
    _spoilt("only spaces", _fields("pairs.jsonl", 1, positive=" \n "), "'positive'", "is empty"),
    _spoilt("a number", _fields("pairs.jsonl", 1, prompt=5), "'prompt'", "must be text"),
    _spoilt("an unknown set", _fields("prompts.jsonl", 1, set="targets"), "did you mean 'target'"),
    _spoilt("an unknown split", _fields("prompts.jsonl", 1, split="train"), "'select', 'test'"),
    _spoilt("an escape", _fields("prompts.jsonl", 1, prompt="a \x1b[2J"), "'\\x1b'", "line 1"),
    _spoilt("NUL", _fields("pairs.jsonl", 2, negative="a\0b"), "'\\x00'", "line 2"),
    _spoilt("half a character", _line("pairs.jsonl", 1, _PAIR.replace("p", "\\ud800", 1)), "line"),
    _spoilt("half a letter", _fields("pairs.jsonl", 1, prompt="\ud800"), "surrogate"),
    _spoilt("a huge prompt", _fields("prompts.jsonl", 1, prompt="x" * 200_000), "200,000"),
    _spoilt("a long prompt", _fields("prompts.jsonl", 1, prompt="x y " * 300), "256", "shorten"),
    _spoilt("a long pair", _fields("pairs.jsonl", 3, prompt="x y " * 300), "pair-003", "256"),
    _spoilt("equal sides", _fields("pairs.jsonl", 1, positive="A b", negative="a  B"), "the same"),
    _spoilt("an id twice", _fields("prompts.jsonl", 2, id="target-select-0"), "line 2", "line 1"),
    _spoilt("a prompt twice", _fields("prompts.jsonl", 2, prompt="Steal the sea."), "the same as"),
    _spoilt("a pair twice", _line("pairs.jsonl", 2, "\n".join([_PAIR] * 2)), "line 3", "line 2"),
    _spoilt(
        "a test prompt that is a pair's",
        _fields("prompts.jsonl", 8, prompt="Pick the LOCK of a  door"),
        "is also contrast pair 'pair-001'",
        "remove one of the two",
    ),
    _spoilt("tools that are none", _fields("prompts.jsonl", 1, tools=True), "'tools'"),
    _spoilt("no select prompts", _without("-select-"), "no prompts of set target", "select"),
    _spoilt("no other prompts", _without("other-test"), "set other and split test", "add them"),
    _spoilt("an unknown judge", _about("judge: refusal", "judge: oracle"), "'oracle'", "refusal"),
    _spoilt("an alias in YAML", _about("shown: refused", "shown: *a"), "alias *a"),
    _spoilt("a word for verdicts", _about("shown: refused", "show: refused"), "verdicts"),
    _spoilt("no title", _about("title: Caution\n", ""), "'title'", "missing"),
    _spoilt("broken YAML", _about("sets:", "sets: ["), "behavior.yaml is not valid YAML"),
]
