"""Paired differences as tables of one line a condition, and what is tested together."""

from collections.abc import Mapping

from mlx_steer.metrics.halves import Detectable
from mlx_steer.metrics.metrics_file import Words
from mlx_steer.metrics.numbers import MEASURES, Difference, Differences
from mlx_steer.report.document import Cell, Table
from mlx_steer.report.wording import DASH, listed, p_value, points


def how_to_read(alpha: float) -> str:
    """What the cells of `table` mean."""
    return (
        "Each cell: points with the 95 % interval of the smoothed bootstrap; gained/lost, the "
        "prompts that show it only under the one or only under the other; and the Holm-corrected p "
        f"of the exact McNemar test, with a star where it is at most {alpha:g}."
    )


def table(words: Words, records: Mapping[str, Differences]) -> Table:
    """One line for each condition: the difference of each rate; the headline's lines marked."""
    # Of an unfinished run a condition may share no prompt with the one it is compared with.
    records = {name: record for name, record in records.items() if _known(record)}
    found = {m: [d for r in records.values() if (d := r.of(m))] for m in MEASURES}
    measures = [m for m in MEASURES if found[m]]
    sizes = {m: max(d.n for d in found[m]) for m in measures}
    family_of = {name: _known(record)[0].family for name, record in records.items()}
    split = len(set(family_of.values())) > 1
    rows = [
        [
            Cell(name),
            *([Cell(_FAMILIES[family_of[name]])] if split else []),
            *(Cell(_difference(record.of(m), sizes[m])) for m in measures),
        ]
        for name, record in records.items()
    ]
    columns = [
        "condition",
        *(["tests"] if split else []),
        *(f"{words.rate(m)}, points (n = {sizes[m]})" for m in measures),
    ]
    marked = (i for i, family in enumerate(family_of.values()) if split and family == "primary")
    return Table(columns, rows, frozenset(marked))


_FAMILIES = {"primary": "headline", "secondary": "further"}


def _known(record: Differences) -> list[Difference]:
    return [d for m in MEASURES if (d := record.of(m))]


def _difference(value: Difference | None, usual: int) -> str:
    if value is None:
        return DASH
    p = p_value(value.p_holm)
    star = "" if value.finding == "no difference shown" else " *"
    other = "" if value.n == usual else f", n = {value.n}"
    return (
        f"{points(value.difference)} ({points(value.low)} to {points(value.high)}), "
        f"{value.gained}/{value.lost}, p {p if p.startswith('<') else f'= {p}'}{star}{other}"
    )


def families(words: Words, compared: Mapping[str, Differences], alpha: float) -> str:
    """What is tested together, and whether the headline hangs on that."""
    first = [n for n, r in compared.items() if any(d.family == "primary" for d in _known(r))]
    rest = len(compared) - len(first)
    if not first or not rest:
        return f"p is Holm-corrected over the {len(compared)} conditions, for each rate apart."
    text = (
        f"The headline is what was settled before the test half was run: {listed(first)}. These "
        f"{len(first)} are one family of tests, Holm-corrected for each rate apart; the other "
        f"{rest} (other strengths, combinations, fixed answers) are exploratory and a second "
        "family, corrected for their own number, so that the headline does not pay for them."
    )
    lost = [
        f"{name}, {words.rate(measure)} (p = {p_value(d.p_holm_all)})"
        for name in first
        for measure in MEASURES
        if (d := compared[name].of(measure))
        and d.finding != "no difference shown"
        and d.p_holm_all > alpha
    ]
    if lost:
        return (
            f"{text} Corrected over all {len(compared)} at once, the headline would not have been "
            f"shown for: {'; '.join(lost)}."
        )
    return f"{text} Corrected over all {len(compared)} at once, the headline says the same."


def power_sentence(words: Words, detectable: Detectable) -> str:
    """The smallest rise that would have been found."""
    n = detectable.n
    if detectable.difference is None:
        return (
            f"At n = {n} no rise of {words.rate('target')}, however large, would be found with a "
            f"power of {detectable.power:g} in {detectable.comparisons} comparisons."
        )
    return (
        f"At n = {n} a rise of {words.rate('target')} by "
        f"{points(detectable.difference).lstrip('+')} points or more would be found with a "
        f"power of {detectable.power:g} (in {detectable.comparisons} comparisons, verdicts "
        "independent given the rates); smaller true rises may well go unnoticed."
    )
