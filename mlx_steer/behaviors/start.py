"""Starts a behavior of one's own: a folder like the shipped ones, from an example or a copy."""

import json
import re
from collections.abc import Callable
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

import yaml

from mlx_steer.behaviors.items import Behavior
from mlx_steer.behaviors.load import list_behaviors, load_behavior
from mlx_steer.behaviors.two_sentences import opposed
from mlx_steer.errors import DataError
from mlx_steer.files import json_line, made_beside

FILES = ("behavior.yaml", "pairs.jsonl", "prompts.jsonl")
EXPERIMENT_FILE = "experiment.yaml"

_SENTENCES_HEAD = """\
# A behavior of two opposed sentences. The model writes the contrast pairs itself: it answers the
# questions of prompts.jsonl with `split: extract` under either sentence. Of the other questions
# `select` are those to choose a layer and strength on, `test` those that are reported, `facts` show
# what steering costs in knowledge. Add `set: other` prompts that should not show the behavior, for
# a limit on false positives, and `split: gate` prompts of both sets to fit a gate on.
"""

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
    origin = _origin(source)

    def files(part: Path, name: str) -> None:
        for file in FILES:
            text = origin.joinpath(file).read_text(encoding="utf-8")
            if file == FILES[0]:
                text = _NAME_LINE.sub(f"name: {name}", text, count=1)
            (part / file).write_text(text, encoding="utf-8")

    return _written(folder, files, EXPERIMENT_FILE)


def write_two_sentences(folder: Path, positive: str, negative: str) -> Behavior:
    """The same for two opposed sentences, with the questions that are asked, there to be edited.

    Raises:
        DataError: See `write_new_behavior` and `opposed`.
    """

    def files(part: Path, name: str) -> None:
        made = opposed(positive, negative, name)
        about = {
            "name": name,
            "title": made.title,
            "description": "Steered from the negative sentence to the positive one.",
            "judge": made.judge,
            "verdicts": dict(made.verdicts),
            "sets": dict(made.sets),
            "system_prompts": dict(made.system_prompts),
            "sentences": {"positive": positive, "negative": negative},
        }
        text = yaml.safe_dump(about, sort_keys=False, allow_unicode=True, width=96)
        (part / FILES[0]).write_text(_SENTENCES_HEAD + text, encoding="utf-8")
        lines = (
            {k: v for k, v in vars(item).items() if v and k != "tools"} for item in made.prompts
        )
        (part / FILES[2]).write_text("".join(map(json_line, lines)), encoding="utf-8")

    return _written(folder, files, "two_sentences.yaml")


def _written(folder: Path, files: Callable[[Path, str], None], experiment: str) -> Behavior:
    place, folder = place_of(folder), folder.resolve()
    name = re.sub(r"[^a-z0-9_-]+", "_", folder.name.casefold()).strip("_-")
    if not name:
        raise DataError(f"{folder.name!r} makes no name for a behavior; use letters and digits.")
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise DataError(f"{folder} exists already and is kept as it is; choose another folder.")
        folder.parent.mkdir(parents=True, exist_ok=True)
        with made_beside(folder) as part:
            part.mkdir()
            files(part, name)
            behavior = load_behavior(part)
            text = _experiment(experiment, name, place)
            (part / EXPERIMENT_FILE).write_text(text, encoding="utf-8")
    except OSError as error:
        raise DataError(f"{folder} cannot be written ({error.strerror or error}).") from error
    return behavior


def place_of(folder: Path) -> str:
    """A folder as commands and configs take it: never mistaken for a shipped behavior's name."""
    plain = folder.is_absolute() or not folder.parts or folder.parts[0] == ".."
    return str(folder) if plain else f"./{folder}"


def _experiment(template: str, name: str, place: str) -> str:
    """An experiment file for a behavior of this name at this place."""
    data = resources.files("mlx_steer.behaviors").joinpath("template", template)
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
