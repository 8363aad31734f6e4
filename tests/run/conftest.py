"""A run directory, rows for it, what writes to it, and a disk that is full."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mlx_steer.files import json_line
from mlx_steer.run.directory import RunDirectory
from mlx_steer.run.records import Row, record_json

ROWS = [
    Row(
        key=f"{i:032x}",
        prompt_id="p",
        condition="base",
        prompt="What is it?",
        set="target",
        split="test",
        prompt_tokens=9,
        tokens=(i, i + 1),
        text="a\nb\u2028c",
        finish_reason="stop",
        margin=None,
    )
    for i in range(40)
]


def line(row: Row) -> str:
    return json_line(record_json(row))


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunDirectory]:
    with RunDirectory.open(tmp_path / "run") as directory:
        yield directory


WRITES: list[Callable[[RunDirectory], None]] = [
    lambda run: run.append("rows.jsonl", ROWS[5:6]),
    lambda run: run.write("report.md", "a report"),
    lambda run: run.log("still here"),
]


@contextmanager
def full_disk(monkeypatch: pytest.MonkeyPatch, after: int) -> Iterator[None]:
    """A disk that takes so many bytes more; the write that meets its end is cut there."""
    left, write = after, os.write

    def limited(handle: int, data: Any) -> int:
        nonlocal left
        if left <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        data = bytes(data)[:left]
        left -= len(data)
        return write(handle, data)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", limited)
        yield
