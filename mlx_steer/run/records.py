"""What the files of a run directory say: one class for each, which a run writes and others read.

A prompt of prompts.jsonl is a `PromptItem`. Written are the fields that were given, so that a score
says only what was computed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, TypeAlias

import numpy as np
from pydantic import (
    BaseModel,
    Field,
    FiniteFloat,
    JsonValue,
    RootModel,
    TypeAdapter,
    model_validator,
)

from mlx_steer.bands import LayerOrBand, band_of
from mlx_steer.behaviors import PromptItem
from mlx_steer.conditions import Condition, Intervention, gates_open
from mlx_steer.files import shown
from mlx_steer.run.base_record import Record
from mlx_steer.run.rates import MachineRates
from mlx_steer.run.sentences import SentencesRecord
from mlx_steer.vectors import ModelInfo, SteeringVector, SteeringVectorSet, relative_dose
from mlx_steer.words import (
    FinishReason,
    GateJoin,
    GateMethod,
    Operator,
    PromptSet,
    Scope,
    Split,
    Verdict,
)

FORMAT_VERSION = 2
# In format 1 each row had two more fields, `gates` and `steered`, which said nothing and are
# skipped; such a run is read and continued as it is.
READABLE_FORMATS = (1, FORMAT_VERSION)

LABELS_VERSION = 1

CONTROL_KINDS: tuple[str, ...] = ("random", "negated", "shuffled")

_PROMPT = TypeAdapter(PromptItem)
_Count: TypeAlias = Annotated[int, Field(ge=0)]
_TokenId: TypeAlias = Annotated[int, Field(strict=True, ge=0, lt=2**31)]


class Speed(Record):
    """Tokens per second of so many rows together, without steering and with."""

    rows: int
    unsteered: FiniteFloat
    steered: FiniteFloat


class Manifest(Record):
    """manifest.json: what a run was made with, when, and what a person should know of it."""

    format_version: int
    mlx_steer: str
    mlx: str | None
    mlx_lm: str | None
    numpy: str | None
    transformers: str | None = None
    huggingface_hub: str | None = None
    rates: MachineRates | None = None
    python: str
    platform: str
    device: str
    metal: bool = False
    memory_gb: FiniteFloat
    blas: str
    started: str
    finished: str | None
    seconds: dict[str, FiniteFloat]
    batch_size: int
    model: ModelInfo
    num_layers: Annotated[int, Field(ge=1, le=100_000)]
    hidden_size: Annotated[int, Field(ge=1)]
    dtype: str
    notes: tuple[str, ...]
    judge_model: ModelInfo | None = None
    speed: Speed | None = None


class BehaviorRecord(Record):
    """behavior.json: the behavior's names and words, from a `Behavior`."""

    name: str
    title: str
    description: str
    judge: str
    verdicts: dict[Verdict, str]
    sets: dict[PromptSet, str]
    system_prompts: dict[str, str]
    sentences: SentencesRecord | None = None

    def verdict_word(self, verdict: Verdict) -> str:
        """The behavior's own word for a verdict, such as `refused` for `shown`."""
        return self.verdicts.get(verdict, verdict)

    def set_word(self, prompt_set: PromptSet) -> str:
        """The behavior's own word for a prompt set, such as `harmful` for `target`."""
        return self.sets.get(prompt_set, prompt_set)


class InterventionRecord(Record):
    """One vector of a condition; the vector itself is in the vectors folder."""

    layer: int
    strength: FiniteFloat
    operator: Operator
    scope: Scope
    vector: str
    norm: FiniteFloat
    relative_dose: FiniteFloat | None

    @staticmethod
    def of(item: Intervention, vectors: SteeringVectorSet) -> InterventionRecord:
        """What is recorded of an intervention; `vectors` give the norms that doses refer to."""
        norm = float(np.linalg.norm(item.vector.astype(np.float64)))
        usual = vectors[item.layer].hidden_norm  # unknown of vectors from elsewhere
        return InterventionRecord(
            layer=item.layer,
            strength=item.strength,
            operator=item.operator,
            scope=item.scope,
            vector=item.name,
            norm=_six_digits(norm),
            relative_dose=_six_digits(item.strength * norm / usual) if usual else None,
        )


