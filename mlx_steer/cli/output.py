"""Text for terminals: tables, and responses that cannot steer the terminal."""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def console() -> Console:
    """Where results are printed."""
    from rich.console import Console

    return Console(highlight=False, soft_wrap=False)


def safe(text: str) -> str:
    """A model's text with control characters made visible, so that it cannot move the cursor."""
    return _not_shown().sub(lambda m: f"\\x{ord(m.group()):02x}", text)


@cache
def _not_shown() -> re.Pattern[str]:
    # Not imported with this module: it brings YAML and pydantic, which --help does without.
    from mlx_steer.files import CONTROL, TURNING

    return re.compile(rf"[{CONTROL}{TURNING}]")


def duration(seconds: float) -> str:
    """Seconds in the unit people would use."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
