"""Reads JSONL, JSON and YAML files into raw entries, each with its place in the file."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from pathlib import Path

from mlx_steer.errors import DataError
from mlx_steer.files import parse_json, parse_yaml, read_text

MAX_SHOWN = 10


@dataclass(frozen=True)
class NotJson:
    """Stands for a line that could not be read, until all lines are."""

    reason: str


def kind_of(value: object) -> str:
    """What a value is, in plain words."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false"}
    names |= {int: "a number", float: "a number", type(None): "nothing"}
    return names.get(type(value), f"a {type(value).__name__}")


def gathered(source: object, problems: Sequence[str]) -> DataError:
    """One error with the first problems and the number of the others."""
    lines = [f"{source} has {len(problems)} problem{'s' if len(problems) > 1 else ''}:"]
    lines += [f"  {problem}" for problem in problems[:MAX_SHOWN]]
    if len(problems) > MAX_SHOWN:
        lines.append(f"  and {len(problems) - MAX_SHOWN} more")
    return DataError("\n".join(lines))


def _json(text: str) -> object:
    try:
        return parse_json(text)
    except ValueError as error:
        return NotJson(str(error))


def read_entries(source: Traversable) -> Iterator[tuple[str, object]]:
    """("line 3", value) for each line, or ("entry 3", value) for each entry of a list."""
    suffix = Path(source.name).suffix.lower()
    if suffix not in (".jsonl", ".json", ".yaml", ".yml"):
        raise DataError(f"{source} must be a .jsonl, .json, .yaml or .yml file.")
    text = read_text(source, DataError)
    if suffix == ".jsonl":
        # not splitlines: a JSON string may hold U+2028 and the like
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                yield f"line {number}", _json(line)
        return
    if not text.strip():
        return
    data = _json(text) if suffix == ".json" else parse_yaml(text, source, DataError)
    if isinstance(data, NotJson):
        raise DataError(f"{source} is not valid JSON: {data.reason}.")
    if not isinstance(data, list):
        raise DataError(f"{source} must hold a list of entries, not {kind_of(data)}.")
    for number, value in enumerate(data, 1):
        yield f"entry {number}", value
