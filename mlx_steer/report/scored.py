"""What price and perplexity are and which prompts they are over, in words."""

from mlx_steer.config import SCORED_PROMPTS
from mlx_steer.metrics.metrics_file import Metrics
from mlx_steer.report.wording import number


def scored_in_words(metrics: Metrics) -> str:
    """What price and perplexity are, and over which prompts; empty where there are none."""
    conditions, words = metrics.test.conditions, metrics.behavior
    sentences = []
    priced = next((c.price for c in conditions if c.price), None)
    if priced:
        other = words.sets["other"]
        which = (
            f"the first {priced.n}" if priced.n == priced.asked else f"{priced.n} of {priced.asked}"
        )
        sentences.append(
            f"Price: KL(base || condition) in nats per predicted token, over base's own responses "
            f"to {which} {other} prompts, with the 95 % interval over prompts; where a gate is "
            "shut it is 0, and what it is where the gate opens stands in brackets. Base against "
            f"itself: {number(metrics.test.price_floor, 2)}."
        )
    if any(c.perplexity.n for c in conditions):
        sentences.append(
            "Perplexity: the median under the unsteered model, over the responses to the first "
            f"{SCORED_PROMPTS} {words.sets['target']} and the first {SCORED_PROMPTS} "
            f"{words.sets['other']} prompts at most, of the conditions that were settled before."
        )
    return "".join(f" {sentence}" for sentence in sentences)
