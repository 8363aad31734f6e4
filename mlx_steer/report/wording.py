"""Numbers and a behavior's words as text. Knows nothing about files or markup."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from mlx_steer.files import CONTROL, TURNING

Json = Mapping[str, Any]

DASH = "–"

# Escape sequences of terminals, whole; then what is invisible or turns the writing direction.
_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-_])?")
_CONTROL = re.compile(rf"[{CONTROL}{TURNING}\u061c\u200e\u200f\u2028\u2029\ufeff]")


class Words:
    """The behavior's own words for rates.

    Args:
        behavior: The `behavior` part of the metrics.
    """

    def __init__(self, behavior: Json) -> None:
        """See the class."""
        self.shown: str = behavior["verdicts"]["shown"]
        self.absent: str = behavior["verdicts"]["absent"]
        self.incoherent: str = behavior["verdicts"]["incoherent"]
        self.sets: Mapping[str, str] = behavior["sets"]

    def rate(self, measure: str) -> str:
        """What a rate counts, such as "harmful refused" for `target`."""
        prompt_set = {"false_positive": "other"}.get(measure, measure)
        return f"{self.sets[prompt_set]} {self.shown}"


def percent(value: float | None) -> str:
    """A share in whole percent."""
    return DASH if value is None else f"{100 * value:.0f} %"


def points(value: float | None) -> str:
    """A difference of shares in percentage points, with its sign."""
    if value is None:
        return DASH
    rounded = round(100 * value)
    return f"{rounded:+d}" if rounded else "0"


def rate(value: Json | None) -> str:
    """Such as "15/20, 75 % (53 to 89)": count, n, share and its 95 % interval in percent."""
    if not value or not value["n"]:
        return DASH
    interval = f"({100 * value['low']:.0f} to {100 * value['high']:.0f})"
    return f"{value['count']}/{value['n']}, {percent(value['rate'])} {interval}"


def of(value: Json) -> str:
    """Such as "15 of 20 (75 %)", for sentences."""
    return f"{value['count']} of {value['n']} ({percent(value['rate'])})"


def p_value(value: float | None) -> str:
    """A p-value to two significant digits, tiny ones as a bound."""
    if value is None:
        return DASH
    if value < 0.001:
        return "< 0.001"
    return f"{value:.2f}" if value >= 0.0995 else f"{value:.3f}"


def number(value: float | None, digits: int = 3) -> str:
    """A number to some significant digits, without an exponent where it can be read."""
    if value is None:
        return DASH
    text = f"{value:.{digits}g}"
    return f"{value:,.0f}" if "e" in text and 1 <= abs(value) < 1e9 else text


def fixed(value: float | None, decimals: int = 2) -> str:
    """A number with so many decimals."""
    return DASH if value is None else f"{value:.{decimals}f}"


def plain(text: str) -> str:
    """Text without terminal escapes, control characters and marks that turn its direction."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return _CONTROL.sub("", _ANSI.sub("", text))


def one_line(text: str) -> str:
    """Plain text on one line."""
    return " ".join(plain(text).split())


def change(words: Words, measure: str, base: Json, cell: Json) -> str:
    """Such as "harmful refused went from 1 of 4 (25 %) to 3 of 4 (75 %)"."""
    before, after = of(base[measure]), of(cell[measure])
    if before == after:
        return f"{words.rate(measure)} stayed at {after}"
    return f"{words.rate(measure)} went from {before} to {after}"


def verdict_on(difference: Json | None) -> str:
    """What may be said of a paired difference."""
    if difference is None:
        return "not compared"
    if difference["finding"] == "no difference shown":
        return f"no difference could be shown at n = {difference['n']} ({corrected_p(difference)})"
    return f"significantly {difference['finding']} ({corrected_p(difference)})"


def corrected_p(difference: Json) -> str:
    """The p-value of a difference, corrected within its family if that has several tests."""
    p = p_value(difference["p_holm"])
    name = "Holm-corrected p" if difference["family_size"] > 1 else "p"
    return f"{name} {p if p.startswith('<') else f'= {p}'}"


def compared(words: Words, differences: Json) -> str:
    """What may be said of every rate's difference, what is significant first."""
    known = {m: d for m, d in differences.items() if d is not None}
    shown = [
        f"{words.rate(m)} {points(d['difference'])} points, {verdict_on(d)}"
        for m, d in known.items()
        if d["finding"] != "no difference shown"
    ]
    rest = {m: d for m, d in known.items() if d["finding"] == "no difference shown"}
    if rest:
        least = min(rest.values(), key=lambda d: float(d["p_holm"]))
        names = listed(
            [
                f"{words.rate(m)} ({points(d['difference'])} points, n = {d['n']})"
                for m, d in rest.items()
            ]
        )
        p = corrected_p(least)
        if len(rest) > 1 and least["p_holm"] < 1:
            p = p.replace(" = ", " at least ")
        shown.append(f"no difference could be shown for {names}, {p}")
    return "; ".join(shown)


def listed(items: Sequence[str]) -> str:
    """Such as "a, b and c"."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"
