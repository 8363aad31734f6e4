"""No behavior's files give anything but a behavior or a DataError; spoils good ones.

Files of anything are in test_datasets.py.
"""

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_steer.behaviors import load_behavior
from mlx_steer.behaviors.start import write_new_behavior
from mlx_steer.checks.lint import lint_behavior
from mlx_steer.errors import DataError
from tests.helpers import fuzz
from tests.helpers.behaviors import behavior_folder

TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}

Read = Callable[[str, bytes], None]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return behavior_folder(
        tmp_path_factory.mktemp("good") / "caution",
        prompts=1,
        tools=[TOOL],
        openings={"shown": ["I cannot"], "absent": ["Sure"]},
    )


@pytest.fixture(scope="module")
def read(good: Path) -> Read:
    """Reads the good folder with one file's bytes replaced."""

    def read_with(file: str, data: bytes) -> None:
        with tempfile.TemporaryDirectory() as parent:
            folder = Path(shutil.copytree(good, Path(parent) / "caution"))
            (folder / file).write_bytes(data)
            behavior = fuzz.read_or_refused(lambda: load_behavior(folder))
            if behavior is None:
                with pytest.raises(DataError):
                    write_new_behavior(Path(parent) / "copy", str(folder))
                return
            assert behavior.pairs
            assert behavior.prompts
            lint_behavior(behavior)
            assert write_new_behavior(Path(parent) / "copy", str(folder)).pairs == behavior.pairs

    return read_with


def of_lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("file", ["pairs.jsonl", "prompts.jsonl"])
def test_no_spoiled_lines_give_anything_but_a_behavior_or_an_error(
    file: str, good: Path, read: Read
) -> None:
    records = of_lines(good / file)
    if file == "prompts.jsonl":
        records[0] |= {"system": "Be brief.", "tools": True, "check": {"want": [1, {"a": None}]}}

    @settings(max_examples=20, deadline=None)
    @given(fuzz.line_files(records))
    def check(data: bytes) -> None:
        read(file, data)

    check()


def test_no_spoiled_behavior_file_gives_anything_but_a_behavior_or_an_error(
    good: Path, read: Read
) -> None:
    text = (good / "behavior.yaml").read_text()
    spoiled = fuzz.values(yaml.safe_load(text)).map(lambda v: json.dumps(v).encode())

    @settings(max_examples=20, deadline=None)
    @given(spoiled | fuzz.spoiled(text.encode()) | st.binary(max_size=40))
    def check(data: bytes) -> None:
        read("behavior.yaml", data)

    check()
