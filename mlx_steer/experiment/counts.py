"""An experiment's stages in numbers: rows and tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from mlx_steer.behaviors import Behavior, PromptItem
from mlx_steer.experiment.model_facts import ModelFacts
from mlx_steer.experiment.program import Stage
from mlx_steer.experiment.stand_ins import effect_of


@dataclass(frozen=True)
class StageCount:
    """One part of an experiment.

    Attributes:
        name: extract, gate, score, price, or of a stage of the program.
        prompts: How many prompts, or contrast pairs.
        rows: Responses that are generated (at most, with gates), scored or read.
        longest_prompt: Tokens of the longest prompt, system prompt included.
        prompt_tokens: Of all rows, as if each read its own prompt.
        read: Tokens that really pass through the whole network in prefill: shared prompts once,
            and of a steered prompt only the layers above the vector.
        conditions: How many; 0 where nothing is steered.
        replayed: The most that first act at the same layer under the same system prompt.
        response_tokens: Of all rows, at most.
        decoded: Tokens that are made one by one.
    """

    name: str
    prompts: int
    rows: int
    longest_prompt: int
    prompt_tokens: int
    read: int
    conditions: int = 0
    replayed: int = 0
    response_tokens: int = 0
    decoded: int = 0


class Counts:
    """Counts stages one after the other; rows that an earlier one makes are not made again.

    Args:
        behavior: What is steered.
        model: What is known of the model.
        max_tokens: Of a response.
    """

    def __init__(self, behavior: Behavior, model: ModelFacts, max_tokens: int) -> None:
        """See the class."""
        self._behavior = behavior
        self._model = model
        self._max_tokens = max_tokens
        # Rows that earlier stages make: (prompt, system prompt, effect).
        self._made: set[tuple[str, str, str]] = set()
        self._lengths: dict[tuple[str, str | None], int] = {}

    def stage(self, stage: Stage) -> StageCount:
        """A stage of the program."""
        made = self._made if stage.decoded else set()
        read, lengths = 0.0, list[int]()
        # Prompts are kept within one call of the engine, not from stage to stage.
        known: set[tuple[str, str]] = set()
        lowest: Counter[tuple[str, int]] = Counter()
        for condition in stage.conditions:
            system = condition.system_prompt or ""
            layer = min((i.layer for i in condition.interventions if i.acts), default=None)
            if layer is not None:
                lowest[system, layer] += 1
            # A gated row is the steered one or the base one, and shares it where that is made;
            # where nothing is made, every condition is read.
            effect = effect_of(condition) if stage.decoded else condition.name
            for item in stage.items:
                if (item.id, system, effect) in made:
                    continue
                made.add((item.id, system, effect))
                lengths.append(self._prompt_tokens(item, system))
                if (item.id, system) not in known:
                    known.add((item.id, system))
                    read += lengths[-1]
                if layer is not None:
                    read += lengths[-1] * self._above(layer)
        decoded = len(lengths) * self._max_tokens if stage.decoded else 0
        read += len(lengths) * self._max_tokens if stage.priced else 0
        return StageCount(
            name=stage.name,
            conditions=len(stage.conditions),
            replayed=max(lowest.values(), default=0),
            prompts=len(stage.items),
            rows=len(lengths),
            longest_prompt=max(lengths, default=0),
            prompt_tokens=sum(lengths),
            response_tokens=decoded,
            read=round(read),
            decoded=decoded,
        )

    def extraction(self, tops: Sequence[int]) -> StageCount:
        """Extracting vectors: once for each highest layer in `tops`."""
        pairs = self._behavior.pairs
        prompts = [self._model.prompt_tokens(p.prompt, p.system, p.tools) for p in pairs]
        responses = sum(
            self._model.response_tokens(t) for p in pairs for t in (p.positive, p.negative)
        )
        return StageCount(
            name="extract",
            prompts=len(pairs),
            rows=2 * len(pairs),
            longest_prompt=max(prompts, default=0),
            prompt_tokens=2 * sum(prompts),
            response_tokens=responses,
            read=round(sum(1 - self._above(top) for top in tops) * (sum(prompts) + responses)),
        )

    def gates(self, stages: Sequence[Stage]) -> StageCount:
        """Fitting the gates that some stages use, and reading every prompt with each."""
        fitting = self._behavior.select(split="gate")
        used = [p for p in self._behavior.prompts if p.split in ("select", "test")]
        systems = {c.system_prompt for s in stages for c in s.conditions if c.gates}
        lengths = [self._prompt_tokens(p, s) for s in systems for p in (*fitting, *used)]
        return StageCount(
            name="gate",
            prompts=len(fitting),
            rows=len(lengths),
            longest_prompt=max(lengths, default=0),
            prompt_tokens=sum(lengths),
            read=sum(lengths),
        )

    def scoring(self, stage: Stage) -> StageCount:
        """Scoring rows that are made: each response once, after its prompt."""
        asked, rows = set[tuple[str, str]](), set[tuple[str, str, str]]()
        lengths: list[int] = []
        read = 0
        for condition in stage.conditions:
            system, effect = condition.system_prompt or "", effect_of(condition)
            for item in stage.items:
                if (item.id, system, effect) in rows:
                    continue
                rows.add((item.id, system, effect))
                lengths.append(self._prompt_tokens(item, system))
                if (item.id, system) not in asked:
                    asked.add((item.id, system))
                    read += lengths[-1]
        return self._scored(stage, len(lengths), lengths, read)

    def pricing(self, stage: Stage) -> StageCount:
        """Reading base's responses under base, twice, and under every other condition."""
        lengths, read = list[int](), 0.0
        for condition in stage.conditions:
            layer = min((i.layer for i in condition.interventions if i.acts), default=None)
            part = 1.0 if layer is None else self._above(layer)
            for item in stage.items:
                lengths.append(self._prompt_tokens(item, condition.system_prompt or ""))
                read += lengths[-1] * part
        read += len(stage.items) * self._max_tokens
        return self._scored(stage, len(lengths), lengths, read)

    def _scored(
        self, stage: Stage, rows: int, lengths: Sequence[int], prompts: float
    ) -> StageCount:
        responses = rows * self._max_tokens
        return StageCount(
            name=stage.name,
            prompts=len(stage.items),
            rows=rows,
            longest_prompt=max(lengths, default=0),
            prompt_tokens=sum(lengths),
            response_tokens=responses,
            read=round(prompts) + responses,
        )

    def _above(self, layer: int) -> float:
        """The part of the layers above one; half if it is unknown."""
        count = self._model.num_layers
        return 0.5 if count is None else 1 - (layer + 1) / count

    def _prompt_tokens(self, item: PromptItem, system_prompt: str | None) -> int:
        system = item.system_under(system_prompt)
        key = (item.id, system)
        if key not in self._lengths:
            self._lengths[key] = self._model.prompt_tokens(item.prompt, system, item.tools)
        return self._lengths[key]
