"""What a case is, and the good things that cases spoil."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.helpers import small_run


@dataclass(frozen=True)
class World:
    """Good things to spoil: a folder of one's own, and copies of what is shared by all cases.

    Attributes:
        tmp: An empty folder.
        shared: Holds `model`, `behavior`, `vectors` and the finished run `run`; not to be changed.
    """

    tmp: Path
    shared: Path

    @property
    def model(self) -> Path:
        """A tiny model's folder; not to be changed."""
        return self.shared / "model"

    @property
    def behavior(self) -> Path:
        """A behavior's folder; not to be changed."""
        return self.shared / "behavior"

    @property
    def out(self) -> str:
        """Where a run may be written."""
        return str(self.tmp / "out")

    def copy(self, name: str) -> Path:
        """A copy of `model`, `behavior`, `vectors` or `run` that may be spoiled."""
        return Path(shutil.copytree(self.shared / name, self.tmp / name))

    def config(self, **changes: Any) -> Path:
        """A good experiment file with some sections changed."""
        path = self.tmp / "experiment.yaml"
        behavior = changes.pop("behavior", self.behavior)
        values = small_run.settings(self.model, behavior, **changes)
        path.write_text(yaml.safe_dump(values, sort_keys=False))
        return path

    def run(self, path: Path | str | None = None, **changes: Any) -> list[str]:
        """`run` of an experiment file, by default a good one with some sections changed."""
        return ["run", str(self.config(**changes) if path is None else path), "--out", self.out]

    def generate(
        self, *more: str, model: Path | None = None, prompt: str = "Draw it."
    ) -> list[str]:
        """`generate` with the tiny model."""
        vectors = ["--vectors", str(self.shared / "vectors"), "--layer", "2"]
        return ["generate", "--model", str(model or self.model), *vectors, *more, prompt]

    def edit_json(self, path: Path, **changes: Any) -> Path:
        """Change keys of a JSON file; a key of value `...` is taken out."""
        value = json.loads(path.read_text())
        for key, item in changes.items():
            if item is ...:
                del value[key]
            else:
                value[key] = item
        path.write_text(json.dumps(value))
        return path


Build = Callable[[World], list[str]]


@dataclass(frozen=True)
class Case:
    """One bad input.

    Attributes:
        name: A short sentence.
        build: Spoils something and gives the arguments of `mlx-steer`.
        says: What the message must hold: what is wrong, where, what to do.
    """

    name: str
    build: Build
    says: tuple[str, ...]


def case(name: str, *says: str) -> Callable[[Build], Case]:
    """Makes a function that spoils something into a case."""
    return lambda build: Case(name, build, says)
