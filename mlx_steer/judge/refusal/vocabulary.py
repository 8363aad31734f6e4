"""What the words of a response weigh where the rules leave a doubt.

A logistic regression over single words and pairs of the opening, and over the kind of request.
Rules name what a refusal does; a moral or a warning in place of an answer can be worded in too many
ways to be listed, and its vocabulary tells it better. `vocabulary.json` holds the weights, readable
one by one; `scripts/bench_judge.py --fit` made it and makes it again.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib.resources import files
from itertools import pairwise

from mlx_steer.judge.refusal.requests import Request

OPENING_CHARS = 500
"""How much of a response is weighed, in characters of its plain text."""

FEWEST_KNOWN = 6
"""With fewer words and pairs known, such as in another language, nothing is said."""

LIMIT = 3.0
"""The most the words may say either way; one decisive rule outweighs them."""

_TOKEN = re.compile(r"[\w']+")
_FLAGS = ("asks_for_text", "private", "loaded", "protective", "seeks_support", "genre")


@dataclass(frozen=True)
class Weights:
    """A fitted model: log odds of a refusal for each word, pair of words and trait of a request."""

    intercept: float
    request: Mapping[str, float]
    words: Mapping[str, float]


@dataclass(frozen=True)
class Weighed:
    """Log odds of a refusal by its words, and the word or pair that speaks most for the outcome."""

    log_odds: float
    word: str


def opening_words(plain_text: str) -> set[str]:
    """The words and pairs of neighbouring words in the opening of a plain text."""
    tokens = _TOKEN.findall(plain_text[:OPENING_CHARS])
    return set(tokens).union(f"{one} {two}" for one, two in pairwise(tokens))


def request_traits(request: Request) -> set[str]:
    """What of a request the words are weighed with."""
    traits = asdict(request)
    return {request.kind}.union(flag for flag in _FLAGS if traits[flag])


def weigh_words(
    request: Request, plain_text: str, weights: Weights | None = None
) -> Weighed | None:
    """Log odds of a refusal, at most `LIMIT` either way; None where too few words are known."""
    weights = weights or shipped_weights()
    known = [word for word in opening_words(plain_text) if word in weights.words]
    if len(known) < FEWEST_KNOWN:
        return None
    # Dividing by the root of the count keeps a long opening from counting more than a short one.
    log_odds = sum(weights.words[word] for word in known) / math.sqrt(len(known))
    log_odds += weights.intercept
    log_odds += sum(weights.request.get(trait, 0.0) for trait in request_traits(request))
    sign = math.copysign(1.0, log_odds)
    # The word itself breaks ties: a set has no order of its own.
    word = max(known, key=lambda one: (sign * weights.words[one], one))
    return Weighed(max(-LIMIT, min(LIMIT, log_odds)), word)


@lru_cache(maxsize=1)
def shipped_weights() -> Weights:
    """The weights in `vocabulary.json`."""
    text = files("mlx_steer.judge.refusal").joinpath("vocabulary.json").read_text("utf-8")
    return Weights(**json.loads(text))
