"""Starts a behavior of one's own: a folder like the shipped ones, from an example or a copy."""

import json
import re
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from mlx_steer.behaviors.items import Behavior
from mlx_steer.behaviors.load import list_behaviors, load_behavior
from mlx_steer.errors import DataError
from mlx_steer.files import made_beside

FILES = ("behavior.yaml", "pairs.jsonl", "prompts.jsonl")
EXPERIMENT_FILE = "experiment.yaml"

_NAME_LINE = re.compile(r"^name:.*$", re.M)


def write_new_behavior(folder: Path, source: str | None = None) -> Behavior:
    """Make a folder with a behavior that loads and is there to be edited, and a config to run it.

    The behavior is named after the folder. The folder is complete or absent.

    Args:
        folder: Must not exist yet, or be empty.
        source: A shipped behavior or a folder to copy; by default an example with explanations.

    Raises:
        DataError: If the folder holds something, its name makes no behavior's name, or it cannot
            be written.
    """
    place, folder = place_of(folder), folder.resolve()
    name = re.sub(r"[^a-z0-9_-]+", "_", folder.name.casefold()).strip("_-")
    if not name:
        raise DataError(f"{folder.name!r} makes no name for a behavior; use letters and digits.")
    origin = _origin(source)
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise DataError(f"{folder} exists already and is kept as it is; choose another folder.")
        folder.parent.mkdir(parents=True, exist_ok=True)
        with made_beside(folder) as part:
            part.mkdir()
            for file in FILES:
                text = origin.joinpath(file).read_text(encoding="utf-8")
                if file == FILES[0]:
                    text = _NAME_LINE.sub(f"name: {name}", text, count=1)
                (part / file).write_text(text, encoding="utf-8")
            behavior = load_behavior(part)
            (part / EXPERIMENT_FILE).write_text(_experiment(name, place), encoding="utf-8")
    except OSError as error:
        raise DataError(f"{folder} cannot be written ({error.strerror or error}).") from error
    return behavior


def place_of(folder: Path) -> str:
    """A folder as commands and configs take it: never mistaken for a shipped behavior's name."""
    plain = folder.is_absolute() or not folder.parts or folder.parts[0] == ".."
    return str(folder) if plain else f"./{folder}"


def _experiment(name: str, place: str) -> str:
    """The example's experiment file for a behavior of this name at this place."""
    data = resources.files("mlx_steer.behaviors").joinpath("template", EXPERIMENT_FILE)
    # As JSON, which YAML reads: a folder's name may hold a colon or a hash.
    place = json.dumps(place, ensure_ascii=False)
    return data.read_text(encoding="utf-8").replace("NAME", name).replace("FOLDER", place)


def _origin(source: str | None) -> Traversable:
    data = resources.files("mlx_steer.behaviors")
    if source is None:
        return data.joinpath("template")
    load_behavior(source)
    if source in list_behaviors():
        return data.joinpath("data", source)
    return Path(source)
