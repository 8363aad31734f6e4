"""Cohen's kappa, against textbook values and its own identities."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_steer.stats import (
    cohens_kappa,
)

few = settings(max_examples=60, deadline=None)


def ratings(table: list[list[int]]) -> tuple[list[str], list[str]]:
    """Two raters' labels from a table of counts, the first rater in rows."""
    cells = [
        (f"label {i}", f"label {j}")
        for i, row in enumerate(table)
        for j, count in enumerate(row)
        for _ in range(count)
    ]
    return [cell[0] for cell in cells], [cell[1] for cell in cells]


@pytest.mark.parametrize(
    ("table", "kappa"),
    [
        # Cohen 1960, "A coefficient of agreement for nominal scales", table 1, of 200 cases.
        ([[88, 10, 2], [14, 40, 6], [18, 10, 12]], 0.492),
        # "Cohen's kappa" in Wikipedia: 50 grant proposals, and the pair with equal raw agreement.
        ([[20, 5], [10, 15]], 0.4),
        ([[45, 15], [25, 15]], 0.1304),
        ([[25, 35], [5, 35]], 0.2593),
    ],
)
def test_kappa_gives_the_textbook_values(table: list[list[int]], kappa: float) -> None:
    assert cohens_kappa(*ratings(table)) == pytest.approx(kappa, abs=5e-4)


def test_kappa_is_one_for_full_agreement_and_zero_for_chance() -> None:
    assert cohens_kappa(["shown", "absent"], ["shown", "absent"]) == 1
    assert cohens_kappa(*ratings([[6, 2], [3, 1]])) == 0
    assert cohens_kappa(["shown"] * 4, ["shown", "absent"] * 2) == 0


def test_kappa_of_one_label_throughout_is_undefined() -> None:
    assert math.isnan(cohens_kappa(["absent"] * 5, ["absent"] * 5))


@few
@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abcd")), min_size=1, max_size=30)
)
def test_kappa_does_not_depend_on_who_is_named_first(cells: list[tuple[str, str]]) -> None:
    a, b = [c[0] for c in cells], [c[1] for c in cells]
    assert cohens_kappa(a, b) == pytest.approx(cohens_kappa(b, a), nan_ok=True)
    if a != b:
        assert -1 <= cohens_kappa(a, b) < 1
