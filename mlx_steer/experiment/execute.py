"""The experiment: extract, sweep, choose, compare, score, judge; parts are lists of conditions.

Knows nothing about terminals: what is going on is told to a `Progress`.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_steer.behaviors import Behavior, load_behavior
from mlx_steer.config import ExperimentConfig, JudgeModelConfig
from mlx_steer.engine.guard import load_model
from mlx_steer.engine.memory import is_memory_full
from mlx_steer.errors import ConfigError, DataError, GenerationError
from mlx_steer.experiment import condition_sets as design
from mlx_steer.experiment.judge_model import Answered, Rubric, judge_id, verdicts
from mlx_steer.experiment.out_of_memory import BatchSize
from mlx_steer.experiment.plan import batch_for
from mlx_steer.experiment.program import Stages
from mlx_steer.experiment.progress import Progress
from mlx_steer.judge import judge_response
from mlx_steer.model.hub import locate
from mlx_steer.model.load import Model
from mlx_steer.model.machine import environment
from mlx_steer.run.directory import RunDirectory, json_line
from mlx_steer.run.reader import load_run
from mlx_steer.run.records import (
    FORMAT_VERSION,
    BehaviorRecord,
    Choice,
    Manifest,
    Score,
    prompt_json,
)

# A judge model's verdicts go to disk so many at a time.
_FLUSH_EVERY = 16


def run_experiment(
    config: ExperimentConfig,
    run: RunDirectory,
    progress: Progress,
    *,
    sweep: bool = True,
    compare: bool = True,
) -> Path:
    """Carry out an experiment, or the parts of it that the run does not hold yet.

    Args:
        config: The experiment.
        run: Its directory, locked.
        progress: Told what is going on.
        sweep: Search layers and strengths; without it, the config names the layer.
        compare: Make the fair comparison.

    Returns:
        The run's folder.

    Raises:
        SteerError: Of whatever part fails; finished rows are kept.
    """
    clock = _Clock(run)
    with clock.timed("load"):
        behavior = load_behavior(config.behavior)
        _check_prompts(behavior, config)
        own = config.model.model_dump()
        own["revision"] = config.model.revision or _recorded_revision(run, config.model.name)
        model = load_model(own.pop("name"), **own)
        if config.judge_model is not None:  # that it is missing must not be found out hours later
            locate(config.judge_model.name, config.judge_model.revision)
        fitting = batch_for(config, behavior, model, sweep=sweep, compare=compare)
    # Not before all is there: a mistake in the config must not spoil a finished run's.
    run.write("config.yaml", config.to_yaml())
    _write_inputs(run, behavior)
    about = _about(model)

    def told(note: str) -> None:
        progress.note(note)
        run.log(note)
        about["notes"].append(note)

    progress.tell(str(fitting))
    run.log(str(fitting))
    if fitting.note is not None:
        told(fitting.note)
    batch = BatchSize(fitting.rows, told)
    _write_manifest(run, clock, about, batch, finished=False)
    stages = Stages(config, run, progress, behavior, model, batch)
    with clock.timed("extract"):
        stages.extract()
    choice: Choice | None = None
    if sweep:
        with clock.timed("sweep"):
            choice = stages.sweep()
    if compare:
        if choice is None and config.compare.layer is None:
            raise ConfigError(
                "say which layer to steer (--layer), or run the sweep, which finds one"
            )
        with clock.timed("compare"):
            stages.compare(choice)
    with clock.timed("score"):
        stages.rows.score()
    if config.judge_model is not None:
        own = config.judge_model.model_dump(exclude={"max_tokens"})
        judge = model if own == config.model.model_dump() else None
        # Two large models do not fit in memory together: the first goes before the second comes.
        del model, stages
        with clock.timed("judge"):
            judge = judge or _load_alone(own)
            about["notes"] += _judge(config.judge_model, run, progress, behavior, judge, batch)
        about["judge_model"] = judge.info
    _write_manifest(run, clock, about, batch, finished=True)
    return run.folder


def _load_alone(settings: dict[str, Any]) -> Model:
    gc.collect()
    mx.clear_cache()
    return load_model(settings.pop("name"), **settings)


def _judge(
    config: JudgeModelConfig,
    run: RunDirectory,
    progress: Progress,
    behavior: Behavior,
    judge: Model,
    batch: BatchSize,
) -> list[str]:
    """A judge model's verdict on every row of the run's conditions; gives notes for the report."""
    rubric, data = Rubric(behavior), load_run(run.folder)
    name = judge_id(judge, rubric, config.max_tokens)
    answered = {
        key: Answered(key, data.prompts[prompt_id], data.rows[key].text)
        for condition in data.conditions
        for prompt_id, key in condition.rows.items()
        if key in data.rows
    }
    last: dict[str, Score] = {}
    held: dict[str, Score] = {}
    for score in run.read("scores.jsonl", Score):
        if score.key in answered and score.says("judge_model"):
            last[score.key] = score
            if score.judge == name:
                held[score.key] = score
    # Of several judges' verdicts on a row the last line counts, and that is to be this one's.
    run.append("scores.jsonl", [score for key, score in held.items() if last[key] is not score])
    found = {key: score.judge_model for key, score in held.items()}
    todo = [one for key, one in answered.items() if key not in held]
    progress.stage("judge", len(answered), len(held))
    fresh: list[Score] = []

    def flush() -> None:
        done, fresh[:] = fresh[:], []
        run.append("scores.jsonl", done)

    def give(rows: int) -> None:
        left = [one for one in todo if one.key not in found]
        for part in verdicts(judge, rubric, left, config.max_tokens, rows):
            found.update(part)
            fresh.extend(Score(key=k, judge=name, judge_model=verdict) for k, verdict in part)
            if len(fresh) >= _FLUSH_EVERY:
                flush()
            progress.advance(units=len(part))

    try:
        batch.retried(give)
    finally:
        flush()
    silent = sum(verdict is None for verdict in found.values())
    if not silent:
        return []
    note = (
        f"The judge model {judge.info.id} gave no verdict on {silent} of {len(found)} rows: its "
        f"answer was not one of {', '.join(rubric.labels.values())} alone, or the row too long."
    )
    progress.note(note)
    return [note]


def _recorded_revision(run: RunDirectory, name: str) -> str | None:
    """The hub's revision this run was begun with: its rows are of that one."""
    begun = run.read_record("manifest.json", Manifest)
    return begun.model.revision if begun and begun.model.id.split(" ")[0] == name else None


