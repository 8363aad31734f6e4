"""The answer to the question people come with: does steering work here, where, at what price?"""

from typing import Literal

from mlx_steer.bands import LayerOrBand
from mlx_steer.metrics.halves import Detectable, Price
from mlx_steer.metrics.numbers import Difference, Measured, Number, Numbers, Share

AnswerVerdict = Literal["works", "works behind a gate", "does harm", "not shown"]
"""*Works*, or *works behind a gate*: the target rate rises significantly, within the limits. *Does
harm*: it falls significantly, or limits are broken without a significant gain. Else *not shown*."""


class Settled(Numbers):
    """The chosen cell of one kind, measured on the test half.

    Attributes:
        condition: Its name.
        verdict: Of this cell alone.
        layer: The layer or band.
        strength: The factor on the raw vector.
        relative_dose: None where the norms of hidden states are unknown.
        rates: On the test half, by measure.
        coherence: Mean over all rows.
        broken_limits: The limits it breaks on the test half.
        against_base: On target prompts: the primary test.
        select_target: The target rate on the select half, which it was chosen by.
        price: None if it was not measured.
    """

    condition: str
    verdict: AnswerVerdict
    layer: LayerOrBand | None
    strength: Number
    relative_dose: Number
    rates: Measured[Share]
    coherence: Number
    broken_limits: tuple[str, ...]
    against_base: Difference
    select_target: Share | None
    price: Price | None


class Opponent(Numbers):
    """What the settled cell is compared with, on target prompts where `difference` is given.

    `difference` is the cell minus this, prompt by prompt; None where they share no prompt.
    """

    name: str
    rates: Measured[Share]
    coherence: Number
    price: Price | None
    difference: Difference | None


class Answer(Numbers):
    """Does steering work, where, how strongly and at what price: on the test half.

    Attributes:
        verdict: Of the better of the chosen cells.
        of: That cell's kind.
        plain: The chosen cell of plain steering.
        gated: The chosen cell of gated steering.
        base: The model without steering.
        prompt: The system prompt alone, against the cell that the answer is of.
        random: The random direction with the highest target rate, against plain steering.
        random_beaten: Of so many random directions plain steering has the higher target rate.
        shuffled: The vector of shuffled pairs, against plain steering.
        fixed: What opens the gate answered with a fixed text, against gated steering.
        detectable: The smallest rise that would have been found.
    """

    verdict: AnswerVerdict
    of: Literal["steering", "gated"]
    plain: Settled | None
    gated: Settled | None
    base: Opponent
    prompt: Opponent | None
    random: Opponent | None
    random_beaten: tuple[int, int]
    shuffled: Opponent | None
    fixed: Opponent | None
    detectable: Detectable | None

    @property
    def cell(self) -> Settled:
        """The cell that the answer is of."""
        cell = self.gated if self.of == "gated" else self.plain
        assert cell is not None
        return cell

    @property
    def fixed_does_as_well(self) -> bool:
        """Whether no gain of gated steering over a fixed answer behind its gate was shown."""
        found = self.fixed.difference if self.fixed else None
        return self.of == "gated" and found is not None and found.finding != "higher"
