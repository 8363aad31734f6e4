"""Read a run directory into plain records, checking every primary file on the way.

Rows no condition names are stale and left out; so is a last line that was torn by a crash.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from mlx_steer.behaviors import PromptItem
from mlx_steer.config import ExperimentConfig, load_config
from mlx_steer.errors import ConfigError, RunError, VectorError
from mlx_steer.files import problems, shown
from mlx_steer.run.directory import MARKS, check_format, parse_lines
from mlx_steer.run.records import (
    BehaviorRecord,
    Choice,
    ConditionRecord,
    Conditions,
    GateRecord,
    Gates,
    Labels,
    Manifest,
    PriceLine,
    Row,
    Score,
    Separation,
    record_json,
)
from mlx_steer.vectors import SteeringVectorSet, load_vectors
from mlx_steer.words import Verdict

_Model = TypeVar("_Model", bound=BaseModel)
_Kind = TypeVar("_Kind")


@dataclass(frozen=True)
class RunData:
    """Everything a run directory says.

    Attributes:
        folder: The run directory.
        config: The resolved experiment.
        manifest: Versions, device, times, model, notes.
        behavior: The behavior's words.
        prompts: The prompts by id, in file order.
        conditions: In file order; names are unique.
        rows: The rows that conditions name, by key.
        scores: By row key; of older scores of a row, the last line counts.
        prices: By base's row key and that of the same prompt under another condition.
        choice: What the comparison was run with; None before the sweep is done.
        labels: A person's verdicts by row key.
        vectors: The steering vectors; None if the run has none yet.
        gates: How each gate was fitted; none before the comparison is done.
        separation: By layer, held-out AUC of the contrast pairs' two sides, where it was computed.
        stale: Rows in the file that no condition names.
    """

    folder: Path
    config: ExperimentConfig
    manifest: Manifest = field(repr=False)
    behavior: BehaviorRecord
    prompts: Mapping[str, PromptItem] = field(repr=False)
    conditions: tuple[ConditionRecord, ...] = field(repr=False)
    rows: Mapping[str, Row] = field(repr=False)
    scores: Mapping[str, Score] = field(repr=False)
    prices: Mapping[tuple[str, str], PriceLine] = field(default_factory=dict, repr=False)
    choice: Choice | None = None
    labels: Mapping[str, Verdict] = field(default_factory=dict, repr=False)
    vectors: SteeringVectorSet | None = field(default=None, repr=False)
    gates: tuple[GateRecord, ...] = field(default=(), repr=False)
    separation: Mapping[int, float | None] = field(default_factory=dict, repr=False)
    stale: int = 0

    def condition(self, name: str) -> ConditionRecord:
        """The condition of this name; raises KeyError if the run has none."""
        for condition in self.conditions:
            if condition.name == name:
                return condition
        raise KeyError(name)


def load_run(folder: str | os.PathLike[str]) -> RunData:
    """Read a run directory, finished or not.

    Raises:
        RunError: If it is missing, was written in another format, or a primary file is missing or
            damaged; the message names the file.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise RunError(f"there is no run directory {folder}; give one that `mlx-steer run` wrote")
    if not any((folder / name).exists() for name in MARKS):
        raise RunError(f"{folder} is no run directory; give one that `mlx-steer run` wrote")
    manifest = _manifest(folder)
    try:
        config = load_config(folder / "config.yaml")
    except ConfigError as error:
        raise RunError(f"{error}; run the experiment again to write it anew") from error
    conditions = _record(folder / "conditions.json", Conditions).conditions
    prompts = {item.id: item for item in _lines(folder / "prompts.jsonl", PromptItem)}
    _check_conditions(folder / "conditions.json", conditions, prompts)
    rows = {row.key: row for row in _lines(folder / "rows.jsonl", Row)}
    named = {key for condition in conditions for key in condition.rows.values()}
    choice, gates = (
        _if_there(folder / "choice.json", Choice),
        _if_there(folder / "gate.json", Gates),
    )
    separation = _if_there(folder / "separation.json", Separation)
    return RunData(
        folder=folder,
        config=config,
        manifest=manifest,
        behavior=_record(folder / "behavior.json", BehaviorRecord),
        prompts=prompts,
        conditions=conditions,
        rows={key: row for key, row in rows.items() if key in named},
        scores=_scores(folder / "scores.jsonl"),
        prices=_prices(folder / "prices.jsonl"),
        choice=choice,
        labels={k: v for k, v in read_labels(folder / "labels.json").items() if v is not None},
        vectors=_vectors(folder / "vectors"),
        gates=gates.gates if gates else (),
        separation=separation.root if separation else {},
        stale=sum(key not in named for key in rows),
    )


def read_labels(path: Path) -> dict[str, Verdict | None]:
    """A person's verdicts by row key; none if there is no file. None takes a verdict back.

    Raises:
        RunError: If the file is damaged or of another format.
    """
    labels = _if_there(path, Labels)
    return dict(labels.labels) if labels else {}


def _vectors(folder: Path) -> SteeringVectorSet | None:
    if not folder.exists():
        return None
    try:
        return load_vectors(folder)
    except VectorError as error:
        raise RunError(f"the run's vectors cannot be read: {error}") from error


def _scores(path: Path) -> dict[str, Score]:
    scores: dict[str, Score] = {}
    for score in _lines(path, Score) if path.exists() else ():
        # Perplexity and a judge model's verdict may have been written at different times.
        known = scores.get(score.key)
        scores[score.key] = known.model_copy(update=record_json(score)) if known else score
    return scores


def _prices(path: Path) -> dict[tuple[str, str], PriceLine]:
    lines = _lines(path, PriceLine) if path.exists() else ()
    return {(line.base, line.row): line for line in lines}


def _check_conditions(
    path: Path, conditions: tuple[ConditionRecord, ...], prompts: Mapping[str, PromptItem]
) -> None:
    names = [condition.name for condition in conditions]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise RunError(f"{path} is damaged: the condition {shown(twice[0])} stands twice")
    for condition in conditions:
        unknown = condition.rows.keys() - prompts.keys()
        if unknown:
            raise RunError(
                f"{path} names the prompt {shown(min(unknown))}, which is not in prompts.jsonl; "
                "run the experiment again to write both anew"
            )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise RunError(
            f"{path} is missing; run the experiment again, its finished rows are kept"
        ) from None
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror or error}") from error


def _manifest(folder: Path) -> Manifest:
    path = folder / "manifest.json"
    try:
        value = json.loads(_read(path))
        # Python takes NaN and halves of surrogate pairs, neither of which a report can hold.
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path} is damaged: it is not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise RunError(f"{path} is damaged: it must hold a JSON object")
    cure = "report it with that version, or run it again"
    check_format(value.get("format_version"), folder, cure)
    return _record(path, Manifest)


def _record(path: Path, kind: type[_Model]) -> _Model:
    try:
        return kind.model_validate_json(_read(path))
    except ValidationError as error:
        raise RunError(f"{path} is damaged: {problems(error, kind)[0]}") from error


def _if_there(path: Path, kind: type[_Model]) -> _Model | None:
    return _record(path, kind) if path.exists() else None


def _lines(path: Path, kind: type[_Kind]) -> list[_Kind]:
    data = _read(path)
    # A line without its end was torn by a crash; the run cuts it off and writes it again.
    return parse_lines(data[: data.rfind(b"\n") + 1], path, kind)
