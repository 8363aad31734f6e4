"""All numbers of a run, `Metrics`, and their file: metrics.json is written and read here alone."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, model_validator

from mlx_steer.config import Limits
from mlx_steer.errors import RunError
from mlx_steer.metrics.answer import Answer
from mlx_steer.metrics.halves import Comparison, Sweep
from mlx_steer.metrics.numbers import (
    MEASURES,
    Differences,
    Digits,
    Measure,
    Measured,
    Number,
    Numbers,
    Share,
)
from mlx_steer.run.directory import json_text
from mlx_steer.run.records import FORMAT_VERSION
from mlx_steer.vectors import DatasetInfo, ModelInfo
from mlx_steer.words import PromptSet, Verdict

FILE = "metrics.json"

GateSplit = Literal["held out", "select", "test"]
"""The prompts a gate was fitted on, and the two halves of the experiment."""


# --- what conditions are compared with ---


class AgainstPromptCondition(Numbers):
    """A steered condition minus the system prompt alone."""

    name: str
    kind: str
    difference: Differences


class AgainstPrompt(Numbers):
    """Every steered condition against the system prompt of the comparison."""

    prompt: str
    conditions: tuple[AgainstPromptCondition, ...]

    def named(self, name: str) -> AgainstPromptCondition | None:
        """A steered condition by name."""
        return next((c for c in self.conditions if c.name == name), None)


class AgainstPlain(Numbers):
    """Gated steering minus plain steering."""

    name: str
    plain: str
    difference: Differences


class ControlNumbers(Numbers):
    """A control and the real vector at its layer and strength."""

    name: str
    kind: str
    real: str
    gap: Number
    real_gap: Number
    real_minus_control: Differences


class RandomControls(Numbers):
    """The real vector against random directions; margins on the target rate ascend."""

    seeds: int
    beaten_on_target: int
    beaten_on_gap: int
    target_margins: tuple[Number, ...]


class Controls(Numbers):
    """The real vector against other vectors of its norm."""

    conditions: tuple[ControlNumbers, ...]
    random: RandomControls


# --- gates ---


class GateCandidateNumbers(Numbers):
    """A layer and method that was tried for a gate, with its cross-validated AUC."""

    layer: int
    method: str
    auc: Digits


class GateFit(Numbers):
    """How a gate was fitted, on how many prompts, and the best of the candidates tried."""

    method: str
    auc: Digits
    false_positive_rate: Digits
    prompts: Measured[int]
    tried: int
    candidates: tuple[GateCandidateNumbers, ...]


class GateCurve(Numbers):
    """How a gate's scores tell target prompts from another set; `operating` is (false, true)."""

    split: GateSplit
    against: PromptSet
    auc: Digits
    false_positive_rates: tuple[Digits, ...]
    true_positive_rates: tuple[Digits, ...]
    operating: tuple[Digits, Digits]


class GateNumbers(Numbers):
    """A gate as a classifier of prompts; `opened` has the sets that there are scores of."""

    name: str
    system_prompt: str | None
    layer: int
    threshold: Digits
    conditions: tuple[str, ...]
    fit: GateFit | None
    opened: dict[GateSplit, dict[Measure, Share]]
    curves: tuple[GateCurve, ...]


# --- the whole ---


class Words(Numbers):
    """The behavior's own words."""

    name: str
    title: str
    verdicts: dict[Verdict, str]
    sets: dict[PromptSet, str]

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if len(self.verdicts) < 3 or len(self.sets) < 3:
            raise ValueError("a verdict or a prompt set has no word")
        return self

    @property
    def shown(self) -> str:
        """What a response that shows the behavior is."""
        return self.verdicts["shown"]

    @property
    def absent(self) -> str:
        """What a response that does not show it is."""
        return self.verdicts["absent"]

    @property
    def incoherent(self) -> str:
        """What a response is that makes no sense."""
        return self.verdicts["incoherent"]

    def rate(self, measure: Measure) -> str:
        """What a rate counts, such as "harmful refused" for `target`."""
        return f"{self.sets[MEASURES[measure]]} {self.shown}"


class RowCounts(Numbers):
    """Rows that conditions name, and rows in the file that none names (`stale`)."""

    expected: int
    present: int
    missing: int
    missing_by_condition: dict[str, int]
    stale: int


class LayerNumbers(Numbers):
    """A layer's vector; `relative_dose` at each of the run's strengths.

    `hidden_norm`, and the doses, are None where nobody knows it, as of most imported vectors.
    """

    layer: int
    norm: Digits
    hidden_norm: Number
    relative_dose: tuple[Number, ...]
    separation: Number


class VectorNumbers(Numbers):
    """The run's vectors."""

    behavior: str
    method: str
    token_position: str
    dataset: DatasetInfo | None
    hidden_size: int
    num_layers: int
    strengths: tuple[Digits, ...]
    layers: tuple[LayerNumbers, ...]


class Agreement(Numbers):
    """The judge and another reader on the same rows."""

    n: int
    agreed: int
    kappa: Number


class JudgeAgreement(Numbers):
    """The judge against a person and against a judge model; None where those read no row."""

    human: Agreement | None
    model: Agreement | None


class Metrics(Numbers):
    """Every number of a run; `select` and `test` are the two halves of the prompts."""

    format_version: Annotated[int, Field(ge=FORMAT_VERSION, le=FORMAT_VERSION)] = FORMAT_VERSION
    behavior: Words
    model: ModelInfo
    rows: RowCounts
    vectors: VectorNumbers | None
    limits: Limits
    alpha: Digits
    select: Sweep
    test: Comparison
    against_prompt: AgainstPrompt | None
    against_plain: tuple[AgainstPlain, ...]
    gates: tuple[GateNumbers, ...]
    controls: Controls | None
    judge: JudgeAgreement
    answer: Answer | None = None

    @property
    def main_names(self) -> frozenset[str]:
        """The names of the pre-specified steered conditions and of the chosen cells."""
        primary, select = self.test.primary, self.select
        names = (primary.steering, primary.gated, select.chosen, select.chosen_gated)
        return frozenset(name for name in names if name)


def metrics_text(metrics: Metrics) -> str:
    """The text of metrics.json; the same numbers give the same bytes."""
    return json_text(metrics.model_dump(mode="json"))


def read_metrics(run: Path) -> Metrics:
    """The numbers that a report left in a run directory.

    Raises:
        RunError: If there are none, or they are not as this version writes them.
    """
    file = run / FILE
    try:
        return Metrics.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        raise RunError(f"{file} is missing; write it with: mlx-steer report {run}") from None
    except OSError as error:
        raise RunError(f"{file} cannot be read ({error}); run: mlx-steer report {run}") from error
    except ValidationError as error:
        raise RunError(
            f"{file} is not as this version writes it; write it anew with: mlx-steer report {run}"
        ) from error
