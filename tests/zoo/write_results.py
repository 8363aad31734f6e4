"""Write results.json: what came of every model type (python -m tests.zoo.write_results)."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path

from tests.zoo.configs import TYPES
from tests.zoo.examine import examine

RESULTS = Path(__file__).with_name("results.json")


def main() -> None:
    """Examine all types; takes minutes."""
    types: dict[str, str] = {}
    for name in TYPES:
        types[name] = examine(name).verdict
        print(name, types[name], flush=True)
    found = {"mlx_lm": metadata.version("mlx-lm"), "types": types}
    RESULTS.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
