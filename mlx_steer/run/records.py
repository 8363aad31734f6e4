"""What the files of a run directory say, as records that check themselves."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, JsonValue, model_validator

from mlx_steer.conditions import gates_open
from mlx_steer.words import GateJoin, PromptSet, Verdict

CONTROL_KINDS = ("random", "negated", "shuffled")


class Record(BaseModel):
    """One object of a file."""

    # A later version may add keys; what is known must have the right type.
    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())


class ManifestModel(Record):
    """What is read of the manifest's model."""

    id: str | None = None
    revision: str | None = None
    model_type: str | None = None
    quantization: dict[str, JsonValue] | None = None


class ManifestRecord(Record):
    """What is computed with of manifest.json; the rest is only shown."""

    model: ManifestModel | None = None
    num_layers: Annotated[int, Field(ge=0, le=100_000)] | None = None
    seconds: dict[str, FiniteFloat] | None = None
    notes: tuple[str, ...] | None = None


class BehaviorRecord(Record):
    """The behavior's names and words, as the run recorded them."""

    name: str
    title: str = ""
    description: str = ""
    judge: str
    verdicts: dict[Verdict, str] = Field(default_factory=dict)
    sets: dict[PromptSet, str] = Field(default_factory=dict)
    system_prompts: dict[str, str] = Field(default_factory=dict)

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
    operator: str = "add"
    scope: str = "all"
    vector: str = ""
    norm: FiniteFloat | None = None
    relative_dose: FiniteFloat | None = None


class GateUse(Record):
    """A gate as a condition uses it."""

    name: str
    layer: int
    threshold: FiniteFloat


class ConditionRecord(Record):
    """A condition and the row key of every prompt it was to run on."""

    name: str
    kind: str
    system_prompt: str | None = None
    system_text: str | None = None
    interventions: tuple[InterventionRecord, ...] = ()
    gates: tuple[GateUse, ...] = ()
    gate_join: GateJoin = "all"
    gate_scores: dict[str, dict[str, FiniteFloat]] = Field(default_factory=dict)
    rows: dict[str, str] = Field(default_factory=dict)

    def opened(self, prompt_id: str) -> bool | None:
        """Whether the gates let the interventions act on a prompt; None without gates or scores."""
        scores = self.scores(prompt_id)
        if scores is None:
            return None
        return gates_open(scores, self.gate_join)

    def scores(self, prompt_id: str) -> tuple[float, ...] | None:
        """Score minus threshold of each gate for a prompt; None without gates or scores."""
        found = [self.gate_scores.get(gate.name, {}).get(prompt_id) for gate in self.gates]
        known = tuple(score for score in found if score is not None)
        return known if known and len(known) == len(found) else None

    @property
    def layer(self) -> int | None:
        """The layer of the first intervention; None without one."""
        return self.interventions[0].layer if self.interventions else None

    @property
    def strength(self) -> float | None:
        """The strength of the first intervention; None without one."""
        return self.interventions[0].strength if self.interventions else None

    @property
    def is_control(self) -> bool:
        """Whether it is there to be compared with the real vector."""
        return self.kind in CONTROL_KINDS


class Row(Record):
    """One prompt under one condition: the response and what was observed of it."""

    key: str
    prompt_id: str
    text: str
    condition: str = ""
    prompt: str = ""
    prompt_tokens: int | None = None
    tokens: tuple[int, ...] = ()
    finish_reason: str | None = None
    margin: FiniteFloat | None = None
    gates: tuple[JsonValue, ...] = ()
    steered: bool | None = None


class Score(Record):
    """What needed the model once more: perplexity, and later a judge model's verdict."""

    key: str
    perplexity: FiniteFloat | None = None
    judge_model: Verdict | None = None


class GatedChoice(Record):
    """The cell of gated steering that the comparison was run with."""

    layer: int
    strength: FiniteFloat
    met_limits: bool = True


class Choice(Record):
    """What the comparison was run with."""

    layer: int
    strength: FiniteFloat
    system_prompt: str | None = None
    met_limits: bool = True
    gated: GatedChoice | None = None


class Count(Record):
    """So many of n."""

    count: Annotated[int, Field(ge=0)]
    n: Annotated[int, Field(ge=0)]


class GateCandidate(Record):
    """A layer and method that was tried for a gate, with its cross-validated AUC."""

    layer: int
    method: str
    auc: FiniteFloat


class GateRecord(Record):
    """How a gate was fitted, from gate.json.

    `held_out_scores` are scores minus threshold of the fitting prompts, along directions made
    without them; `sets` says which set each belongs to.
    """

    name: str
    layer: int
    threshold: FiniteFloat
    method: str
    auc: FiniteFloat
    candidates: tuple[GateCandidate, ...] = ()
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
            raise ValueError(f"the fitting prompt {min(missing)!r} has a score but no set")
        return self
