"""Rows of one run directory taken into another: the parts of a run that several machines make.

Rows are known by what determines them, so nothing has to be coordinated: what is missing is taken,
what is there stays. Runs of another experiment, model or version are refused.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, RootModel

from mlx_steer.config import ExperimentConfig, load_config
from mlx_steer.errors import ConfigError, RunError
from mlx_steer.files import made_beside
from mlx_steer.run.directory import MARKS, RunDirectory, parse_lines
from mlx_steer.run.records import BehaviorRecord, Conditions, Manifest, PriceLine, Row, Score
from mlx_steer.run.sentences import SentencesRecord

_Record = TypeVar("_Record", bound=BaseModel)

# What a run is, and what its rows were made from; a part that is taken into nothing brings it.
_BEGINNING = ("config.yaml", "behavior.json", "prompts.jsonl", "manifest.json")
# What later stages start from, once one of the parts has made it.
_MADE_ONCE = ("separation.json", "screening.json", "doses.json", ".*.json")
MADE_FROM = ".extracted.json"


class MadeFrom(RootModel[dict[str, tuple[str, str]]]):
    """By folder of vectors: hashes of what they were made from, and of themselves."""


@dataclass(frozen=True)
class Taken:
    """What came of it.

    Attributes:
        rows: How many were new.
        held: How many of the other run's rows were there already.
        unlike: How many of those say something else. In float32 none does; in 16 bits two machines
            may part where two tokens are all but equal, and the row that was there stays.
    """

    rows: int
    held: int
    unlike: int


def is_begun(folder: Path) -> bool:
    """Whether a directory holds a run that has rows, or is about to."""
    return (folder / "manifest.json").is_file()


def missing_rows(run: RunDirectory) -> int:
    """How many rows that the run's conditions name are not there."""
    found = run.read_record("conditions.json", Conditions)
    named = {key for c in found.conditions for key in c.rows.values()} if found else set()
    return len(named - {row.key for row in run.read("rows.jsonl", Row)})


def take_rows(run: RunDirectory, source: Path) -> Taken:
    """Take what a run lacks from another run of the same experiment.

    Args:
        run: The run, locked; a new one becomes a run of the source's experiment.
        source: The other run directory, finished or not; it is only read.

    Raises:
        RunError: If the source is no run, or one of something else; nothing is taken then.
    """
    if not any((source / name).is_file() for name in MARKS):
        raise RunError(f"{source} is no run directory; give those that `run --part` wrote")
    if not is_begun(source):  # killed while its model was loading: nothing to take
        return Taken(0, 0, 0)
    if is_begun(run.folder):
        _check_same(run.folder, source)
    else:
        for name in _BEGINNING:
            if (source / name).is_file():
                run.write(name, (source / name).read_text(encoding="utf-8"))
    _take_vectors(run, source)
    _take_conditions(run, source)
    for path in sorted(path for name in _MADE_ONCE for path in source.glob(name)):
        if not (run.folder / path.name).exists():
            run.write(path.name, path.read_text(encoding="utf-8"))
    held = {row.key: row for row in run.read("rows.jsonl", Row)}
    found = _lines(source / "rows.jsonl", Row)
    new = {row.key: row for row in found if row.key not in held}
    run.append("rows.jsonl", new.values())
    _take_scores(run, source)
    shared = [row for row in found if row.key in held]
    unlike = sum(row.tokens != held[row.key].tokens for row in shared)
    return Taken(len(new), len(shared), unlike)


def _take_conditions(run: RunDirectory, source: Path) -> None:
    """Those of the later stage."""
    own = run.read_record("conditions.json", Conditions)
    theirs = RunDirectory(source).read_record("conditions.json", Conditions)
    if theirs and (own is None or len(own.conditions) < len(theirs.conditions)):
        run.write_record("conditions.json", theirs)


