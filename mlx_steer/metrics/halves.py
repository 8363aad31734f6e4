"""The numbers of each condition on the two halves of the prompts, and which of them were chosen."""

from typing import Generic, Literal, TypeVar

from pydantic import SerializerFunctionWrapHandler, model_serializer

from mlx_steer.bands import LayerOrBand
from mlx_steer.metrics.numbers import (
    Coherence,
    Difference,
    Differences,
    Digits,
    Measure,
    Measured,
    Number,
    Numbers,
    Perplexity,
    Share,
)


class MeanPrice(Numbers):
    """KL(base || condition) in nats per predicted token: the mean of `n` prompts, its interval."""

    nats: Digits
    low: Digits
    high: Digits
    n: int


class Price(MeanPrice):
    """What a condition costs on other prompts, over base's own responses to them.

    Attributes:
        asked: Prompts it is measured on; `n` is smaller where base's response is empty, or the run
            was stopped.
        opened: Of a gated condition: over the prompts that open its gate; the others cost nothing.
    """

    asked: int
    opened: MeanPrice | None


class Outcome(Measured[Share]):
    """A line of a comparison: its rates, and how the responses read.

    Attributes:
        missing: Rows that are not there; they are left out of `n`.
        gap: Target rate minus false positive rate.
    """

    name: str
    kind: str
    n: int
    missing: int
    incoherent: Share
    coherence: Coherence
    perplexity: Perplexity
    gap: Number


class ConditionNumbers(Outcome):
    """A condition on one half of the prompts.

    Attributes:
        cut_off: Responses that ended at the longest length allowed.
        opened: Share of prompts that open its gates; None without gates.
    """

    layer: LayerOrBand | None
    strength: Number
    relative_dose: Number
    system_prompt: str | None
    cut_off: int
    opened: Measured[Share] | None = None

    def same_cell(self, other: "ConditionNumbers") -> bool:
        """Whether both steer the same layer at the same strength."""
        return (self.layer, self.strength) == (other.layer, other.strength)

    @model_serializer(mode="wrap")
    def _without_gates(self, handler: SerializerFunctionWrapHandler) -> dict[str, object]:
        value: dict[str, object] = handler(self)
        if self.opened is None:
            del value["opened"]
        return value


class SweptCondition(ConditionNumbers):
    """On the select half: the limits it breaks, None where that cannot be said."""

    broken_limits: tuple[str, ...] | None


class ComparedCondition(ConditionNumbers):
    """On the test half: the difference from base, and the price, where it was measured."""

    against_base: Differences | None
    price: Price | None = None

    def against(self, measure: Measure) -> Difference | None:
        """The difference of one rate from base, if there is one."""
        return self.against_base.of(measure) if self.against_base else None


C = TypeVar("C", bound=ConditionNumbers)


class Half(Numbers, Generic[C]):
    """The conditions that were run on one half of the prompts."""

    conditions: tuple[C, ...]

    def named(self, name: str | None) -> C | None:
        """A condition by name; None if it was not run on this half."""
        return next((c for c in self.conditions if c.name == name), None)

    @property
    def base(self) -> C | None:
        """The base condition."""
        return next((c for c in self.conditions if c.kind == "base"), None)


class RuleChoice(Numbers):
    """What the rule chooses from the present verdicts."""

    condition: str
    met_limits: bool
    candidates: int


class ChosenCell(Numbers):
    """A cell the comparison was run with; `condition` is None if the half has no rows of it."""

    layer: LayerOrBand
    strength: Digits
    met_limits: bool
    condition: str | None


class Chosen(ChosenCell):
    """What the run chose, and recorded."""

    system_prompt: str | None
    gated: ChosenCell | None


class Sweep(Half[SweptCondition]):
    """The select half; its recorded choice, and what the rule chooses from the present verdicts.

    The two differ when the judge or a person's labels changed after the sweep.
    """

    choice: Chosen | None
    by_rule: RuleChoice | None
    gated_by_rule: RuleChoice | None
    system_prompt: RuleChoice | None

    @property
    def chosen(self) -> str | None:
        """The steered cell's name: the run's choice, or what the rule chooses."""
        return _chosen(self.choice, self.by_rule)

    @property
    def chosen_gated(self) -> str | None:
        """The same for gated steering; None if the sweep had none."""
        return _chosen(self.choice and self.choice.gated, self.gated_by_rule)


def _chosen(choice: ChosenCell | None, rule: RuleChoice | None) -> str | None:
    if choice and choice.condition:
        return choice.condition
    return rule.condition if rule else None


class Primary(Numbers):
    """The conditions settled before the test half was run, by name; None where there is none.

    The first family of tests are the chosen cells against base; the prompt is compared beside them.
    """

    steering: str | None
    gated: str | None
    prompt: str | None

    @property
    def names(self) -> frozenset[str]:
        """The chosen cells that there are."""
        return frozenset(name for name in (self.steering, self.gated) if name)


class OpenedRows(Numbers):
    """Verdicts of the steered rows behind an open gate; `base_shown` of the unsteered ones."""

    n: int
    shown: int
    absent: int
    incoherent: int
    base_shown: int


class Quality(Numbers):
    """How responses read: mean coherence and median perplexity."""

    coherence: Number
    perplexity: Number


class OpenedQuality(Numbers):
    """The target rows behind an open gate, as they read without and with steering.

    `scored` of them have a perplexity under both.
    """

    n: int
    scored: int
    base: Quality
    steered: Quality


class FixedAnswerNumbers(Outcome):
    """A gate that answers with a fixed text; computed from the rows, not generated.

    Attributes:
        condition: The gated condition it is compared with.
        base: What prompts that leave the gate shut get.
    """

    condition: str
    base: str
    against_base: Differences | None
    steering_minus_fixed: Differences
    opened: Measured[OpenedRows]
    quality: OpenedQuality


class Detectable(Numbers):
    """The smallest rise of the target rate over base that is found with this power.

    `difference` is None if even a rise to 1 is not.
    """

    n: int
    power: Digits
    comparisons: int
    difference: Number


class Comparison(Half[ComparedCondition]):
    """The test half."""

    fixed: tuple[FixedAnswerNumbers, ...]
    primary: Primary
    by_rule: RuleChoice | None
    detectable: Detectable | None
    price_floor: Number = None

    def main(self, kind: Literal["steering", "gated"]) -> ComparedCondition | None:
        """The pre-specified condition of a kind."""
        return self.named(self.primary.gated if kind == "gated" else self.primary.steering)
