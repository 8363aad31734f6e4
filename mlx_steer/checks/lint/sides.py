"""Ways in which the two sides of the pairs differ that are not the behavior."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from mlx_steer.behaviors import Behavior
from mlx_steer.checks.lint.findings import Finding, percent, severity, share
from mlx_steer.judge.hierarchy.language import LANGUAGES, is_foreign

LEAST = 6
"""Pairs from which shares of a side mean anything."""

_Sides = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class _Form:
    """A form of text, and how far the sides' shares of it may lie apart."""

    name: str
    pattern: re.Pattern[str]
    advice: str
    error: float | None = None
    warning: float = 0.3


_FORMS = (
    _Form("line breaks", re.compile(r"\n\s*\S"), "break lines on both sides or on neither", 0.6),
    _Form(
        "markdown",
        re.compile(r"\*\*\S|`|^#{1,6} |^[ \t]*[-*+] \S|^[ \t]*\d+[.)] \S", re.M),
        "write both sides as plain text, or mark up both",
        0.6,
    ),
    _Form(
        "digits",
        re.compile(r"\d"),
        "use numbers on both sides, unless they are what the behavior is about",
    ),
    _Form(
        "quotation marks",
        re.compile('["\u201c\u201d\u201e\u00ab\u00bb]'),
        "quote on both sides or on neither",
    ),
    _Form(
        "code signs",
        re.compile(r"[{}\[\]<>=]"),
        "use them on both sides, unless they are what the behavior is about",
    ),
)


def side_differences(behavior: Behavior) -> Iterator[Finding]:
    """Everything by which one could tell the sides apart without understanding them."""
    if len(behavior.pairs) < LEAST:
        return
    sides = {
        "positive": [pair.positive for pair in behavior.pairs],
        "negative": [pair.negative for pair in behavior.pairs],
    }
    # A tool call has a form of its own: where tools are offered, the form may be the behavior.
    formal = 2 * sum(bool(pair.tools) for pair in behavior.pairs) > len(behavior.pairs)
    for finding in (*_endings(sides), *_openings(sides), *_languages(sides), *_forms(sides)):
        yield replace(finding, severity="warning") if formal else finding


def _endings(sides: _Sides) -> Iterator[Finding]:
    counts = {side: Counter(map(_last, texts)) for side, texts in sides.items()}
    total = len(sides["positive"])
    apart, sign = max(
        (abs(counts["positive"][sign] - counts["negative"][sign]) / total, sign)
        for sign in counts["positive"] | counts["negative"]
    )
    if apart >= 0.25:
        numbers = " and ".join(f"{counts[side][sign]} {side}" for side in sides)
        yield Finding(
            severity(apart >= 0.5),
            "ending",
            "pairs",
            f"of {total} responses on each side, {numbers} ones end in {sign}",
            "end both sides alike: the vector is read at the last token, and would be of that sign",
        )


def _openings(sides: _Sides) -> Iterator[Finding]:
    counts = {side: Counter(map(_first, texts)) for side, texts in sides.items()}
    total = len(sides["positive"])
    for side, other in (("positive", "negative"), ("negative", "positive")):
        word, count = counts[side].most_common(1)[0]
        if (count - counts[other][word]) / total > 0.6:
            yield Finding(
                severity(count == total),
                "opening",
                f"pairs, {side} side",
                f"{percent(count / total)} of the {side} responses begin with {word!r}, and "
                f"{percent(counts[other][word] / total)} of the {other} ones",
                "vary the first words, else the vector learns a token",
            )


def _languages(sides: _Sides) -> Iterator[Finding]:
    foreign = {
        side: {language: share(texts, partial(is_foreign, own=language)) for language in LANGUAGES}
        for side, texts in sides.items()
    }
    own = {side: min(LANGUAGES, key=found.__getitem__) for side, found in foreign.items()}
    one, other = foreign["positive"], foreign["negative"]
    # A short text may pass for several languages: what counts is that no language fits both sides.
    if min(max(one[language], other[language]) for language in LANGUAGES) < 0.5:
        return
    known = [side for side in sides if foreign[side][own[side]] < 0.3]
    if known:
        names = {s: own[s].title() if s in known else "another language" for s in sides}
        yield Finding(
            "error",
            "language",
            "pairs",
            f"positive responses are in {names['positive']}, negative ones in {names['negative']}",
            "write both sides in one language, unless the language is the behavior",
        )


def _forms(sides: _Sides) -> Iterator[Finding]:
    for form in _FORMS:
        own = {side: share(texts, form.pattern.search) for side, texts in sides.items()}
        apart = abs(own["positive"] - own["negative"])
        if apart >= form.warning:
            yield Finding(
                severity(form.error is not None and apart >= form.error),
                "form",
                "pairs",
                f"{percent(own['positive'])} of the positive and {percent(own['negative'])} of the "
                f"negative responses have {form.name}",
                form.advice,
            )


def _last(text: str) -> str:
    last = text.rstrip()[-1]
    return "a letter or digit" if last.isalnum() else repr(last)


def _first(text: str) -> str:
    return text.split()[0].casefold().rstrip(",.:;!?")