class GateUse(Record):
    """A gate as a condition uses it."""

    name: str
    layer: int
    threshold: FiniteFloat


class ConditionRecord(Record):
    """A condition and the row key of every prompt it was to run on.

    Of a kind that this version does not know, it is compared like any other. `gate_scores` are
    scores minus threshold by gate and prompt; a gate is open at 0 and above. `band_dose` is given
    where a band is steered (see `vectors.relative_dose`).
    """

    name: str
    kind: str
    system_prompt: str | None
    system_text: str | None
    interventions: tuple[InterventionRecord, ...]
    gates: tuple[GateUse, ...]
    gate_join: GateJoin
    gate_scores: dict[str, dict[str, FiniteFloat]]
    rows: dict[str, str]
    band_dose: FiniteFloat | None = None

    @staticmethod
    def of(
        condition: Condition, vectors: SteeringVectorSet, names: Mapping[str, str]
    ) -> ConditionRecord:
        """What is recorded of a condition before any of its rows.

        Args:
            condition: The condition.
            vectors: Give the mean hidden-state norms that relative doses refer to.
            names: Short names of system prompts, by their text.
        """
        text = condition.system_prompt
        made = ConditionRecord(
            name=condition.name,
            kind=condition.kind,
            system_prompt=names.get(text, text) if text else None,
            system_text=text,
            interventions=tuple(InterventionRecord.of(i, vectors) for i in condition.interventions),
            gates=tuple(GateUse.model_validate(gate) for gate in condition.gates),
            gate_join=condition.gate_join,
            gate_scores={},
            rows={},
        )
        if len(condition.interventions) < 2:
            return made
        added = [
            SteeringVector(i.layer, i.vector * i.strength, vectors[i.layer].hidden_norm)
            for i in condition.interventions
        ]
        dose = relative_dose(added, 1.0)
        # Not written where one layer is steered: such records are what they were.
        return made.model_copy(update={"band_dose": None if dose is None else _six_digits(dose)})

    def with_rows(
        self, rows: Mapping[str, str], gate_scores: Mapping[str, Mapping[str, float]]
    ) -> ConditionRecord:
        """The same with row keys by prompt, and scores by gate and prompt, added."""
        scores = {
            name: {**self.gate_scores.get(name, {}), **found} for name, found in gate_scores.items()
        }
        return self.model_copy(update={"rows": {**self.rows, **rows}, "gate_scores": scores})

    def opened(self, prompt_id: str) -> bool | None:
        """Whether the gates let the interventions act on a prompt; None without gates or scores."""
        scores = self.scores(prompt_id)
        return None if scores is None else gates_open(scores, self.gate_join)

    def scores(self, prompt_id: str) -> tuple[float, ...] | None:
        """Score minus threshold of each gate for a prompt; None without gates or scores."""
        found = [self.gate_scores.get(gate.name, {}).get(prompt_id) for gate in self.gates]
        known = tuple(score for score in found if score is not None)
        return known if known and len(known) == len(found) else None

    @property
    def layer(self) -> LayerOrBand | None:
        """The steered layer, or the band of layers; None without steering."""
        return band_of([i.layer for i in self.interventions]) if self.interventions else None

    @property
    def relative_dose(self) -> float | None:
        """How much is added, in units of the hidden state's norm; None if that is unknown."""
        if len(self.interventions) > 1:
            return self.band_dose
        return self.interventions[0].relative_dose if self.interventions else None

    @property
    def strength(self) -> float | None:
        """The strength of the first intervention; None without one."""
        return self.interventions[0].strength if self.interventions else None

    @property
    def is_control(self) -> bool:
        """Whether it is there to be compared with the real vector."""
        return self.kind in CONTROL_KINDS


class Conditions(Record):
    """conditions.json."""

    conditions: tuple[ConditionRecord, ...]


