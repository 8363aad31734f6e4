"""Progress as people read it."""

from __future__ import annotations

import time

import pytest

from mlx_steer.cli.progress import Bar, Lines
from mlx_steer.cli.timeline import Timeline
from mlx_steer.experiment.progress import Expected

# As counted: 10 s of extraction that nobody tells of, 100 s of search, 300 s of comparison.
STAGES = [
    Expected("extract", 100, 0, 10.0),
    Expected("sweep", 100, 1000, 100.0),
    Expected("compare", 300, 3000, 300.0),
]


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    return clock


def timeline(known: bool) -> Timeline:
    made = Timeline()
    made.expect(STAGES, known)
    return made


def test_speeds_of_an_earlier_run_tell_at_once_and_the_present_ones_correct_them(
    now: list[float],
) -> None:
    line = timeline(known=True)
    line.stage("sweep", 100, 0)
    assert line.place == "2/3" and line.rows == (100, 500)
    assert line.left() == pytest.approx(400 * 60 / 70)
    # Half as fast as was thought: after 200 s half of the sweep is done.
    now[0] = 120.0
    line.advance(50, 0)
    assert line.left() == pytest.approx(350 * (120 + 60) / (60 + 60))
    now[0] = 240.0
    line.advance(50, 0)
    line.stage("compare", 300, 0)
    assert line.left() == pytest.approx(300 * (240 + 60) / (110 + 60))


def test_where_no_speed_is_known_nothing_is_said_before_a_tenth_is_done(now: list[float]) -> None:
    line = timeline(known=False)
    line.stage("sweep", 100, 0)
    now[0] = 30.0
    line.advance(20, 0)
    assert line.left() is None
    line.advance(20, 0)
    assert line.left() == pytest.approx(360 * 30 / 50)


def test_rows_that_are_still_being_decoded_count_by_their_tokens(now: list[float]) -> None:
    line = timeline(known=True)
    line.stage("sweep", 100, 60)
    assert line.part == pytest.approx((10 + 60) / 410)
    line.advance(0, 200)
    assert line.part == pytest.approx((10 + 80) / 410)
    line.advance(40, 150)
    assert line.part == pytest.approx((10 + 100) / 410)


def test_rows_of_an_earlier_start_do_not_count_as_made_now(now: list[float]) -> None:
    line = timeline(known=False)
    line.stage("sweep", 100, 90)
    now[0] = 20.0
    line.advance(2, 0)
    assert line.left() is None
    line.advance(8, 0)
    line.stage("compare", 300, 0)
    line.advance(30, 0)
    # 10 s of work in the sweep, 30 in the comparison and 10 in the extraction took 20 s.
    assert line.left() == pytest.approx(270 * 20 / 50)


def test_fewer_rows_than_were_counted_and_stages_nobody_counted_are_no_trouble(
    now: list[float],
) -> None:
    line = timeline(known=True)
    line.stage("sweep", 50, 0)
    assert line.rows == (100, 450)
    line.stage("compare", 300, 300)
    line.stage("judge", 45, 0)
    assert (line.place, line.rows) == ("4/4", (450, 495))
    line.advance(45, 0)
    assert line.left() is None and line.part == 1.0


def test_lines_say_the_stage_its_speed_and_how_long_the_whole_run_takes(
    now: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    told = Lines()
    told.expect(STAGES, True)
    told.stage("sweep", 100, 0)
    now[0] = 11.0
    told.advance(units=2, tokens=110)
    told.interim("so far, select half: layer 3, strength 1: harmful refused 2 of 2")
    told.advance(units=98, tokens=0)
    assert capsys.readouterr().err.splitlines() == [
        "sweep (2/3): 100 rows",
        "sweep: 2/100 rows (10 tokens/s, 102/500 in all, 6 min left)",
        "so far, select half: layer 3, strength 1: harmful refused 2 of 2",
        "sweep: 100/100 rows (10 tokens/s, 200/500 in all, 2 min left)",
    ]


def test_a_stage_of_another_command_is_told_by_itself(
    now: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    told = Lines()
    told.stage("write", 20, 10)
    now[0] = 20.0
    told.advance(units=5)
    assert capsys.readouterr().err.splitlines() == [
        "write (1/1): 20 rows, 10 done before",
        "write: 15/20 rows (20 s left)",
    ]


def test_one_bar_spans_the_run_and_the_answer_so_far_stands_under_it() -> None:
    bar = Bar()
    bar.expect(STAGES, True)
    bar.stage("sweep", 100, 0)
    bar.advance(units=50, tokens=500)
    bar.interim("so far: \x1b[31mlayer 3")
    with bar.live.console.capture() as captured:
        bar.live.console.print(*bar.live.get_renderables())
    text = captured.get()
    assert "sweep 2/3" in text and "150/500 rows" in text and "left" in text
    assert "so far: \\x1b[31mlayer 3" in text
    assert len(bar.live.tasks) == 1
