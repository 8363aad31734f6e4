"""Findings about entries, in the words of their author, gathered into one error."""

import difflib
import re
from collections.abc import Sequence

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from mlx_steer.behaviors.fields import Fields
from mlx_steer.errors import DataError

MAX_SHOWN = 10


def field_problems(error: ValidationError, kind: type[Fields]) -> list[str]:
    """Pydantic's findings in the words of the file's author."""
    known = list(kind.model_fields)
    details = error.errors(include_url=False)
    given = {str(one["loc"][0]) for one in details if one["type"] == "extra_forbidden"}
    problems = []
    for one in details:
        name = str(one["loc"][0]) if one["loc"] else ""
        # a misspelt field is one mistake, not an unknown field and a missing one
        if one["type"] == "missing" and difflib.get_close_matches(name, given, 1):
            continue
        where = ".".join(str(part) for part in one["loc"])[:60]
        problems.append(
            f"field {where!r}: {_finding(one, known)}" if where else _finding(one, known)
        )
    return problems


def _finding(one: ErrorDetails, known: Sequence[str]) -> str:
    found = one.get("input")
    kind, context = one["type"], one.get("ctx", {})
    if kind == "missing":
        return "is missing"
    if kind == "extra_forbidden":
        return f"is not known{did_you_mean(str(one['loc'][-1]), known)}"
    if kind == "literal_error":
        allowed = re.findall(r"'([^']*)'", str(context.get("expected", "")))
        return f"is {short(found)}; use {', '.join(allowed)}{did_you_mean(str(found), allowed)}"
    if kind == "string_type":
        return f"must be text in quotes, not {kind_of(found)}"
    if kind == "bool_type":
        return f"must be true or false, not {kind_of(found)}"
    if kind == "value_error":
        return one["msg"].removeprefix("Value error, ")
    return f"{one['msg'][:1].lower()}{one['msg'][1:]}"


def gathered(source: object, problems: Sequence[str]) -> DataError:
    """One error with the first problems and the number of the others."""
    lines = [f"{source} has {len(problems)} problem{'s' if len(problems) > 1 else ''}:"]
    lines += [f"  {problem}" for problem in problems[:MAX_SHOWN]]
    if len(problems) > MAX_SHOWN:
        lines.append(f"  and {len(problems) - MAX_SHOWN} more")
    return DataError("\n".join(lines))


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """A hint at the nearest known word, or nothing."""
    close = difflib.get_close_matches(word[:100].casefold(), known, 1)
    return f"; did you mean {close[0]!r}?" if close else ""


def short(value: object) -> str:
    """A value's repr, cut to 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def kind_of(value: object) -> str:
    """What a value is, in plain words."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false"}
    names |= {int: "a number", float: "a number", type(None): "nothing"}
    return names.get(type(value), f"a {type(value).__name__}")