class Row(Record):
    """A line of rows.jsonl: one prompt under one condition, and what was observed of it.

    Of conditions that come to the same for a prompt, `condition` is the first. `text` is the answer
    alone, and is judged; what the model thought before it is in `thinking`.
    """

    key: str
    prompt_id: str
    condition: str
    prompt: str
    set: PromptSet
    split: Split
    prompt_tokens: int
    tokens: tuple[_TokenId, ...]
    text: str
    finish_reason: FinishReason
    margin: FiniteFloat | None
    thinking: str = ""


class Score(Record):
    """A line of scores.jsonl, what needed a model once more: a perplexity, or a judge's reading.

    `judge` names the judge model and all that decides its verdicts, `sentences` the judge of two
    sentences (see `SentencesRecord`); `masked` leaves out the tokens that those have too.
    """

    key: str
    perplexity: FiniteFloat | None = None
    judge: str | None = None
    judge_model: Verdict | None = None
    sentences: str | None = None
    log_ratio: FiniteFloat | None = None
    masked: FiniteFloat | None = None

    def says(self, field: str) -> bool:
        """Whether the line speaks of a field; None too is something to say."""
        return field in self.model_fields_set


class PriceLine(Record):
    """A line of prices.jsonl: how far a condition is from base on base's response to a prompt.

    `base` is the key of base's row, `row` of that prompt's row under the condition: base's own for
    base against itself, which is what rounding makes. `nats` is the mean KL divergence of `tokens`
    predictions.
    """

    base: str
    row: str
    nats: Annotated[FiniteFloat, Field(ge=0, le=1e9)]
    tokens: _Count


class GatedChoice(Record):
    """The cell of gated steering that the comparison was run with."""

    layer: LayerOrBand
    strength: FiniteFloat
    met_limits: bool = True


class Choice(Record):
    """choice.json: what the sweep chose, and so what the comparison was run with."""

    layer: LayerOrBand
    strength: FiniteFloat
    system_prompt: str | None = None
    met_limits: bool = True
    gated: GatedChoice | None = None


class Count(Record):
    """So many of n."""

    count: _Count
    n: _Count


class GateCandidate(Record):
    """A layer and method that was tried for a gate, with its cross-validated AUC."""

    layer: int
    method: GateMethod
    auc: FiniteFloat


class GateRecord(Record):
    """How a gate was fitted.

    `held_out_scores` are scores minus threshold of the fitting prompts, along directions made
    without them; `sets` says which set each belongs to.
    """

    name: str
    layer: int
    threshold: FiniteFloat
    method: GateMethod
    auc: FiniteFloat
    candidates: tuple[GateCandidate, ...]
    false_positive_rate: FiniteFloat
    false_openings: Count
    openings: Count
    held_out_scores: dict[str, FiniteFloat]
    sets: dict[str, PromptSet]
    system_prompt: str | None = None

    @model_validator(mode="after")
    def _every_score_has_a_set(self) -> GateRecord:
        missing = self.held_out_scores.keys() - self.sets.keys()
        if missing:
            raise ValueError(f"the fitting prompt {shown(min(missing))} has a score but no set")
        return self


class Gates(Record):
    """gate.json."""

    gates: tuple[GateRecord, ...]


class Separation(RootModel[dict[int, FiniteFloat | None]]):
    """separation.json: by layer, held-out AUC of the contrast pairs' two sides."""


class Labels(Record):
    """labels.json: a person's verdicts by row key, as the report's page exports them.

    None takes a verdict back. The page may be older than the run, so the file has its own version.
    """

    format_version: Annotated[int, Field(ge=LABELS_VERSION, le=LABELS_VERSION)]
    labels: Mapping[str, Verdict | None]


def record_json(record: BaseModel) -> dict[str, JsonValue]:
    """The fields of a record that were given, as JSON values."""
    found: dict[str, JsonValue] = record.model_dump(mode="json", exclude_unset=True)
    return found


def prompt_json(item: PromptItem) -> dict[str, JsonValue]:
    """A line of prompts.jsonl."""
    found: dict[str, JsonValue] = _PROMPT.dump_python(item, mode="json", exclude_none=True)
    return found


def _six_digits(value: float) -> float:
    return float(f"{value:.6g}")
