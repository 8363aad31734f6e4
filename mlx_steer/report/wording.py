"""Numbers and a behavior's words as text. Knows nothing about files or markup."""

import re
from collections.abc import Sequence

from mlx_steer.files import CONTROL, TURNING
from mlx_steer.metrics.halves import Outcome, Price
from mlx_steer.metrics.metrics_file import Words
from mlx_steer.metrics.numbers import MEASURES, Difference, Differences, Measure, Share

DASH = "–"

# Escape sequences of terminals, whole; then what is invisible or turns the writing direction.
_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-_])?")
_CONTROL = re.compile(rf"[{CONTROL}{TURNING}\u061c\u200e\u200f\u2028\u2029\ufeff]")


def percent(value: float | None) -> str:
    """A share in whole percent."""
    return DASH if value is None else f"{100 * value:.0f} %"


def points(value: float | None) -> str:
    """A difference of shares in percentage points, with its sign."""
    if value is None:
        return DASH
    rounded = round(100 * value)
    return f"{rounded:+d}" if rounded else "0"


def rate(value: Share) -> str:
    """Such as "15/20, 75 % (53 to 89)": count, n, share and its 95 % interval in percent."""
    if not value.n:
        return DASH
    interval = f"({100 * value.low:.0f} to {100 * value.high:.0f})"
    return f"{value.count}/{value.n}, {percent(value.rate)} {interval}"


def of(value: Share) -> str:
    """Such as "15 of 20 (75 %)", for sentences."""
    return f"{value.count} of {value.n} ({percent(value.rate)})"


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


def price(value: Price | None) -> str:
    """Such as "0.12 (0.08 to 0.17)"; of a gated condition also what it is where it opens."""
    if value is None:
        return DASH
    text = f"{number(value.nats, 2)} ({number(value.low, 2)} to {number(value.high, 2)})"
    opened = value.opened
    return text if opened is None else f"{text} [{number(opened.nats, 2)}, n = {opened.n}]"


def plain(text: str) -> str:
    """Text without terminal escapes, control characters and marks that turn its direction."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return _CONTROL.sub("", _ANSI.sub("", text))


def one_line(text: str) -> str:
    """Plain text on one line."""
    return " ".join(plain(text).split())


def change(words: Words, measure: Measure, base: Outcome, cell: Outcome) -> str:
    """Such as "harmful refused went from 1 of 4 (25 %) to 3 of 4 (75 %)"."""
    before, after = of(base.of(measure)), of(cell.of(measure))
    if before == after:
        return f"{words.rate(measure)} stayed at {after}"
    return f"{words.rate(measure)} went from {before} to {after}"


def verdict_on(difference: Difference | None) -> str:
    """What may be said of a paired difference."""
    if difference is None:
        return "not compared"
    if difference.finding == "no difference shown":
        return f"no difference could be shown at n = {difference.n} ({corrected_p(difference)})"
    return f"significantly {difference.finding} ({corrected_p(difference)})"


def corrected_p(difference: Difference) -> str:
    """The p-value of a difference, corrected within its family if that has several tests."""
    p = p_value(difference.p_holm)
    name = "Holm-corrected p" if difference.family_size > 1 else "p"
    return f"{name} {p if p.startswith('<') else f'= {p}'}"


def compared(
    words: Words, differences: Differences | None, measures: Sequence[Measure] = tuple(MEASURES)
) -> str:
    """What may be said of the differences of these rates, what is significant first."""
    if differences is None:
        return ""
    known = {m: d for m in measures if (d := differences.of(m)) is not None}
    shown = [
        f"{words.rate(m)} {points(d.difference)} points, {verdict_on(d)}"
        for m, d in known.items()
        if d.finding != "no difference shown"
    ]
    rest = {m: d for m, d in known.items() if d.finding == "no difference shown"}
    if rest:
        least = min(rest.values(), key=lambda d: d.p_holm)
        names = listed(
            [f"{words.rate(m)} ({points(d.difference)} points, n = {d.n})" for m, d in rest.items()]
        )
        p = corrected_p(least)
        if len(rest) > 1 and least.p_holm < 1:
            p = p.replace(" = ", " at least ")
        shown.append(f"no difference could be shown for {names}, {p}")
    return "; ".join(shown)


def listed(items: Sequence[str]) -> str:
    """Such as "a, b and c"."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"
