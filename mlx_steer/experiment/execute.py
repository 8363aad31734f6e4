"""An experiment carried out: the program's stages, from vectors to scores and a judge's verdicts.

Knows nothing about terminals: what is going on is told to a `Progress`.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import mlx.core as mx

from mlx_steer.behaviors import Behavior
from mlx_steer.behaviors.two_sentences import behavior_of
from mlx_steer.config import ExperimentConfig, JudgeModelConfig, ModelConfig
from mlx_steer.engine.guard import load_model, traits_of
from mlx_steer.engine.memory import is_memory_full
from mlx_steer.engine.speed import decode_speed
from mlx_steer.errors import DataError, GenerationError
from mlx_steer.experiment.batch_size import BatchChoice
from mlx_steer.experiment.condition_sets import resolve_system_prompt
from mlx_steer.experiment.exchange import waits_logged
from mlx_steer.experiment.judge_model import judge_rows
from mlx_steer.experiment.out_of_memory import BatchSize
from mlx_steer.experiment.pace import Pace, expected, machine_rates
from mlx_steer.experiment.part import Part
from mlx_steer.experiment.plan import batch_for, folders_in
from mlx_steer.experiment.program import Program, Stage, answers
from mlx_steer.experiment.progress import Progress
from mlx_steer.experiment.results import RunResults
from mlx_steer.experiment.rows import Rows
from mlx_steer.experiment.scoring import price, score
from mlx_steer.experiment.sentence_scores import SentenceScores
from mlx_steer.experiment.work import Work
from mlx_steer.files import json_line
from mlx_steer.judge import judge_response
from mlx_steer.metrics.interim import interim
from mlx_steer.model.hub import locate
from mlx_steer.model.load import Model
from mlx_steer.model.machine import device_name, environment, versions
from mlx_steer.run.directory import RunDirectory
from mlx_steer.run.rates import MachineRates
from mlx_steer.run.records import (
    FORMAT_VERSION,
    BehaviorRecord,
    Choice,
    Manifest,
    Speed,
    prompt_json,
)
from mlx_steer.team import Team, team
from mlx_steer.vectors import ModelInfo

# Enough steps for a median, in a time that nobody notices.
_TIMED_ROWS, _TIMED_SECONDS = 16, 3.0


def run_experiment(
    config: ExperimentConfig,
    run: RunDirectory,
    progress: Progress,
    *,
    sweep: bool = True,
    compare: bool = True,
    part: Part | None = None,
) -> Path:
    """Carry out an experiment, or the parts of it that the run does not hold yet.

    Args:
        config: The experiment.
        run: Its directory, locked.
        progress: Told what is going on.
        sweep: Search layers and strengths; without it, the config names the layer.
        compare: Make the fair comparison.
        part: Make only these of the rows, up to where the others are needed; nothing is scored.

    Returns:
        The run's folder.

    Raises:
        SteerError: Of whatever part fails; finished rows are kept.
    """
    diary = _Diary(run, progress)
    with diary.timed("load"):
        behavior = behavior_of(config.behavior)
        _check(behavior, config)
        model = _loaded(config.model, _recorded_revision(run, config.model.name))
        # A model over ranks is one model; else each has its own, and rows are dealt out.
        us = team() if config.model.shard is None else Team()
        _agree(us, model, diary)
        here = us.on_this_machine()
        fitting = batch_for(config, behavior, model, sweep=sweep, compare=compare, sharing=here)
        at_once = us.least(fitting.rows)  # what is read together must not depend on who reads it
    # Not before all is there: a mistake in the config must not spoil a finished run's.
    _write_inputs(run, config, behavior)
    diary.tell(fitting)
    pace = Pace(progress, (lambda: interim(run.folder)) if us.rank == 0 else None)
    pace.expect(*expected(fitting, [*folders_in(run.folder.parent)]))
    batch = BatchSize(at_once, diary.note, lowered=model.team.size == 1)
    work = Work(config, behavior, run, pace, batch, us)
    manifest = diary.begun(model, at_once)
    if part is not None:
        progress.tell(_make_part(work, model, diary, part))
        return run.folder
    _carry_out(work, model, diary, sweep=sweep, compare=compare)
    if us.rank > 0:
        return run.folder  # rank 0 has all rows, and does the rest
    if manifest.speed is None and model.team.size == 1:
        manifest = manifest.model_copy(update={"speed": _speed(model, work.batch.rows, diary)})
    if config.judge_model is not None:
        judge = model if _same_model(config.judge_model, config.model) else None
        # Two large models do not fit in memory together: the first goes before the second comes.
        del model
        info = _judge(work, config.judge_model, judge, diary)
        manifest = manifest.model_copy(update={"judge_model": info})
    rates = machine_rates(fitting, pace.stages) or manifest.rates
    run.write_record("manifest.json", diary.finished(manifest, work.batch.rows, rates))
    return run.folder


def _agree(us: Team, model: Model, diary: _Diary) -> None:
    """That ranks have the same versions and model; other chips are noted."""
    us.agree({**versions(), "model": model.identity})
    chips = {name.decode(): None for name in us.gathered(device_name().encode())}
    if len(chips) > 1:
        diary.note(
            f"Ranks compute on {' and '.join(chips)}, which round otherwise: last digits of "
            "scores, and in 16 bits tokens that are all but tied, depend on who made them."
        )


def _make_part(work: Work, model: Model, diary: _Diary, part: Part) -> str:
    """Rows of one part, as far as they can be known yet; what is next, as a sentence."""
    rows, sentences = Rows(work, model, part), None
    others = "What comes next depends on the other parts: merge all of them, then start each again."
    with diary.timed("extract"):
        if work.behavior.sentences is not None:
            for stage in answers(work.config, work.behavior):
                rows.make(stage)
            if rows.missing:
                return f"Part {part} of the answers is made. {others}"
            sentences = SentenceScores(work, model, rows)
            work = replace(work, behavior=sentences.write())
        results = RunResults(work, model, sentences)
        rows.vectors = results.vectors
    program = Program(work.config, work.behavior, results)
    with diary.timed(f"part {part}"):
        for stage in program.search():
            if not stage.decoded:
                results.screen(stage, rows)
                continue
            rows.make(stage)
            if stage.decides and rows.missing:
                return f"Part {part} of {stage.name} is made. {others}"
            if sentences is not None:
                sentences.score(stage)
        for stage in program.compare(results.choose()):
            rows.make(stage)
    return f"Part {part} is made. Merge all parts; the run itself then does what is left."


def _carry_out(work: Work, model: Model, diary: _Diary, *, sweep: bool, compare: bool) -> None:
    """Everything that is done with the steered model."""
    rows, sentences = Rows(work, model), None
    with diary.timed("extract"), waits_logged(work, "extract"):
        if work.behavior.sentences is not None:
            sentences = SentenceScores(work, model, rows)
            work = replace(work, behavior=sentences.write())
        results = RunResults(work, model, sentences)
        rows.vectors = results.vectors
    program = Program(work.config, work.behavior, results)

    def carry_out(stages: Iterator[Stage]) -> None:
        for stage in stages:
            if stage.decoded:
                rows.make(stage)
                if sentences is not None:
                    sentences.score(stage)
            else:
                results.screen(stage, rows)

    choice: Choice | None = None
    if sweep:
        with diary.timed("sweep"), waits_logged(work, "sweep"):
            carry_out(program.search())
            choice = results.choose()
    if compare:
        with diary.timed("compare"), waits_logged(work, "compare"):
            carry_out(program.compare(choice))
            results.write_gates()
        with diary.timed("score"), waits_logged(work, "score"):
            score(program.quoted(choice), work, model, rows)
            if (priced := program.priced(choice)).items:  # two sentences have no other prompts
                price(priced, work, model, rows)


def _judge(work: Work, settings: JudgeModelConfig, judge: Model | None, diary: _Diary) -> ModelInfo:
    """Have all rows judged, by this model or by the one that is loaded for it."""
    with diary.timed("judge"):
        judge = judge or _loaded_alone(settings)
        diary.notes += judge_rows(work, settings, judge)
    return judge.info


def _speed(model: Model, rows: int, diary: _Diary) -> Speed:
    """Decoding without steering and with, in turn; measured once, beside the metrics.

    By the clock: each rank of a sharded model would take other steps.
    """
    with diary.timed("speed"):
        found = decode_speed(model, min(rows, _TIMED_ROWS), _TIMED_SECONDS)
    return Speed.model_validate(found)


def _loaded(settings: ModelConfig, revision: str | None = None) -> Model:
    return load_model(
        settings.name,
        revision=settings.revision or revision,
        dtype=settings.dtype,
        quantize=settings.quantize,
        adapter=settings.adapter,
        dequantize=settings.dequantize,
        thinking=settings.thinking,
        shard=settings.shard,
    )


def _loaded_alone(settings: ModelConfig) -> Model:
    gc.collect()
    mx.clear_cache()
    return _loaded(settings)


def _same_model(judge: ModelConfig, steered: ModelConfig) -> bool:
    return judge.model_dump(include=set(ModelConfig.model_fields)) == steered.model_dump()


def _recorded_revision(run: RunDirectory, name: str) -> str | None:
    """The hub's revision this run was begun with: its rows are of that one."""
    begun = run.read_record("manifest.json", Manifest)
    return begun.model.revision if begun and begun.model.id.split(" ")[0] == name else None


