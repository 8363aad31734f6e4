"""Loads behaviors, contrast pairs and prompts."""

import os
from collections.abc import Iterable, Sequence
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from mlx_steer.behaviors.fields import BehaviorFile, Entry, PairEntry, PromptEntry, normal
from mlx_steer.behaviors.items import (
    Behavior,
    ContrastPair,
    PromptItem,
    Sentences,
    Tool,
    pairs_sha256,
)
from mlx_steer.behaviors.sources import NotJson, gathered, kind_of, read_entries
from mlx_steer.errors import DataError
from mlx_steer.files import did_you_mean, problems, read_yaml, shown

BEHAVIOR_FILE, PAIRS_FILE, PROMPTS_FILE = "behavior.yaml", "pairs.jsonl", "prompts.jsonl"


def list_behaviors() -> list[str]:
    """Names of the shipped behaviors, in alphabetical order."""
    return sorted(
        entry.name
        for entry in _shipped().iterdir()
        if entry.is_dir() and entry.joinpath(BEHAVIOR_FILE).is_file()
    )


def load_behavior(name_or_folder: str | os.PathLike[str]) -> Behavior:
    """Loads a shipped behavior by name, or a folder with the same three files.

    A shipped name comes first: write `./refusal` for a folder of that name.

    Raises:
        DataError: If there is no such behavior, or a file of it is missing or has bad entries.
    """
    name = os.fspath(name_or_folder)
    shipped = list_behaviors()
    if name in shipped:
        folder = _shipped().joinpath(name)
    elif os.path.isdir(name):
        folder = Path(name)
    else:
        raise DataError(
            f"{name!r} is neither a shipped behavior ({', '.join(shipped)}) nor a folder with "
            f"{BEHAVIOR_FILE}, {PAIRS_FILE} and {PROMPTS_FILE}{did_you_mean(name, shipped)}."
        )
    about = _read_behavior_file(folder.joinpath(BEHAVIOR_FILE))
    tools = tuple(about.tools)
    said = about.sentences
    # Of two sentences a model writes the pairs.
    pairs = () if said else _pairs(folder.joinpath(PAIRS_FILE), tools)
    prompts_file = folder.joinpath(PROMPTS_FILE)
    prompts = _prompts(prompts_file, tools)
    check_no_leak(pairs, prompts, str(prompts_file))
    return Behavior(
        name=about.name,
        title=about.title,
        description=about.description,
        judge=about.judge,
        verdicts=about.verdicts,
        sets=about.sets,
        system_prompts=about.system_prompts,
        openings={kind: tuple(words) for kind, words in about.openings.items()},
        tools=tools,
        pairs=pairs,
        prompts=prompts,
        sha256=pairs_sha256(pairs),
        sentences=Sentences(said.positive, said.negative, said.rules) if said else None,
    )


def load_pairs(
    path: str | os.PathLike[str], tools: Sequence[Tool] = ()
) -> tuple[ContrastPair, ...]:
    """Reads contrast pairs from a .jsonl file, or a list in a .json, .yaml or .yml file.

    Args:
        path: The file; each entry needs `prompt`, `positive` and `negative`.
        tools: The function definitions that entries with `tools: true` offer.

    Raises:
        DataError: Naming the file, and every bad entry's line (in a list: its number) and field.
    """
    return _pairs(Path(path), tuple(tools))


def load_prompts(
    path: str | os.PathLike[str], tools: Sequence[Tool] = ()
) -> tuple[PromptItem, ...]:
    """Reads prompts from a .jsonl file, or a list in a .json, .yaml or .yml file.

    Args:
        path: The file; each entry needs `prompt` and `set`; `split` is `test` unless it says so.
        tools: The function definitions that entries with `tools: true` offer.

    Raises:
        DataError: Naming the file, and every bad entry's line (in a list: its number) and field.
    """
    return _prompts(Path(path), tuple(tools))


