"""A whole experiment in a second: a tiny model, a few pairs and prompts, what it leaves behind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlx_steer.config import ExperimentConfig, parse_config
from mlx_steer.experiment.execute import run_experiment
from mlx_steer.experiment.progress import Expected
from mlx_steer.run.directory import RunDirectory
from tests.helpers.behaviors import behavior_folder
from tests.helpers.tiny import tiny_folder


def settings(model: Path | str, behavior: Path | str, /, **changes: Any) -> dict[str, Any]:
    """The contents of an experiment file: 2 layers, 2 strengths, every kind of condition."""
    values: dict[str, Any] = {
        "name": "small",
        "model": {"name": str(model)},
        "behavior": str(behavior),
        "extract": {"layers": [2, 3]},
        "sweep": {"strengths": [0.5, 1.0], "system_prompts": ["detailed", "calibrated"]},
        "compare": {"strengths": [1.0], "controls": {"random": 1}},
        "generation": {"max_tokens": 8, "batch_size": 7},
        "statistics": {"resamples": 100},
    }
    for name, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(values.get(name), Mapping)
        values[name] = {**values[name], **value} if both else value
    return values


def config(model: Path | str, behavior: Path | str, /, **changes: Any) -> ExperimentConfig:
    """`settings` as the validated experiment."""
    return parse_config(settings(model, behavior, **changes), "the test")


def carry_out(values: ExperimentConfig, folder: Path, **parts: Any) -> Told:
    """Run or continue an experiment in this process."""
    told = Told()
    with RunDirectory.open(folder) as run:
        run_experiment(values, run, told, **parts)
    return told


def shared_folder(folder: Path) -> Path:
    """Make `model`, `behavior`, the finished run `run` and its `vectors` in a folder."""
    model, behavior = tiny_folder("llama", folder / "model"), behavior_folder(folder / "behavior")
    carry_out(config(model, behavior), folder / "run")
    (folder / "run" / ".lock").unlink()
    (folder / "vectors").symlink_to(folder / "run" / "vectors")
    return folder


class Told:
    """Keeps what a run tells of itself."""

    def __init__(self) -> None:
        """Nothing yet."""
        self.stages: list[tuple[str, int, int]] = []
        self.notes: list[str] = []
        self.told: list[str] = []
        self.made: dict[str, int] = {}
        self.steps = 0
        self.expected: list[Expected] = []
        self.interims: list[str] = []

    def expect(self, stages: Sequence[Expected], known: bool) -> None:
        """Keep it."""
        self.expected = list(stages)

    def interim(self, text: str) -> None:
        """Keep it."""
        self.interims.append(text)

    def stage(self, name: str, total: int, done: int) -> None:
        """Keep it."""
        self.stages.append((name, total, done))

    def advance(self, units: int = 0, tokens: int = 0) -> None:
        """Count it."""
        name = self.stages[-1][0]
        self.made[name] = self.made.get(name, 0) + units
        self.steps += bool(tokens)

    def note(self, text: str) -> None:
        """Keep it."""
        self.notes.append(text)

    def tell(self, text: str) -> None:
        """Keep it."""
        self.told.append(text)


def left_behind(folder: Path) -> dict[str, object]:
    """Everything of a run that must not depend on batch size or interruptions, by file name."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir() or name.startswith(".") or path.suffix in (".png", ".html"):
            continue
        if name in ("config.yaml", "manifest.json", "run.log"):
            continue
        data = path.read_bytes()
        found[name] = sorted(data.splitlines()) if path.suffix == ".jsonl" else data
    return found
