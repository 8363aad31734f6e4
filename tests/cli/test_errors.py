from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

import mlx_steer.cli
from mlx_steer.experiment import run_experiment
from mlx_steer.run import RunDirectory
from tests import small_run
from tests.bad_inputs import configs, datasets, models, runs, values, vectors
from tests.bad_inputs.case import Case, World
from tests.tiny import tiny_folder

CASES = {f"{kind.__name__.split('.')[-1]}: {one.name}": one for kind in [configs, datasets, models, runs, values, vectors] for one in kind.CASES}


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    model, behavior = tiny_folder("llama", folder / "model"), folder / "behavior"
    small_run.behavior_folder(behavior)
    with RunDirectory.open(folder / "run") as run:
        run_experiment(small_run.config(model, behavior), run, small_run.Told())
    (folder / "run" / ".lock").unlink()
    (folder / "vectors").symlink_to(folder / "run" / "vectors")
    return folder


@pytest.mark.parametrize("one", CASES.values(), ids=CASES)
def test_bad_input_gives_one_clear_sentence_and_exit_code_2(
    one: Case,
    shared: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = one.build(World(tmp_path, shared))
    monkeypatch.setattr(sys, "argv", ["mlx-steer", *arguments])
    with pytest.raises(SystemExit) as stop:
        mlx_steer.cli.main()
    out, err = capsys.readouterr()
    print(repr(err), file=sys.__stderr__)
    assert stop.value.code == 2, err
    assert out == ""
    for words in one.says:
        assert words in err
