"""Progress as people read it."""

from __future__ import annotations

import time

import pytest

from mlx_steer.cli.progress import Lines, time_left


@pytest.mark.parametrize(
    ("made", "left", "seconds", "expected"),
    [
        pytest.param(1, 799, 10.0, None, id="one row of the first batch says nothing"),
        pytest.param(79, 721, 20.0, None, id="not yet a tenth"),
        pytest.param(80, 720, 30.0, 270.0, id="a tenth"),
        pytest.param(128, 99_872, 50.0, 39012.5, id="so many rows that a tenth would be hours"),
        pytest.param(5, 5, 1.0, None, id="the first seconds"),
        pytest.param(800, 0, 300.0, None, id="nothing is left"),
    ],
)
def test_how_long_the_rest_takes_is_said_once_it_can_be_told(
    made: int, left: int, seconds: float, expected: float | None
) -> None:
    assert time_left(made, left, seconds) == expected


def test_lines_guess_no_time_before_a_tenth_is_done(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    told = Lines()
    told.stage("sweep", 800, 0)
    now[0] = 11.0
    told.advance(units=2, tokens=700)
    now[0] = 33.0
    told.advance(units=98, tokens=2600)
    assert capsys.readouterr().err.splitlines() == [
        "sweep: 800 rows",
        "sweep: 2/800 rows (64 tokens/s)",
        "sweep: 100/800 rows (100 tokens/s, 231 s left)",
    ]


def test_rows_of_an_earlier_start_do_not_count_as_made_now(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    told = Lines()
    told.stage("sweep", 800, 700)
    now[0] = 20.0
    told.advance(units=10)
    assert capsys.readouterr().err.splitlines() == [
        "sweep: 800 rows, 700 done before",
        "sweep: 710/800 rows (180 s left)",
    ]
