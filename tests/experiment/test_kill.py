"""Runs that are killed: whatever the moment, going on ends with the bytes of an undisturbed run."""

from __future__ import annotations

import errno
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from mlx_steer.errors import SteerError
from mlx_steer.report import write_report
from tests.helpers.behaviors import behavior_folder
from tests.helpers.small_run import Told, carry_out, config, left_behind, settings
from tests.helpers.tiny import tiny_folder

CHANGES: dict[str, Any] = {
    "sweep": {"strengths": [1.0], "system_prompts": ["detailed"]},
    "generation": {"max_tokens": 4, "batch_size": 3},
    "gate": {"layers": [1, 2], "methods": ["mean_difference"]},
}


@dataclass(frozen=True)
class Setting:
    """A model, a behavior, and what an undisturbed run leaves."""

    model: Path
    behavior: Path
    undisturbed: dict[str, object] = field(repr=False)

    def carry_out(self, folder: Path) -> Told:
        return carry_out(config(self.model, self.behavior, **CHANGES), folder)


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    root = tmp_path_factory.mktemp("setting")
    model = tiny_folder("llama", root / "model")
    behavior = behavior_folder(root / "behavior", prompts=1, gate=True)
    carry_out(config(model, behavior, **CHANGES), root / "run")
    return Setting(model, behavior, left_behind(root / "run"))


# --- every operation on files may be the last one ------------------------------------------------


class Killed(BaseException):
    """Stands for kill -9: nothing catches it."""


@dataclass
class _Fate:
    """What happens to the operations on files, counted from 1.

    Attributes:
        at: The operation that fails.
        dies: Whether the process ends there, so that no later one is carried out either, those of
            `finally` clauses least of all; else the disk is full for a moment.
        done: How many there have been.
    """

    at: int
    dies: bool
    done: int = 0

    def comes(self) -> bool:
        self.done += 1
        return self.done >= self.at if self.dies else self.done == self.at

    def fail(self) -> BaseException:
        return Killed() if self.dies else OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextmanager
