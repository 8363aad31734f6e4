"""A full disk, a read-only one, a directory that goes away: no finished row is lost."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mlx_steer.errors import RunError
from mlx_steer.run.directory import RunDirectory
from mlx_steer.run.records import Row
from tests.run.conftest import ROWS, WRITES, full_disk


@pytest.mark.parametrize("after", [0, 1, 50, 300, 1000])
def test_afull_disk_costs_no_finished_row(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    run.append("rows.jsonl", ROWS[:5])
    with (
        full_disk(monkeypatch, after),
        pytest.raises(RunError, match=r"No space left.*finished rows are safe") as error,
    ):
        run.append("rows.jsonl", ROWS[5:])
    assert "\n" not in str(error.value)
    assert run.read("rows.jsonl", Row) == ROWS[:5]
    run.append("rows.jsonl", ROWS[5:])
    assert run.read("rows.jsonl", Row) == ROWS


def test_a_file_size_limit_of_the_system_costs_no_finished_row(run: RunDirectory) -> None:
    run.append("rows.jsonl", ROWS[:5])
    size = (run.folder / "rows.jsonl").stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, hard))
    try:
        with pytest.raises(RunError, match="File too large"):
            run.append("rows.jsonl", ROWS[5:])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert run.read("rows.jsonl", Row) == ROWS[:5]


@contextmanager
def _mounted(folder: Path, *options: str) -> Iterator[None]:
    """A small file system in memory; skips the test where nobody may mount one."""
    folder.mkdir(exist_ok=True)
    mount = shutil.which("mount")
    command = [str(mount), "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(folder)]
    if mount is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_disk_that_fills_up_costs_no_finished_row(tmp_path: Path) -> None:
    with _mounted(tmp_path / "disk", "size=64k"), RunDirectory.open(tmp_path / "disk/run") as run:
        written = 0
        with pytest.raises(RunError, match="No space left"):
            for row in ROWS * 1000:
                run.append("rows.jsonl", [row.model_copy(update={"text": "x" * 999})])
                written += 1
        assert written > 10
        assert len(run.read("rows.jsonl", Row)) == written
        with pytest.raises(RunError, match="No space left"):
            run.write("report.md", "x" * 99_999)
        assert "report.md" not in os.listdir(run.folder)


def test_a_read_only_disk_is_said_to_be_one(tmp_path: Path) -> None:
    with (
        _mounted(tmp_path / "disk", "ro"),
        pytest.raises(RunError, match=r"Read-only file system.*choose another --out"),
        RunDirectory.open(tmp_path / "disk" / "run"),
    ):
        pass


@pytest.mark.parametrize("write", WRITES)
def test_a_disk_that_becomes_read_only_keeps_its_rows(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, write: Callable[[RunDirectory], None]
) -> None:
    run.append("rows.jsonl", ROWS[:5])

    def refuse(path: object, flags: int, *_: object, **__: object) -> int:
        assert flags & os.O_WRONLY
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        with pytest.raises(RunError, match="Read-only file system"):
            write(run)
    assert run.read("rows.jsonl", Row) == ROWS[:5]


@pytest.mark.parametrize("write", WRITES)
def test_a_directory_removed_meanwhile_is_an_error(
    run: RunDirectory, write: Callable[[RunDirectory], None]
) -> None:
    shutil.rmtree(run.folder)
    with pytest.raises(RunError, match="was removed or renamed while it was being written"):
        write(run)
    assert not run.folder.exists()


@pytest.mark.parametrize("write", WRITES)
def test_nothing_is_written_into_a_directory_that_took_the_place_of_the_run(
    run: RunDirectory, write: Callable[[RunDirectory], None]
) -> None:
    run.append("rows.jsonl", ROWS[:5])
    moved = run.folder.rename(run.folder.with_name("moved"))
    run.folder.mkdir()
    with pytest.raises(RunError, match="was replaced by another directory"):
        write(run)
    assert os.listdir(run.folder) == []
    assert len((moved / "rows.jsonl").read_text().splitlines()) == 5
