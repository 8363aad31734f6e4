"""How files are read and written: plain text, bounded YAML, exact JSON, whole or not at all.

Knows nothing about what the files mean; what a record may say is its own model's affair, and here
is only how its findings are put into words.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, cast, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from mlx_steer.errors import SteerError

CONTROL = r"\x00-\x08\x0b-\x1f\x7f-\x9f"
"""Control characters, for a set in a pattern; newline and tab are text."""

TURNING = r"\u202a-\u202e\u2066-\u2069"
"""Marks that turn the writing direction of what follows, for a set in a pattern."""

_NO_TEXT = re.compile(rf"[{CONTROL}]|[\ud800-\udfff]")

# How pydantic calls the branches of `behavior: a name, or two sentences`.
_BRANCH = re.compile(r"(constrained-)?str|(.*\W)?TwoSentences\W?")

_DEEPEST = 50
"""PyYAML takes hours for 100 KB of `[`."""

# What pydantic finds, where its own words are not a user's.
_FINDINGS = {
    "bool_type": "must be true or false",
    "dict_type": "must hold keys and values",
    "finite_number": "must be a finite number",
    "float_type": "must be a number",
    "int_from_float": "must be a whole number",
    "int_type": "must be a whole number",
    "list_type": "must be a list, in square brackets",
    "model_type": "must hold keys and values",
    "string_too_short": "must not be empty",
    "string_type": "must be text; put it in quotes",
    "tuple_type": "must be a list, in square brackets",
}


def check_text(value: str) -> str:
    """The text itself.

    Raises:
        ValueError: If it holds what breaks a terminal, a path or a tokenizer.
    """
    if bad := _NO_TEXT.search(value):
        if "\ud800" <= bad[0] <= "\udfff":
            # JSON may spell it; no encoding can write it.
            raise ValueError("has half of a surrogate pair, which is not text; take it out")
        raise ValueError(
            f"has the control character {bad[0]!r} at position {bad.start()}; take it out"
        )
    return value


def one_line(value: str) -> str:
    """The text itself.

    Raises:
        ValueError: If it holds a tab, a line's end or what is no text (see `check_text`).
    """
    if "\n" in value or "\t" in value:
        raise ValueError("must be one line without tabs")
    return check_text(value)


def shown(value: object) -> str:
    """A value for a message, cut to 60 characters."""
    text = repr(list(value) if isinstance(value, tuple) else value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """A hint at the nearest known word, or nothing."""
    near = difflib.get_close_matches(word[:100].casefold(), known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def read_text(source: Traversable, raises: type[SteerError]) -> str:
    """A file's text, without its byte order mark.

    Args:
        source: The file.
        raises: The error for a file that is missing, a folder, or no UTF-8 text.
    """
    try:
        if source.is_dir():
            raise raises(f"{source} is a folder; give a file in it")
        if not source.is_file():
            raise raises(f"{source} does not exist or is no file")
        data = source.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or error
        raise raises(f"{str(source)!r} cannot be read ({reason})") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise raises(f"{source} is not UTF-8 text (line {line}); save it as UTF-8") from error


def read_yaml(source: Traversable, raises: type[SteerError]) -> object:
    """What a YAML file says; see `read_text` and `parse_yaml`."""
    return parse_yaml(read_text(source, raises), source, raises)


def parse_yaml(text: str, source: object, raises: type[SteerError]) -> object:
    """What YAML says: plain values, no aliases, no key twice, nothing nested deeply.

    Args:
        text: The YAML.
        source: Where it is from, for the message.
        raises: The error for all else.
    """
    try:
        return yaml.load(text, Loader=_BoundedLoader)
    except Exception as error:  # the constructors of dates and numbers raise anything
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        reason = " ".join(str(error).split())[:300]
        if mark is not None and problem is not None:
            reason = f"{problem} (line {mark.line + 1}, column {mark.column + 1})"
        raise raises(f"{source} is not valid YAML: {reason}") from error


class _BoundedLoader(yaml.SafeLoader):
    """Aliases can nest a billion values in ten lines, and brackets hours of work in 100 KB."""

    def fetch_flow_collection_start(self, TokenClass: Any) -> None:
        # For each token the scanner looks at every bracket that is open.
        if self.flow_level >= _DEEPEST:
            problem = f"lists and objects are nested more than {_DEEPEST} deep"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=self.get_mark())
        super().fetch_flow_collection_start(TokenClass)

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = cast(Any, self).peek_event()
            problem = f"the alias *{event.anchor} is not read, write it out"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen = set()
        for key, _ in node.value:
            if key.value.__hash__ and key.value in seen:
                problem = f"the key {shown(key.value)} stands twice"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            seen.add(key.value if key.value.__hash__ else id(key))
        return super().construct_mapping(node, deep)


def parse_json(text: str | bytes) -> object:
    """What JSON says: every key once, every number finite.

    Raises:
        ValueError: For all else, with the reason.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_number)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _unique(items: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(items)
    if len(found) != len(items):
        seen = [key for key, _ in items]
        raise ValueError(f"{next(key for key in seen if seen.count(key) > 1)!r} is given twice")
    return found


def _no_number(name: str) -> object:
    raise ValueError(f"{name} is not a JSON number")


def problems(error: ValidationError, model: type[object]) -> list[str]:
    """What pydantic found wrong in data, each finding as a sentence that says where and what.

    Args:
        error: What was raised.
        model: What the data should have been, for the nearest right word.
    """
    found = [one for one in error.errors(include_url=False) if not _other_branch(one)]
    unknown = [str(one["loc"][-1]) for one in found if one["type"] == "extra_forbidden"]
    # A misspelt key is one mistake, not an unknown key and a missing one.
    misspelt = {
        one["loc"]
        for one in found
        if one["type"] == "missing" and difflib.get_close_matches(str(one["loc"][-1]), unknown)
    }
    return [_sentence(one, model) for one in found if one["loc"] not in misspelt]


def _sentence(one: ErrorDetails, model: type[object]) -> str:
    *section, last = one["loc"] or ("",)
    # pydantic marks branches of unions, keys of mappings and the like in brackets.
    named = [str(part) for part in one["loc"] if not _BRANCH.fullmatch(str(part))]
    parts = [part for part in named if "[" not in part]
    if one["type"] == "extra_forbidden":
        return f"unknown key {shown('.'.join(named))}{_hint(last, section, model)}"
    place = f"key {'.'.join(parts)[:100]!r}" if parts else ""
    if one["type"] == "missing":
        return f"{place} is missing"
    separator = ": " if place else ""
    return f"{place}{separator}{_finding(one)}"


def _finding(one: ErrorDetails) -> str:
    kind, given = one["type"], one["input"]
    if kind == "value_error":
        return one["msg"].removeprefix("Value error, ")
    if kind == "json_invalid":
        return f"it is not valid JSON ({one['msg'].removeprefix('Invalid JSON: ')})"
    message = _FINDINGS.get(kind) or re.sub(r"^[A-Z]\w+ should ", "must ", one["msg"])
    hint = ""
    if any("literal[" in str(part) for part in one["loc"]):
        message += " or a list"
    if kind == "literal_error":
        allowed = re.findall(r"'([^']*)'", str(one.get("ctx", {}).get("expected", "")))
        hint = did_you_mean(str(given), allowed)
    return f"{message} (got {shown(given)}){hint}"


def _other_branch(one: ErrorDetails) -> bool:
    """Whether this is what a union's other choice said: `layers` is "all" or a list."""
    branch = [str(part) for part in one["loc"] if "[" in str(part)]
    if one["loc"] and _BRANCH.fullmatch(str(one["loc"][-1])):
        return one["type"] == ("model_type" if isinstance(one["input"], str) else "string_type")
    is_text = isinstance(one["input"], str)
    if branch and branch[0].startswith("literal["):
        return not is_text
    return bool(branch) and is_text and one["type"] == "tuple_type"


def _hint(key: int | str, section: Sequence[int | str], model: type[object]) -> str:
    """The nearest right key, here or in a section of the model, or all that are right here."""
    known = _keys(section, model)
    near = did_you_mean(str(key), known)
    homes = [f"{name}.{key}" for name in _keys([], model) if key in _keys([name], model)]
    home = f"; did you mean {homes[0]!r}?" if homes else ""
    hint = (near or home) if section else (home or near)
    return hint or (f"; it may be: {', '.join(known)}" if known else "")


def _keys(section: Sequence[int | str], model: type[object]) -> list[str]:
    inner = _model_within(model)
    for name in section:
        # A number or a key of a mapping leads to what the list or mapping holds.
        if inner is not None and name in inner.model_fields:
            inner = _model_within(inner.model_fields[str(name)].annotation)
    return list(inner.model_fields) if inner is not None else []


def _model_within(annotation: Any) -> type[BaseModel] | None:
    """The model in an annotation such as `Section | None` or `dict[int, Section]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = (_model_within(part) for part in get_args(annotation))
    return next((model for model in found if model is not None), None)


def json_line(record: Mapping[str, object]) -> str:
    """One record as one line of JSON, the same record the same bytes."""
    return (
        json.dumps(record, ensure_ascii=False, sort_keys=True, allow_nan=False)
        # Line separators inside strings are legal JSON but split lines in many readers.
        .replace("\u2028", "\\u2028")
        .replace("\u2029", "\\u2029")
        .replace("\x85", "\\u0085")
        + "\n"
    )


def write_beside(path: Path, data: bytes) -> None:
    """Write a whole file: a reader sees the old one or the new one, never a part.

    It is forced to disk before it takes the old one's place, so that a crash loses neither.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write_all(part, data, os.O_TRUNC)
        part.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            part.unlink()
        raise
    sync_folder(path.parent)


def write_all(path: Path, data: bytes, mode: int, sync: bool = True) -> None:
    """Write bytes, all or none of them, and force them to disk if `sync`.

    Args:
        path: The file, made if need be.
        data: What to write.
        mode: `os.O_APPEND` or `os.O_TRUNC`.
        sync: Whether they are on disk when this returns.
    """
    # Unbuffered: a buffer would write its rest on closing, after a failed write was taken back.
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | mode, 0o644)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(handle, view) :]
        if sync:
            os.fsync(handle)
    finally:
        os.close(handle)


def sync_folder(folder: Path) -> None:
    """Force a folder's list of names to disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def made_beside(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """A path beside another, at which to make a file or a folder; it is renamed once it is made.

    Args:
        path: Where it shall be; its parent exists.
        replace: Whether a folder that is there already gives way; otherwise only an empty one does.

    Raises:
        OSError: If it cannot take the place; then what was there is there still.
    """
    mark = f"{path.name}.{secrets.token_hex(4)}"
    fresh, old = path.with_name(f".{mark}.new"), path.with_name(f".{mark}.old")
    try:
        yield fresh
        # No system call swaps two folders everywhere; a full folder cannot be renamed over.
        if replace and path.exists():
            path.rename(old)
        try:
            fresh.rename(path)
        except BaseException:
            if old.exists():
                old.rename(path)
            raise
    finally:
        if fresh.is_file():
            fresh.unlink()
        shutil.rmtree(fresh, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
