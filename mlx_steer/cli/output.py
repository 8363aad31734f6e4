"""Text for terminals: tables, and responses that cannot steer the terminal."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def console() -> Console:
    """Where results are printed."""
    from rich.console import Console

    return Console(highlight=False, soft_wrap=False)


def safe(text: str) -> str:
    """A model's text with control characters made visible, so that it cannot move the cursor."""
    return _CONTROL.sub(lambda m: f"\\x{ord(m.group()):02x}", text)
