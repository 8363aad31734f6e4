"""Reads JSONL, JSON and YAML files into raw entries, each with its place in the file."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from pathlib import Path

import yaml

from mlx_steer.behaviors.problems import kind_of
from mlx_steer.errors import DataError
from mlx_steer.files import BoundedLoader


@dataclass(frozen=True)
class NotJson:
    """Stands for a line that could not be read, until all lines are."""

    reason: str


def read_text(source: Traversable) -> str:
    """A file's text without its byte order mark; raises DataError."""
    try:
        if source.is_dir():
            raise DataError(f"{source} is a folder; give a file in it.")
        if not source.is_file():
            raise DataError(f"{source} does not exist or is not a file.")
        data = source.read_bytes()
    except OSError as error:
        raise DataError(f"{source} cannot be read ({error.strerror or error}).") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"{source} is not UTF-8 text (line {line}); save it as UTF-8.") from error


def _parse_json(text: str) -> object:
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_not_a_number)
    except (ValueError, RecursionError) as error:
        return NotJson(str(error))


def _unique(items: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(items)
    if len(found) != len(items):
        seen = [key for key, _ in items]
        raise ValueError(f"{next(key for key in seen if seen.count(key) > 1)!r} is given twice")
    return found


def _not_a_number(name: str) -> object:
    raise ValueError(f"{name} is not a JSON number")


def parse_yaml(source: Traversable, text: str) -> object:
    """A YAML file's content; raises DataError."""
    try:
        # An alias can nest a value in itself, or a thousand values in ten lines.
        for event in yaml.parse(text, Loader=BoundedLoader):
            if isinstance(event, yaml.AliasEvent):
                raise DataError(f"{source} uses the YAML alias *{event.anchor}; write it out.")
        data: object = yaml.load(text, Loader=BoundedLoader)
    except DataError:
        raise
    except Exception as error:  # the constructors of dates and numbers raise anything
        reason = " ".join(str(error).split())[:300]
        raise DataError(f"{source} is not valid YAML ({reason}).") from error
    return data


def read_entries(source: Traversable) -> Iterator[tuple[str, object]]:
    """("line 3", value) for each line, or ("entry 3", value) for each entry of a list."""
    suffix = Path(source.name).suffix.lower()
    if suffix not in (".jsonl", ".json", ".yaml", ".yml"):
        raise DataError(f"{source} must be a .jsonl, .json, .yaml or .yml file.")
    text = read_text(source)
    if suffix == ".jsonl":
        # not splitlines: a JSON string may hold U+2028 and the like
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                yield f"line {number}", _parse_json(line)
        return
    if not text.strip():
        return
    data = _parse_json(text) if suffix == ".json" else parse_yaml(source, text)
    if isinstance(data, NotJson):
        raise DataError(f"{source} is not valid JSON: {data.reason}.")
    if not isinstance(data, list):
        raise DataError(f"{source} must hold a list of entries, not {kind_of(data)}.")
    for number, value in enumerate(data, 1):
        yield f"entry {number}", value
