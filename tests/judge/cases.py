"""Labelled responses, one file for each judge."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def labelled(judge: str) -> list[dict[str, Any]]:
    """The cases of a judge: what was asked and answered, and the verdict of a person."""
    path = Path(__file__).with_name(f"{judge}_cases.jsonl")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
