"""The vectors that come with the package, for the built-in model."""

from __future__ import annotations

from pathlib import Path

from mlx_steer.model.hub import BUILT_IN


def shipped_vectors(model: str) -> list[Path]:
    """The folders of vectors that come for a model; none for most.

    Args:
        model: Its id.
    """
    if model != BUILT_IN:
        return []
    # Inside the wheel, or beside the package in a clone of the repository.
    places = (Path(__file__).parent / "vectors", Path(__file__).parents[2] / "vectors")
    place = next((p for p in places if p.is_dir()), places[0])
    ending = BUILT_IN.replace("-", "_")
    found = sorted(one.parent for one in place.glob(f"*_{ending}/metadata.json"))
    # The playground begins with the first: of these, refusal is the easiest to see.
    return sorted(found, key=lambda folder: not folder.name.startswith("refusal"))
