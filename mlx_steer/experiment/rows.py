"""Rows: conditions x prompts, of which those are run that the run directory does not hold yet."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import cast

from mlx_steer.behaviors import PromptItem
from mlx_steer.conditions import Condition, Gate, digest, gates_open
from mlx_steer.engine.complete import completions
from mlx_steer.engine.jobs import Completion, Job, Sampling, too_long
from mlx_steer.engine.prefill import common_head
from mlx_steer.engine.screening import screen
from mlx_steer.errors import ConfigError, GenerationError
from mlx_steer.experiment.exchange import Exchange
from mlx_steer.experiment.part import Part
from mlx_steer.experiment.program import Stage
from mlx_steer.experiment.work import Work
from mlx_steer.extraction.gates import gate_scores
from mlx_steer.model.load import Model
from mlx_steer.run.records import ConditionRecord, Conditions, Row
from mlx_steer.vectors import SteeringVectorSet

# Part of every row's key: raise it when the same inputs come to mean other rows.
ROW_FORMAT = 1

# Finished rows go to disk after at most this many steps.
_FLUSH_EVERY = 8

# Batches of prefills between two signs of life.
_SCREENED_AT_ONCE = 4


class Rows:
    """The rows of one run.

    A gated condition's row is the steered one where the gate is open and the base one where it is
    shut, so it shares that row's key: gates cost a pass over the prompts and no generation.

    Args:
        work: The experiment.
        model: The model.
        part: Which of them are made here; `missing` of the others are not held.
    """

    vectors: SteeringVectorSet | None = None
    """Give the mean hidden-state norms that relative doses refer to; of conditions that steer."""

    def __init__(self, work: Work, model: Model, part: Part | None = None) -> None:
        """See the class."""
        self._part = part or Part()
        self._work, self._team = work, work.team
        # Rows of the stages so far, which later ones share, and those that other parts make.
        self._dealt: set[str] = set()
        self._others: set[str] = set()
        self.missing = 0
        self._generation = work.config.generation
        self._run = work.run
        self._progress = work.progress
        self._batch = work.batch
        self._names = {text: name for name, text in work.behavior.system_prompts.items()}
        self._model = model
        self._records: dict[str, ConditionRecord] = {}
        self._effect_of: dict[str, dict[str, object]] = {}
        self._prompt_ids: dict[str, tuple[int, ...]] = {}
        # By system prompt: all prompts that are run under it, which begin alike.
        self._prompts_under: dict[str | None, set[tuple[int, ...]]] = {}
        # Score minus threshold by gate and prompt: conditions share gates.
        self._gate_scores: dict[tuple[str, tuple[int, ...]], float] = {}

    def make(self, stage: Stage) -> None:
        """Make every row of a stage that the run does not hold yet."""
        jobs: dict[str, tuple[Job, PromptItem]] = {}
        made = stage.generation or self._generation
        sampling = Sampling(made.max_tokens, made.temperature, made.seed)
        for condition in stage.conditions:
            for key, work in self._jobs(condition, stage.items, sampling).items():
                # Conditions that come to the same for a prompt, such as strength 0 and base,
                # share its row.
                jobs.setdefault(key, work)
        found = Conditions(conditions=tuple(self._records.values()))
        self._run.write_record("conditions.json", found)
        held = {row.key for row in self._run.read("rows.jsonl", Row)}
        self._deal(jobs)
        mine = {key: job for key, (job, _) in jobs.items() if key not in self._others}
        todo = [job for key, job in mine.items() if key not in held]
        self.missing = len(self._others - held)
        self._progress.stage(stage.name, len(mine), len(mine) - len(todo))
        if self._team.size > 1:  # all ranks hold the same rows: those that are missing are dealt
            keys = self._team.share(_dealt([job.key for job in todo], jobs, self._team.size))
            todo = [jobs[key][0] for key in keys]
        exchange = Exchange(self._work, "rows.jsonl", Row)
        done: set[str] = set()

        def generate(rows: int) -> None:
            left = [job for job in todo if job.key not in done]
            self._generate(left, jobs, done, sampling, rows, exchange)

        self._batch.retried(generate)
        exchange.finish()

    def _deal(self, jobs: Mapping[str, tuple[Job, PromptItem]]) -> None:
        """Deal out the rows of a stage that are of no stage before it."""
        fresh = [key for key in jobs if key not in self._dealt]
        self._dealt.update(fresh)
        self._others |= {*fresh} - {*self._part.of(_dealt(fresh, jobs, self._part.count))}

    def _jobs(
        self, condition: Condition, items: Sequence[PromptItem], sampling: Sampling
    ) -> dict[str, tuple[Job, PromptItem]]:
        """A condition's rows by key: what the engine is to run for each prompt; recorded."""
        record = self._record(condition)
        ids = {item.id: prompt_ids(self._model, item, condition.system_prompt) for item in items}
        self._check_lengths(condition, ids, sampling)
        self._prompts_under.setdefault(condition.system_prompt, set()).update(ids.values())
        scores = {gate.name: self._scores_of(gate, ids) for gate in condition.gates}
        effects = _effects(condition, scores, ids)
        jobs: dict[str, tuple[Job, PromptItem]] = {}
        keys: dict[str, str] = {}
        for item in items:
            own, effect = ids[item.id], effects[item.id]
            key = keys[item.id] = row_key(self._model, own, effect, sampling)
            self._prompt_ids[key] = own
            jobs.setdefault(key, (Job(key, own, effect), item))
        self._records[condition.name] = record.with_rows(keys, scores)
        return jobs

    def _generate(
        self,
        todo: Sequence[Job],
        jobs: Mapping[str, tuple[Job, PromptItem]],
        done: set[str],
        sampling: Sampling,
        rows: int,
        exchange: Exchange[Row],
    ) -> None:
        """Generate rows, so many at a time; whatever ends it, those in `done` are on disk."""
        finished: list[Row] = []
        steps = 0

        def on_tokens(count: int) -> None:
            nonlocal steps
            steps += 1
            self._progress.advance(tokens=count)
            if steps % _FLUSH_EVERY == 0:
                flush()
                exchange.keep_up()

        def flush() -> None:
            # Taken first: Ctrl-C after the write must not have the same rows written again.
            taken, finished[:] = finished[:], []
            exchange.add(taken)

        try:
            for one in completions(self._model, todo, sampling, rows, on_tokens):
                finished.append(row_of(one, *jobs[one.key]))
                done.add(one.key)
                self._progress.advance(units=1)
        except BaseException:
            if self._model.team.size == 1:  # else it may be for a rank that is gone
                flush()
            raise
        flush()

    def screen(self, stage: Stage, shown: Sequence[int]) -> dict[str, dict[str, float]]:
        """How strongly each condition leans to the behavior (see screening.py); nothing is decoded.

        Args:
            stage: Conditions and prompts.
            shown: Tokens that begin responses that show the behavior.

        Returns:
            Log-odds of `shown` by condition and prompt id.
        """
        conditions, items = stage.conditions, stage.items
        self._progress.stage(stage.name, len(conditions) * len(items), 0)
        found: dict[str, dict[str, float]] = {c.name: {} for c in conditions}

        def read(rows: int) -> None:
            left = [item for item in items if item.id not in found[conditions[0].name]]
            # All conditions of a prompt together, so that it is prefilled once; some prompts at a
            # time, so that there is progress to be seen.
            step = max(1, _SCREENED_AT_ONCE * rows // len(conditions))
            for i in self._team.share(range(0, len(left), step)):
                jobs: dict[str, tuple[Job, str, str]] = {}
                for item in left[i : i + step]:
                    for c in conditions:
                        ids, key = prompt_ids(self._model, item, c.system_prompt), str(len(jobs))
                        jobs[key] = (Job(key, ids, c), c.name, item.id)
                asked = [job for job, _, _ in jobs.values()]
                for key, value in screen(self._model, asked, shown, rows).items():
                    _, name, prompt_id = jobs[key]
                    found[name][prompt_id] = value
                self._progress.advance(units=len(jobs))

        self._batch.retried(read)
        for theirs in self._team.gathered(json.dumps(found).encode()):
            for name, odds in json.loads(theirs).items():
                found[name].update(odds)
        return found

    def key(self, condition: str, prompt_id: str) -> str:
        """The key of a prompt's row under a condition of a stage that was made."""
        return self._records[condition].rows[prompt_id]

    def ids(self, key: str) -> tuple[int, ...]:
        """The prompt's token ids of a row."""
        return self._prompt_ids[key]

    def heads(self) -> dict[tuple[int, ...], int]:
        """By prompt: so many of its first tokens are those of all that have its system prompt."""
        return {
            ids: common_head(list(prompts))
            for prompts in self._prompts_under.values()
            if len(prompts) > 1
            for ids in prompts
        }

    def _scores_of(self, gate: Gate, ids: dict[str, tuple[int, ...]]) -> dict[str, float]:
        """The gate's score minus its threshold for each prompt, read once for all conditions."""
        name = digest(gate.key())
        unread = list(dict.fromkeys(i for i in ids.values() if (name, i) not in self._gate_scores))
        if unread:
            # Another chip's last digits might open a gate that is shut here: rank 0's count.
            first = gate_scores(self._model, gate, unread) if self._team.rank == 0 else []
            scores = json.loads(self._team.told(json.dumps(first).encode()))
            self._gate_scores |= {(name, i): s for i, s in zip(unread, scores, strict=True)}
        return {n: self._gate_scores[name, i] for n, i in ids.items()}

    def _check_lengths(
        self, condition: Condition, ids: dict[str, tuple[int, ...]], sampling: Sampling
    ) -> None:
        """Before gates read the prompts, and by a name that a person can find."""
        for name, tokens in ids.items():
            what = f"the prompt {name} under the condition {condition.name!r}"
            if reason := too_long(self._model, what, len(tokens), sampling.max_tokens):
                raise GenerationError(reason)

    def _record(self, condition: Condition) -> ConditionRecord:
        name, effect = condition.name, condition.key()
        vectors = cast(SteeringVectorSet, self.vectors)  # asked for by interventions alone
        if name not in self._records:
            self._records[name] = ConditionRecord.of(condition, vectors, self._names)
            self._effect_of[name] = effect
        if effect != self._effect_of[name]:
            raise ConfigError(
                f"two different conditions are both called {name!r}; give strengths that differ "
                "in their first 6 digits"
            )
        return self._records[name]


def _dealt(
    keys: Sequence[str], jobs: Mapping[str, tuple[Job, PromptItem]], parts: int
) -> list[str]:
    """Keys of rows, those of a prompt side by side, and prompts of either set in every part.

    A set's responses are alike in length, and every condition is in every part.
    """
    prompts = dict.fromkeys(jobs[key][1].id for key in keys)
    place = {prompt: (i % parts, i) for i, prompt in enumerate(prompts)}
    return sorted(keys, key=lambda key: place[jobs[key][1].id])


def prompt_ids(model: Model, item: PromptItem, system_prompt: str | None) -> tuple[int, ...]:
    """A prompt's token ids under a condition's system prompt, which follows the prompt's own."""
    system = item.system_under(system_prompt)
    return tuple(model.chat.prompt_ids(item.prompt, system, item.tools))


def row_key(model: Model, ids: tuple[int, ...], condition: Condition, sampling: Sampling) -> str:
    """The hash of everything that determines a row, as 32 hex digits.

    The system prompt counts through the token ids; names of conditions do not count at all.
    """
    effect = {k: v for k, v in condition.key().items() if k != "system_prompt"}
    if condition.parts_response:
        # The same ids may be answered with thinking and without, where a template ignores the wish.
        effect["thinks"] = model.chat.thinks(ids)
    return digest(
        {
            "format": ROW_FORMAT,
            "model": model.identity,
            "ids": list(ids),
            "effect": effect,
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "seed": sampling.seed if sampling.temperature > 0 else None,
        }
    )[:32]


def row_of(done: Completion, job: Job, item: PromptItem) -> Row:
    """The line of rows.jsonl for what a job gave.

    Raises:
        GenerationError: If the hidden state overflowed, so that the response means nothing.
    """
    if done.margin is not None and not math.isfinite(done.margin):
        raise GenerationError(
            f"under the condition {job.condition.name!r} the model's numbers overflow (prompt "
            f"{item.id}); take a smaller strength, or another dtype"
        )
    row = Row(
        key=done.key,
        prompt_id=item.id,
        condition=job.condition.name,
        prompt=item.prompt,
        set=item.set,
        split=item.split,
        prompt_tokens=len(job.ids),
        tokens=done.tokens,
        text=done.text,
        finish_reason=done.finish_reason,
        margin=done.margin,
    )
    # A field that is not given is not written: without thinking, rows are what they were.
    return row.model_copy(update={"thinking": done.thinking}) if done.thinking else row


def _effects(
    condition: Condition, scores: Mapping[str, Mapping[str, float]], prompts: Iterable[str]
) -> dict[str, Condition]:
    """What a condition does to each prompt once its gates are decided.

    Args:
        condition: The condition.
        scores: Score minus threshold by gate and prompt.
        prompts: Ids of the prompts.
    """
    acting = Condition(condition.name, condition.system_prompt, condition.interventions)
    if not condition.gates:
        return dict.fromkeys(prompts, acting)
    shut = Condition(condition.name, condition.system_prompt)
    join = condition.gate_join
    return {
        n: acting if gates_open([s[n] for s in scores.values()], join) else shut for n in prompts
    }