def _write_inputs(run: RunDirectory, behavior: Behavior) -> None:
    run.write_record("behavior.json", BehaviorRecord.model_validate(behavior))
    used = [p for p in behavior.prompts if p.split in ("select", "test")]
    run.write("prompts.jsonl", "".join(json_line(prompt_json(p)) for p in used))


def _about(model: Model) -> dict[str, Any]:
    """What the manifest says of the model, and how it is run."""
    return {
        "model": model.info,
        "num_layers": model.num_layers,
        "hidden_size": model.hidden_size,
        "dtype": str(model.dtype).removeprefix("mlx.core."),
        "notes": _notes(model),
    }


def _write_manifest(
    run: RunDirectory, clock: _Clock, about: dict[str, Any], batch: BatchSize, *, finished: bool
) -> None:
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        started=clock.started,
        finished=clock.now() if finished else None,
        seconds=clock.seconds,
        batch_size=batch.rows,
        **environment(),
        **about,
    )
    run.write_record("manifest.json", manifest)


def _notes(model: Model) -> list[str]:
    default = model.chat.default_system_prompt
    if not default:
        return []
    return [
        f"The chat template inserts a system prompt where none is given ({default!r}), "
        "so the base condition has one."
    ]


def _check_prompts(behavior: Behavior, config: ExperimentConfig) -> None:
    compared = [config.compare.system_prompt] if config.compare.system_prompt else []
    for name in [*config.sweep.system_prompts, *compared]:
        design.resolve_system_prompt(behavior.system_prompts, name)
    for split in ("select", "test"):
        for name in ("target", "other"):
            if not any((p.set, p.split) == (name, split) for p in behavior.prompts):
                raise DataError(
                    f"the behavior {behavior.name} has no prompts of set {name} and split {split}, "
                    "and an experiment needs some of each; add them to its prompts.jsonl"
                )
    for item in behavior.prompts:
        judge_response(behavior.judge, item, "I am not sure what to say about that.")


@contextmanager
def _full_memory_told(part: str) -> Iterator[None]:
    """What the batch size has no part in: loading, extraction, gates and scores."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_memory_full(error):
            raise
        raise GenerationError(
            f"memory is full (at {part}); finished rows are kept: close other programs, or use "
            "4-bit weights (--quantize 4) or a smaller model, and run the same command again"
        ) from error


class _Clock:
    def __init__(self, run: RunDirectory) -> None:
        self.started = self.now()
        self.seconds: dict[str, float] = {}
        self._run = run

    @staticmethod
    def now() -> str:
        return time.strftime("%Y-%m-%dT%H:%M:%S%z")

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        self._run.log(f"{name} begins")
        with _full_memory_told(name):
            yield
        self.seconds[name] = round(time.perf_counter() - start, 1)
        self._run.log(f"{name} took {self.seconds[name]} s")