def _write_inputs(run: RunDirectory, config: ExperimentConfig, behavior: Behavior) -> None:
    run.write("config.yaml", config.to_yaml())
    before = run.read_record("behavior.json", BehaviorRecord)
    record = BehaviorRecord.model_validate(behavior)
    if before and before.sentences and record.sentences:  # until the judge is known anew
        known, said = before.sentences, record.sentences
        if (known.positive, known.negative) == (said.positive, said.negative):
            kept = known.model_copy(update={"rules": said.rules})
            record = record.model_copy(update={"sentences": kept})
    run.write_record("behavior.json", record)
    used = [p for p in behavior.prompts if p.split in ("select", "test", "facts")]
    if behavior.sentences is not None:
        used += [item for stage in answers(config, behavior) for item in stage.items]
    run.write("prompts.jsonl", "".join(json_line(prompt_json(p)) for p in used))


def _notes(model: Model) -> list[str]:
    slower = traits_of(model.network).note
    notes = [] if slower is None else [slower]
    default = model.chat.default_system_prompt
    if not default:
        return notes
    return [
        *notes,
        f"The chat template inserts a system prompt where none is given ({default!r}), "
        "so the base condition has one.",
    ]


def _check(behavior: Behavior, config: ExperimentConfig) -> None:
    """What is missing must not be found out hours later."""
    if config.judge_model is not None:
        locate(config.judge_model.name, config.judge_model.revision)
    compared = [config.compare.system_prompt] if config.compare.system_prompt else []
    for name in [*config.sweep.system_prompts, *compared]:
        resolve_system_prompt(behavior.system_prompts, name)
    if behavior.sentences is not None and config.sweep.strengths == "auto":
        raise DataError(
            "strengths: auto reads openings, which two sentences do not have; name some, such as "
            "sweep.strengths: [1.0, 1.5, 2.0]"
        )
    for split in ("select", "test"):
        # Two sentences have no other prompts, unless one's own file gives some.
        for name in ("target", "other") if behavior.sentences is None else ("target",):
            if not any((p.set, p.split) == (name, split) for p in behavior.prompts):
                raise DataError(
                    f"the behavior {behavior.name} has no prompts of set {name} and split {split}, "
                    "and an experiment needs some of each; add them to its prompts.jsonl"
                )
    judge = behavior.judge if behavior.sentences is None else behavior.sentences.rules
    for item in behavior.prompts if judge else ():
        if item.split != "facts":
            judge_response(judge or "", item, "I am not sure what to say about that.")


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