def _take_scores(run: RunDirectory, source: Path) -> None:
    fields = ("perplexity", "judge_model", "log_ratio")
    held = {(s.key, f) for s in run.read("scores.jsonl", Score) for f in fields if s.says(f)}
    scores = _lines(source / "scores.jsonl", Score)
    new = [s for s in scores if any(s.says(f) and (s.key, f) not in held for f in fields)]
    run.append("scores.jsonl", new)
    priced = {(line.base, line.row) for line in run.read("prices.jsonl", PriceLine)}
    prices = _lines(source / "prices.jsonl", PriceLine)
    run.append("prices.jsonl", [p for p in prices if (p.base, p.row) not in priced])


def _take_vectors(run: RunDirectory, source: Path) -> None:
    """Folders of vectors that the run lacks; those it has must be the same, or no row would fit."""
    noted = run.read_record(MADE_FROM, MadeFrom)
    own = dict(noted.root) if noted else {}
    theirs = RunDirectory(source).read_record(MADE_FROM, MadeFrom)
    for name, made in (theirs.root if theirs else {}).items():
        if name in own:
            if own[name] != made:
                raise RunError(
                    f"{source} has other {name} than {run.folder}: its machine rounds otherwise, "
                    "so none of its rows is one of this run; let one machine begin, and start the "
                    f"parts again beside a copy of {run.folder}"
                )
            continue
        with made_beside(run.folder / name) as part:
            shutil.copytree(source / name, part, dirs_exist_ok=True)
        own[name] = made
    if own:
        run.write_record(MADE_FROM, MadeFrom(own))


def _check_same(folder: Path, source: Path) -> None:
    """That both are of one experiment, of one model, by one version."""
    here, there = _manifest(folder), _manifest(source)
    facts: dict[str, tuple[object, object]] = {
        "experiment": (_experiment(folder), _experiment(source)),
        "model": (here.model, there.model),
        "dtype": (here.dtype, there.dtype),
        "format": (here.format_version, there.format_version),
    }
    for package in ("mlx_steer", "mlx", "mlx_lm", "numpy", "transformers"):
        facts[f"version of {package}"] = getattr(here, package), getattr(there, package)
    facts["behavior"] = _behavior(folder), _behavior(source)
    facts["prompts.jsonl"] = _text(folder / "prompts.jsonl"), _text(source / "prompts.jsonl")
    for what, (ours, other) in facts.items():
        if ours != other:
            said = f" ({other}, not {ours})" if isinstance(other, str) and len(other) < 40 else ""
            raise RunError(f"{source} is of another {what} than {folder}{said}; leave it out")


def _experiment(folder: Path) -> ExperimentConfig:
    """The config, but for what rows do not depend on."""
    try:
        found = load_config(folder / "config.yaml")
    except ConfigError as error:
        raise RunError(f"{error}; run the experiment again to write it anew") from error
    generation = found.generation.model_copy(update={"batch_size": None})
    return found.model_copy(update={"generation": generation})


def _manifest(folder: Path) -> Manifest:
    found = RunDirectory(folder).read_record("manifest.json", Manifest)
    if found is None:
        raise RunError(f"{folder}/manifest.json is damaged; run the part again to write it anew")
    return found


def _behavior(folder: Path) -> BehaviorRecord | None:
    """Without the judge of two sentences, which is known from the first answers on."""
    found = RunDirectory(folder).read_record("behavior.json", BehaviorRecord)
    if found is None or found.sentences is None:
        return found
    said = {name: getattr(found.sentences, name) for name in ("positive", "negative", "rules")}
    return found.model_copy(update={"sentences": SentencesRecord(**said)})


def _text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.is_file() else None


def _lines(path: Path, kind: type[_Record]) -> list[_Record]:
    """The records of a file that may be under way: a line without its end is not there yet."""
    data = path.read_bytes() if path.is_file() else b""
    return parse_lines(data[: data.rfind(b"\n") + 1], path, kind)
