"""What a run records of a behavior of two sentences and of the judge that the model is of it."""

from __future__ import annotations

from pydantic import Field, FiniteFloat

from mlx_steer.run.base_record import Record


class Estimate(Record):
    """A value in [0, 1] with its 95 % interval."""

    value: FiniteFloat
    low: FiniteFloat
    high: FiniteFloat


class SentencesRecord(Record):
    """Two opposed sentences, with the judge once it is known.

    `judge` names the model and all that decides a log-ratio, of whose first `tokens` tokens; a
    response above `threshold` (nats per token) is shown. `auc` and `error` are of the model's own
    answers to `questions` questions under either sentence, the error by thresholds chosen without
    them. `masked_auc` leaves out the tokens that the sentences have too; `half_way` is the middle
    between the two sides' means. `dropped` counts pairs left out of the vector, by reason.
    """

    positive: str
    negative: str
    rules: str | None = None
    judge: str | None = None
    tokens: int = 0
    threshold: FiniteFloat | None = None
    half_way: FiniteFloat | None = None
    auc: Estimate | None = None
    masked_auc: FiniteFloat | None = None
    error: Estimate | None = None
    questions: int = 0
    pairs: int = 0
    dropped: dict[str, int] = Field(default_factory=dict)


class ForcedCell(Record):
    """A cell as the screening saw it: how likely it makes the model's own prompted answers.

    `positive` and `negative` are mean log-probabilities per token of answers that were given under
    either sentence, read without it.
    """

    condition: str
    kind: str
    positive: FiniteFloat
    negative: FiniteFloat
    kept: bool


class ForcedScreening(Record):
    """screening.json of a behavior of two sentences: base, and the cells by kind, best first."""

    positive: FiniteFloat
    negative: FiniteFloat
    cells: tuple[ForcedCell, ...]