class _Diary:
    """When what was done and what a person should know: run.log and the manifest.

    Args:
        run: The run's directory.
        progress: Told the notes too.
    """

    def __init__(self, run: RunDirectory, progress: Progress) -> None:
        """See the class."""
        self.notes: list[str] = []
        self._run = run
        self._progress = progress
        self._started = _now()
        self._seconds: dict[str, float] = {}

    def tell(self, fitting: BatchChoice) -> None:
        """What memory it takes, and what is to be known of that."""
        self._progress.tell(str(fitting))
        self._run.log(str(fitting))
        if fitting.note is not None:
            self.note(fitting.note)

    def note(self, text: str) -> None:
        """Tell a person, now and in the report."""
        self._progress.note(text)
        self._run.log(text)
        self.notes.append(text)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """A part of the experiment."""
        start = time.perf_counter()
        self._run.log(f"{name} begins")
        with _full_memory_told(name):
            yield
        self._seconds[name] = round(time.perf_counter() - start, 1)
        self._run.log(f"{name} took {self._seconds[name]} s")

    def begun(self, model: Model, rows: int) -> Manifest:
        """Write the manifest of a run that is not finished."""
        self.notes = [*_notes(model), *self.notes]
        before = self._run.read_record("manifest.json", Manifest)
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            started=self._started,
            finished=None,
            seconds=self._seconds,
            batch_size=rows,
            model=model.info,
            num_layers=model.num_layers,
            hidden_size=model.hidden_size,
            dtype=str(model.dtype).removeprefix("mlx.core."),
            notes=tuple(self.notes),
            speed=before.speed if before and before.model == model.info else None,
            # Written where they are known; a start that makes little keeps those of an earlier one.
            rates=before.rates if before else None,
            **environment(),
        )
        self._run.write_record("manifest.json", manifest)
        return manifest

    def finished(self, manifest: Manifest, rows: int, rates: MachineRates | None) -> Manifest:
        """The same of a finished one."""
        found = {
            "finished": _now(),
            "seconds": self._seconds,
            "batch_size": rows,
            "rates": rates,
            "notes": tuple(self.notes),
        }
        return manifest.model_copy(update=found)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
