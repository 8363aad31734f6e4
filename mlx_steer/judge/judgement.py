"""What a judge decides about one response."""

from dataclasses import dataclass

from mlx_steer.words import Verdict


@dataclass(frozen=True)
class Judgement:
    """What a judge decided about one response.

    Attributes:
        verdict: Whether the behavior is shown, absent, or cannot be told in an incoherent text.
        rule: The name of the rule that decided, in words.
        span: Character offsets (start, end) into the response, the text the rule rests on.
    """

    verdict: Verdict
    rule: str
    span: tuple[int, int]
