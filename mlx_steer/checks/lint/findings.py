"""What the checks report, and the few measures they share."""

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a behavior.

    Attributes:
        severity: An error spoils vectors or numbers; a warning may have its reasons.
        rule: Short name of the check.
        where: Which part of the behavior, such as `pairs` or `prompts, split gate`.
        message: What is wrong, with numbers.
        advice: What to do.
        ids: The entries concerned; none if it is about all of them.
    """

    severity: Severity
    rule: str
    where: str
    message: str
    advice: str
    ids: tuple[str, ...] = ()


@dataclass(frozen=True)
class LintReport:
    """All findings about a behavior; `numbers` are mean lengths in characters and the like."""

    behavior: str
    numbers: Mapping[str, Any]
    findings: tuple[Finding, ...]

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings that should stop an experiment."""
        return tuple(one for one in self.findings if one.severity == "error")

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """The findings a person should look at."""
        return tuple(one for one in self.findings if one.severity == "warning")


def severity(is_error: bool) -> Severity:
    """`error` or `warning`."""
    return "error" if is_error else "warning"


def share(texts: Collection[str], has: Callable[[str], object]) -> float:
    """The fraction of texts that have a feature; 0 for no texts."""
    return sum(bool(has(text)) for text in texts) / len(texts) if texts else 0.0


def percent(fraction: float) -> str:
    """A fraction for people."""
    return f"{100 * fraction:.0f} %"


def mean(values: Iterable[float]) -> float:
    """The mean; 0 of nothing."""
    found = list(values)
    return sum(found) / len(found) if found else 0.0


_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")

_COMMON_WORDS = """
    a about an and any are as at be been but by can could did do does for from give had has have
    how i if in into is it its me my no not of on one or our please should so some tell than that
    the their them then there these they this those to was we were what when where which who why
    will with would you your
"""
_COMMON = frozenset(_COMMON_WORDS.split())
"""Words that say nothing about a text's subject."""


def words(text: str) -> frozenset[str]:
    """The different words of a text, in lower case."""
    return frozenset(_WORD.findall(text.replace("\u2019", "'").casefold()))


def likeness(first: frozenset[str], second: frozenset[str]) -> float:
    """How alike two sets of words are, in [0, 1] (Jaccard), over all or over the telling words.

    The larger of the two counts: another wording of a question on the same subject is alike too.
    """
    return max(_jaccard(first, second), _jaccard(first - _COMMON, second - _COMMON, least=3))


def _jaccard(first: frozenset[str], second: frozenset[str], least: int = 1) -> float:
    if min(len(first), len(second)) < least:
        return float(first == second)
    return len(first & second) / len(first | second)
