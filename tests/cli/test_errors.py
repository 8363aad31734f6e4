"""Bad input, all of it through the command line's own entry point."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

import mlx_steer.cli
from tests.bad_inputs import configs, datasets, exchange, models, runs, values, vectors
from tests.bad_inputs.case import Case, World
from tests.helpers import small_run

GROUPS = [configs, datasets, exchange, models, runs, values, vectors]
CASES = {f"{g.__name__.rsplit('.')[-1]}: {one.name}": one for g in GROUPS for one in g.CASES}


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_run.shared_folder(tmp_path_factory.mktemp("good"))


def test_there_are_at_least_80_cases_and_no_two_of_one_name() -> None:
    assert len(CASES) == sum(len(group.CASES) for group in GROUPS) >= 80


@pytest.mark.parametrize("one", CASES.values(), ids=CASES)
def test_bad_input_gives_one_clear_sentence_and_exit_code_2(
    one: Case,
    shared: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = one.build(World(tmp_path, shared))
    rows = {path: path.read_bytes() for path in tmp_path.rglob("rows.jsonl") if path.is_file()}
    monkeypatch.setattr(sys, "argv", ["mlx-steer", *arguments])
    with pytest.raises(SystemExit) as stop:
        mlx_steer.cli.main()
    out, err = capsys.readouterr()

    assert stop.value.code == 2
    assert out == ""  # nothing was done, and no planted code has spoken
    assert "Traceback" not in err
    sentences = [line for line in err.splitlines() if re.match("mlx-steer: |Error: ", line)]
    assert len(sentences) == 1
    for words in one.says:
        assert words in err
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", err)
    for path, before in rows.items():
        assert path.read_bytes() == before, "finished work was lost"
    # What is wrong is said before any response is generated, not hours later.
    assert not (tmp_path / "out" / "rows.jsonl").exists()


def test_the_good_things_that_cases_spoil_are_good(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path, shared)
    for arguments in (
        world.run(),
        world.generate(),
        ["report", str(world.copy("run"))],
        ["vectors", "show", str(world.copy("vectors"))],
    ):
        monkeypatch.setattr(sys, "argv", ["mlx-steer", *arguments])
        mlx_steer.cli.main()