def check_no_leak(
    pairs: Iterable[ContrastPair], prompts: Iterable[PromptItem], source: str
) -> None:
    """Raises DataError if a prompt is also a contrast pair's, whatever its case and spacing.

    Args:
        pairs: The contrast pairs the vectors are taken from.
        prompts: The prompts to measure them on.
        source: Where the prompts are from, for the message.
    """
    known = {normal(pair.prompt): pair.id for pair in pairs}
    leaks = [
        f"prompt {item.id!r} is also contrast pair {known[normal(item.prompt)]!r}; rates on it "
        "would look too good, so remove one of the two"
        for item in prompts
        if normal(item.prompt) in known
    ]
    if leaks:
        raise gathered(source, leaks)


def _shipped() -> Traversable:
    return resources.files("mlx_steer.behaviors").joinpath("data")


_AnyEntry = TypeVar("_AnyEntry", bound=Entry)


def _pairs(source: Traversable, tools: tuple[Tool, ...]) -> tuple[ContrastPair, ...]:
    return tuple(
        ContrastPair(
            id=name,
            prompt=entry.prompt,
            positive=entry.positive,
            negative=entry.negative,
            category=entry.category or "",
            system=entry.system,
            tools=tools if entry.tools else (),
        )
        for name, entry in _entries(source, PairEntry, "pair", bool(tools))
    )


def _prompts(source: Traversable, tools: tuple[Tool, ...]) -> tuple[PromptItem, ...]:
    return tuple(
        PromptItem(
            id=name,
            prompt=entry.prompt,
            set=entry.set,
            split=entry.split,
            category=entry.category or "",
            system=entry.system,
            tools=tools if entry.tools else (),
            check=entry.check,
        )
        for name, entry in _entries(source, PromptEntry, "prompt", bool(tools))
    )


def _entries(
    source: Traversable, kind: type[_AnyEntry], prefix: str, has_tools: bool
) -> list[tuple[str, _AnyEntry]]:
    """(id, entry) for all entries of a file, or one error with every problem of every entry."""
    entries: list[tuple[str, _AnyEntry]] = []
    wrong: list[str] = []
    ids: dict[str, str] = {}
    prompts: dict[tuple[str, str], str] = {}
    raw_entries = list(read_entries(source))
    if not raw_entries:
        raise DataError(f"{source} holds no entries; write at least one.")
    for count, (where, raw) in enumerate(raw_entries, 1):
        entry, found = _check_entry(raw, kind)
        if entry is not None:
            name = entry.id or f"{prefix}-{count:03d}"
            # one prompt under two system messages is two prompts
            text = (normal(entry.system or ""), normal(entry.prompt))
            if name in ids:
                found.append(f"key 'id': {shown(name)} is already the id of {ids[name]}")
            if text in prompts:
                found.append(f"key 'prompt': is the same as in {prompts[text]}")
            if entry.tools and not has_tools:
                found.append(f"key 'tools': only a behavior's {BEHAVIOR_FILE} can define tools")
            ids.setdefault(name, where)
            prompts.setdefault(text, where)
            entries.append((name, entry))
        wrong += [f"{where}, {text}" for text in found]
    if wrong:
        raise gathered(source, wrong)
    return entries


def _check_entry(raw: object, kind: type[_AnyEntry]) -> tuple[_AnyEntry | None, list[str]]:
    if isinstance(raw, NotJson):
        return None, [f"not valid JSON: {raw.reason}"]
    if not isinstance(raw, dict):
        return None, [f"must be an object with named fields, not {kind_of(raw)}"]
    try:
        return kind.model_validate(raw), []
    except ValidationError as error:
        return None, problems(error, kind)


def _read_behavior_file(source: Traversable) -> BehaviorFile:
    raw = read_yaml(source, DataError)
    if not isinstance(raw, dict):
        raise DataError(f"{source} must hold name, title and further fields, not {kind_of(raw)}.")
    try:
        return BehaviorFile.model_validate(raw)
    except ValidationError as error:
        raise gathered(source, problems(error, BehaviorFile)) from error
