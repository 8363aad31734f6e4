"""Text for terminals: tables, and responses that cannot steer the terminal."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from mlx_steer.files import CONTROL, TURNING

if TYPE_CHECKING:
    from rich.console import Console

_NOT_SHOWN = re.compile(rf"[{CONTROL}{TURNING}]")


def console() -> Console:
    """Where results are printed."""
    from rich.console import Console

    return Console(highlight=False, soft_wrap=False)


def safe(text: str) -> str:
    """A model's text with control characters made visible, so that it cannot move the cursor."""
    return _NOT_SHOWN.sub(lambda m: f"\\x{ord(m.group()):02x}", text)
