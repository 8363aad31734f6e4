"""Spoiled files: what the property tests of all readers of files draw from."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from hypothesis import strategies as st

from mlx_steer.errors import SteerError

T = TypeVar("T")

_ODD: Sequence[Any] = [
    None,
    True,
    False,
    0,
    -1,
    2**31,
    2**63,
    -(2**64),
    10**40,
    1e308,
    -1e-320,
    float("inf"),
    float("-inf"),
    float("nan"),
    "",
    "\x1b[2J",
    "\x00",
    "\ud800",
    "../../etc/passwd",
    "/etc/passwd",
    "a" * 300,
    [],
    {},
    [[]],
    [None],
    {"": None},
]

VALUES: st.SearchStrategy[Any] = st.sampled_from(_ODD) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=5,
)
"""Anything JSON can say, and more: what Python's parser takes for JSON, such as NaN."""

DEEP = [b"[" * 100_000, b'{"a":' * 100_000, b"[" * 900 + b"]" * 900]


@st.composite
def values(draw: st.DrawFn, good: Any, most: int = 3) -> Any:
    """A good JSON value with one to `most` places changed, dropped, renamed or put twice."""
    value = json.loads(json.dumps(good))
    for _ in range(draw(st.integers(1, most))):
        places = list(_places(value))
        if not places:
            return draw(VALUES)
        parent, key = draw(st.sampled_from(places))
        kind = draw(st.sampled_from(["change", "change", "drop", "rename", "twice", "scale"]))
        if kind == "drop":
            del parent[key]
        elif kind == "rename" and isinstance(parent, dict):
            parent[draw(st.text(max_size=8))] = parent.pop(key)
        elif kind == "twice" and isinstance(parent, list):
            parent.append(parent[key])
        elif kind == "scale" and type(parent[key]) in (int, float):
            parent[key] *= draw(st.sampled_from([-1, 0, 0.5, 3, 10**9, 10**18]))
        else:
            # A copy: later places may be within it, and the samples are everybody's.
            parent[key] = copy.deepcopy(draw(VALUES))
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (object or list, key) within a value."""
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _places(value[key])


@st.composite
def spoiled(draw: st.DrawFn, good: bytes) -> bytes:
    """The bytes of a good file with bits turned, a part cut out, put in, repeated, or the end off.

    Now and then it is something else altogether.
    """
    kind = draw(st.sampled_from(["bits", "cut", "put", "end", "repeat", "all"]))
    if kind == "all":
        return draw(st.binary(max_size=100) | st.sampled_from(DEEP))
    data = bytearray(good)
    at = draw(st.integers(0, max(0, len(good) - 1)))
    if kind == "bits":
        for _ in range(draw(st.integers(1, 4))):
            where = draw(st.integers(0, len(good) - 1))
            data[where] ^= 1 << draw(st.integers(0, 7))
    elif kind == "cut":
        del data[at : at + draw(st.integers(1, 40))]
    elif kind == "put":
        data[at:at] = draw(st.binary(min_size=1, max_size=12) | st.sampled_from(DEEP))
    elif kind == "end":
        del data[at:]
    else:
        data[at:at] = good[at : at + draw(st.integers(1, 80))]
    return bytes(data)


def json_files(good: Any, most: int = 3) -> st.SearchStrategy[bytes]:
    """A JSON file that is spoiled in its values, or in its bytes."""
    text = json.dumps(good, indent=1)
    return values(good, most).map(lambda v: json.dumps(v).encode()) | spoiled(text.encode())


def line_files(good: Sequence[Any]) -> st.SearchStrategy[bytes]:
    """A file of JSON lines that is spoiled in one line's values, or in its bytes."""
    lines = [json.dumps(record) for record in good]

    def with_line(number: int, value: Any) -> bytes:
        changed = [*lines[:number], json.dumps(value), *lines[number + 1 :]]
        return ("\n".join(changed) + "\n").encode()

    places = st.integers(0, len(good) - 1)
    return places.flatmap(
        lambda i: values(good[i]).map(lambda value: with_line(i, value))
    ) | spoiled(("\n".join(lines) + "\n").encode())


def read_or_refused(read: Callable[[], T]) -> T | None:
    """What a reader gives; None if it refuses in a sentence a terminal can show.

    Any other error is the test's failure.
    """
    try:
        return read()
    except SteerError as error:
        said = str(error)
        assert 10 < len(said) < 5000, said[:200]
        assert "Traceback" not in said
        assert not re.search(r"\b0x[0-9a-f]{6,}", said), said  # the repr of some object
        return None