def _fated(monkeypatch: pytest.MonkeyPatch, fate: _Fate) -> Iterator[None]:
    """Every operation that changes files counts; a write that fails has written its first half."""

    def wrapped(real: Callable[..., Any], data_at: int | None) -> Callable[..., Any]:
        def operation(*args: Any, **more: Any) -> Any:
            if not fate.comes():
                return real(*args, **more)
            if data_at is not None and fate.done == fate.at:
                data = bytes(args[data_at])
                real(*args[:data_at], data[: len(data) // 2], *args[data_at + 1 :], **more)
            raise fate.fail()

        return operation

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", wrapped(os.write, 1))
        patch.setattr(pathlib.Path, "write_bytes", wrapped(pathlib.Path.write_bytes, 1))
        for owner, name in (
            (os, "fsync"),
            (os, "truncate"),
            (pathlib.Path, "replace"),
            (pathlib.Path, "rename"),
            (pathlib.Path, "mkdir"),
            (pathlib.Path, "unlink"),
            (shutil, "rmtree"),
        ):
            patch.setattr(owner, name, wrapped(getattr(owner, name), None))
        yield


def _operations(setting: Setting, folder: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    fate = _Fate(at=10**9, dies=True)
    with _fated(monkeypatch, fate):
        setting.carry_out(folder)
    return fate.done


@pytest.mark.parametrize("dies", [True, False], ids=["killed", "disk full"])
def test_a_run_that_fails_again_and_again_ends_with_the_same_bytes(
    setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies: bool
) -> None:
    rng, folder, failures = random.Random(4), tmp_path / "run", 0
    failure: type[BaseException] = Killed if dies else SteerError
    rows = b""
    # Later each time, as a start repeats little of what is done: each fails further on.
    for latest in range(20, 161, 20):
        fate = _Fate(rng.randint(latest - 19, latest), dies)
        with _fated(monkeypatch, fate), suppress(failure):
            setting.carry_out(folder)
        failures += fate.done >= fate.at
        rows = _check_append_only(folder, rows)
    setting.carry_out(folder)
    assert failures >= 5
    assert left_behind(folder) == setting.undisturbed
    # Plots and half-saved vectors leave no litter either.
    assert {p.name for p in folder.iterdir() if p.name.startswith(".")} == {
        ".lock",
        ".extracted.json",
    }


@pytest.mark.slow
@pytest.mark.parametrize("dies", [True, False], ids=["killed", "disk full"])
def test_any_operation_on_files_may_fail(
    setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies: bool
) -> None:
    count = _operations(setting, tmp_path / "counted", monkeypatch)
    assert count > 100
    failure: type[BaseException] = Killed if dies else SteerError
    for at in range(1, count + 1):
        folder = tmp_path / f"run-{at}"
        # A temporary file that cannot be swept up is not worth an error.
        with _fated(monkeypatch, _Fate(at, dies)), suppress(failure):
            setting.carry_out(folder)
        setting.carry_out(folder)
        assert left_behind(folder) == setting.undisturbed, f"operation {at} of {count}"
        shutil.rmtree(folder)


def _check_append_only(folder: Path, before: bytes) -> bytes:
    """The whole lines of rows.jsonl, which must begin with those there were before."""
    path = folder / "rows.jsonl"
    data = path.read_bytes() if path.exists() else b""
    whole = data[: data.rfind(b"\n") + 1]
    assert whole.startswith(before), "finished rows were lost"
    keys = [line.split(b'"key": ')[1][:34] for line in whole.splitlines()]
    assert len(keys) == len(set(keys)), "a row was made twice"
    return whole


# --- the directory goes away ---------------------------------------------------------------------


class _Removing(Told):
    def __init__(self, folder: Path, after: int) -> None:
        super().__init__()
        self._folder, self._after = folder, after

    def advance(self, units: int = 0, tokens: int = 0) -> None:
        super().advance(units, tokens)
        if self.steps == self._after and self._folder.exists():
            shutil.rmtree(self._folder)


def test_a_directory_removed_while_the_run_goes_on_is_one_clear_sentence(
    setting: Setting, tmp_path: Path
) -> None:
    from mlx_steer.experiment.execute import run_experiment
    from mlx_steer.run.directory import RunDirectory

    folder = tmp_path / "run"
    values = config(setting.model, setting.behavior, **CHANGES)
    with (
        pytest.raises(SteerError, match="was removed or renamed while it was being written"),
        RunDirectory.open(folder) as run,
    ):
        run_experiment(values, run, _Removing(folder, after=9))
    assert not folder.exists()


# --- real processes, real signals ----------------------------------------------------------------

_MAIN = """
import signal
# A shell that started the tests in the background has it ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
from mlx_steer.cli import main
main()
"""


@dataclass(frozen=True)
class Command:
    """`mlx-steer run` of an experiment file in a directory."""

    file: Path
    folder: Path

    def start(self, **streams: Any) -> subprocess.Popen[str]:
        arguments = ["run", str(self.file), "--out", str(self.folder)]
        streams = {"stderr": subprocess.PIPE, "stdout": subprocess.DEVNULL, **streams}
        return subprocess.Popen([sys.executable, "-c", _MAIN, *arguments], text=True, **streams)

    def rows(self) -> int:
        path = self.folder / "rows.jsonl"
        return path.read_bytes().count(b"\n") if path.exists() else 0

    def wait_for(
        self, process: subprocess.Popen[str], happened: Callable[[], bool], patience: float = 120
    ) -> bool:
        """Whether it happened before the process ended."""
        end = time.monotonic() + patience
        while time.monotonic() < end:
            if happened():
                return True
            if process.poll() is not None:
                return False
            time.sleep(0.01)
        process.kill()
        raise AssertionError("nothing happened")

    def logged(self, text: str) -> bool:
        path = self.folder / "run.log"
        return path.exists() and text in path.read_text()


@pytest.fixture
def command(setting: Setting, tmp_path: Path) -> Command:
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(settings(setting.model, setting.behavior, **CHANGES)))
    return Command(path, tmp_path / "run")


@pytest.mark.slow
def test_a_process_killed_at_random_moments_ends_with_the_bytes_of_an_undisturbed_one(
    setting: Setting, command: Command, tmp_path: Path
) -> None:
    rng, rows, kills = random.Random(11), b"", 0
    total = len(setting.undisturbed["rows.jsonl"])  # type: ignore[arg-type]
    moments: list[Callable[[], bool]] = [
        lambda: command.logged("load begins"),
        lambda: command.logged("extract begins"),
        *[lambda n=n: command.rows() >= n for n in sorted(rng.sample(range(1, total), 2))],  # type: ignore[misc]
        lambda: (command.folder / "scores.jsonl").exists(),
    ]
    for happened in moments:
        process = command.start()
        if command.wait_for(process, happened):
            time.sleep(rng.random() * 0.02)
            kills += process.poll() is None
            process.kill()
        process.communicate()
        rows = _check_append_only(command.folder, rows)
    last = command.start()
    assert last.wait(120) == 0, last.communicate()[1]
    last.communicate()
    assert kills >= 4

    carry_out(config(setting.model, setting.behavior, **CHANGES), tmp_path / "undisturbed")
    write_report(tmp_path / "undisturbed")
    found, expected = left_behind(command.folder), left_behind(tmp_path / "undisturbed")
    # The report's head names the run by its directory.
    for name in ("rows.jsonl", "metrics.json", "scores.jsonl", "vectors/layer_2.npy"):
        assert found[name] == expected[name], name
    assert found.keys() == expected.keys()


@pytest.mark.slow
def test_ctrl_c_ends_the_run_after_the_step_and_says_how_to_go_on(
    setting: Setting, command: Command
) -> None:
    process = command.start()
    assert command.wait_for(process, lambda: command.rows() >= 2)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "stopping after this step; Ctrl-C again stops at once" in said
    assert said.rstrip().endswith("mlx-steer: stopped; run the same command again to go on")
    assert "Traceback" not in said
    data = (command.folder / "rows.jsonl").read_bytes()
    assert data.endswith(b"\n")
    assert 2 <= command.rows() < len(setting.undisturbed["rows.jsonl"])  # type: ignore[arg-type]

    again = command.start()
    assert again.wait(120) == 0
    again.communicate()
    assert (command.folder / "rows.jsonl").read_bytes().startswith(data)
    assert left_behind(command.folder)["rows.jsonl"] == setting.undisturbed["rows.jsonl"]


def test_ctrl_c_before_any_stage_ends_the_run_at_once(command: Command) -> None:
    process = command.start()
    assert command.wait_for(process, lambda: command.logged("load begins"))
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in said
    assert "run the same command again" in said


def test_ctrl_c_on_a_terminal_leaves_a_sound_run(command: Command) -> None:
    master, slave = os.openpty()
    process = command.start(stderr=slave)
    os.close(slave)
    assert command.wait_for(process, lambda: command.rows() >= 1)
    process.send_signal(signal.SIGINT)
    said = b""
    while True:
        try:
            part = os.read(master, 65_536)
        except OSError:  # Linux says so when the other side is closed
            break
        if not part:
            break
        said += part
    os.close(master)
    assert process.wait(120) == 130
    assert b"Traceback" not in said
    assert b"run the same command again to go on" in said
    _check_append_only(command.folder, b"")


def test_a_second_process_is_refused_while_the_first_goes_on(command: Command) -> None:
    first = command.start()
    assert command.wait_for(first, lambda: command.logged("load begins"))
    second = command.start()
    _, said = second.communicate(timeout=120)
    first.kill()
    first.communicate()
    assert second.returncode == 2
    assert f"is being written by process {first.pid}" in said
