import math
from dataclasses import replace

import pytest

from mlx_steer.config import Limits
from mlx_steer.errors import RunError
from mlx_steer.metrics import (
    Cell,
    choose_cell,
    choose_system_prompt,
)
from mlx_steer.metrics.choose import leaders
from mlx_steer.stats import wilson

LIMITS = Limits()


def cell(name="cell", target=5, other=0, n=10, *, layer=8, strength=1.0, **quality):
    return Cell(
        condition=name,
        layer=layer,
        strength=strength,
        target=wilson(target, n),
        false_positive=wilson(other, n),
        coherence=quality.get("coherence", 0.9),
        incoherent=wilson(quality.get("incoherent", 0), 2 * n),
    )


BASE = cell("base", 0, 0, layer=None, strength=None)


def test_the_highest_target_rate_within_the_limits_is_chosen():
    cells = [cell("low", 3), cell("high", 6), cell("too many", 9, 2)]
    chosen, met = choose_cell(cells, BASE, LIMITS)
    assert (chosen.condition, met) == ("high", True)


def test_a_tie_goes_to_the_smaller_strength_then_fewer_false_positives_then_the_lower_layer():
    strong, weak = cell("strong", 6, strength=2.0), cell("weak", 6, 1, strength=0.5)
    assert choose_cell([strong, weak], BASE, LIMITS)[0].condition == "weak"
    assert choose_cell([weak, strong], BASE, LIMITS)[0].condition == "weak"
    clean = cell("clean", 6, 0, layer=20, strength=0.5)
    assert choose_cell([weak, clean], BASE, LIMITS)[0].condition == "clean"
    low = cell("low", 6, 0, layer=3, strength=0.5)
    assert choose_cell([clean, low], BASE, LIMITS)[0].condition == "low"


def test_the_size_of_a_negative_strength_counts():
    cells = [cell("minus two", 6, strength=-2.0), cell("one", 6, strength=1.0)]
    assert choose_cell(cells, BASE, LIMITS)[0].condition == "one"


@pytest.mark.parametrize(("n", "others", "limit"), [(20, 3, 0.15), (10, 1, 0.1), (30, 9, 0.3)])
def test_a_cell_exactly_at_the_limit_of_false_positives_is_within(n, others, limit):
    limits = Limits(false_positives=limit)
    base = cell("base", 0, 0, n)
    assert choose_cell([cell(target=5, other=others, n=n)], base, limits)[1]
    assert not choose_cell([cell(target=5, other=others + 1, n=n)], base, limits)[1]


def test_false_positives_are_counted_from_base_not_from_zero():
    base = cell("base", 0, 4)
    assert choose_cell([cell(other=5)], base, LIMITS)[1]
    assert not choose_cell([cell(other=6)], base, LIMITS)[1]


def test_coherence_and_incoherent_rows_limit_too_and_their_limits_are_within():
    assert choose_cell([cell(coherence=0.85)], BASE, LIMITS)[1]
    assert not choose_cell([cell(coherence=0.849)], BASE, LIMITS)[1]
    assert choose_cell([cell(incoherent=2)], BASE, LIMITS)[1]
    assert not choose_cell([cell(incoherent=3)], BASE, LIMITS)[1]


def test_without_a_cell_within_the_limits_the_largest_difference_of_rates_is_taken():
    cells = [cell("all", 10, 9), cell("some", 6, 2), cell("few", 3, 2)]
    chosen, met = choose_cell(cells, BASE, LIMITS)
    assert (chosen.condition, met) == ("some", False)


def test_equal_differences_are_equal_whatever_their_rounding():
    cells = [cell("a", 6, 3, strength=2.0), cell("b", 7, 4, strength=1.0)]
    assert 0.6 - 0.3 > 0.7 - 0.4, "a matter of rounding"
    assert choose_cell(cells, BASE, LIMITS)[0].condition == "b"
    assert choose_cell(cells[::-1], BASE, LIMITS)[0].condition == "b"


def test_cells_without_rows_are_passed_over_and_nothing_to_choose_from_is_an_error():
    empty = replace(cell("empty"), target=wilson(0, 0), coherence=math.nan)
    assert choose_cell([empty, cell("full", 1)], BASE, LIMITS)[0].condition == "full"
    with pytest.raises(RunError, match="nothing to choose from"):
        choose_cell([empty], BASE, LIMITS)
    with pytest.raises(RunError, match="nothing to choose from"):
        choose_cell([cell()], empty, LIMITS)


def test_the_choice_is_among_the_cells_that_reached_the_last_round():
    early, last = cell("early", 5, 0, 5), cell("last", 8, 0, 10)
    assert choose_cell([early, last], BASE, Limits())[0] is last


def test_the_better_half_of_a_race_goes_on_and_chance_alone_drops_nobody():
    base = cell("base", 0, 1, 15)
    good = cell("good", 12, 3, 15)  # over the limit, by chance as it may be
    fair, weak = cell("fair", 8, 0, 15), cell("weak", 2, 0, 15)
    wild = cell("wild", 15, 14, 15)
    babble = cell("babble", 14, 0, 15, incoherent=15)
    assert leaders([weak, wild, good, fair], base, Limits()) == [good, fair]
    assert leaders([babble, weak, fair], base, Limits()) == [fair, weak]
    assert leaders([weak], base, Limits()) == [weak]


def test_the_system_prompt_is_chosen_by_the_same_rule():
    harsh = cell("harsh", 10, 5, layer=None, strength=None)
    fair = cell("fair", 6, 0, layer=None, strength=None)
    assert choose_system_prompt([harsh, fair], BASE, LIMITS)[0].condition == "fair"
