from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_steer.errors import RunError
from mlx_steer.files import json_line
from mlx_steer.run.directory import RunDirectory, json_text, parse_lines
from mlx_steer.run.records import Row, Score, record_json
from tests.run.conftest import ROWS, WRITES, full_disk, line

# --- rows ----------------------------------------------------------------------------------------


def test_rows_come_back_as_they_were_appended(run: RunDirectory) -> None:
    run.append("rows.jsonl", ROWS[:3])
    run.append("rows.jsonl", [])
    run.append("rows.jsonl", ROWS[3:])
    assert run.read("rows.jsonl", Row) == ROWS


def test_a_run_without_rows_has_none(run: RunDirectory) -> None:
    assert run.read("rows.jsonl", Row) == []


def test_a_torn_last_line_is_cut_off_at_every_length(run: RunDirectory) -> None:
    path = run.folder / "rows.jsonl"
    whole, last = line(ROWS[0]).encode(), line(ROWS[1]).encode()
    for length in range(len(last)):
        path.write_bytes(whole + last[:length])
        assert run.read("rows.jsonl", Row) == ROWS[:1]
        assert path.read_bytes() == whole


def test_rows_appended_after_a_torn_line_are_whole(run: RunDirectory) -> None:
    path = run.folder / "rows.jsonl"
    path.write_bytes(line(ROWS[0]).encode() + b'{"key": "half')
    run.append("rows.jsonl", ROWS[1:3])
    assert run.read("rows.jsonl", Row) == ROWS[:3]


def test_a_file_of_one_torn_line_becomes_empty(run: RunDirectory) -> None:
    (run.folder / "rows.jsonl").write_bytes(b"\0" * 4096)  # what a power cut may leave
    run.append("rows.jsonl", ROWS[:1])
    assert run.read("rows.jsonl", Row) == ROWS[:1]


@pytest.mark.parametrize("bad", [b"{", b"5", b"[]", b"{}", b'{"key": 5}', b"\xff", b"[" * 9999])
def test_a_damaged_line_is_named(run: RunDirectory, bad: bytes) -> None:
    good = line(ROWS[0]).encode()
    (run.folder / "rows.jsonl").write_bytes(good + bad + b"\n" + good)
    with pytest.raises(RunError, match=r"line 2 of .*rows\.jsonl is damaged .*; remove that line"):
        run.read("rows.jsonl", Row)


@pytest.mark.parametrize("tokens", ["ab", [-1], [True], [1.0], ["a"], [2**40], {}, None])
def test_tokens_that_are_none_are_damage(run: RunDirectory, tokens: Any) -> None:
    (run.folder / "rows.jsonl").write_text(json_line({**record_json(ROWS[0]), "tokens": tokens}))
    with pytest.raises(RunError, match=r"line 1 .*tokens"):
        run.read("rows.jsonl", Row)


def test_an_empty_line_is_no_damage(run: RunDirectory) -> None:
    good = line(ROWS[0])
    (run.folder / "rows.jsonl").write_text(f"{good}\n  \n{good}")
    assert run.read("rows.jsonl", Row) == [ROWS[0], ROWS[0]]


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), _JSON, max_size=4))
def test_a_record_is_one_line_whatever_it_holds(record: dict[str, Any]) -> None:
    # Infinity is no JSON.
    text = repr(record)
    if "inf" in text and any(isinstance(v, float) for v in record.values()):
        record = {k: v for k, v in record.items() if not isinstance(v, float)}
    try:
        line = json_line(record)
    except ValueError:
        return
    assert line.endswith("\n")
    assert len(line.splitlines()) == 1
    assert json.loads(line) == record


@given(st.binary(max_size=200))
def test_any_bytes_are_read_as_records_or_refused(data: bytes) -> None:
    try:
        records = parse_lines(data, Path("scores.jsonl"), Score)
    except RunError:
        return
    assert all(isinstance(record.key, str) for record in records)


# --- whole files ---------------------------------------------------------------------------------


def test_a_file_is_the_old_one_until_the_new_one_is_whole(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.write("report.md", "old")
    seen: list[str] = []
    fsync = os.fsync

    def watched(handle: int) -> None:
        seen.append((run.folder / "report.md").read_text())
        fsync(handle)

    monkeypatch.setattr(os, "fsync", watched)
    run.write("report.md", "new")
    assert seen[0] == "old"
    assert (run.folder / "report.md").read_text() == "new"


def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.write("report.md", "old")
    before = sorted(os.listdir(run.folder))
    with full_disk(monkeypatch, after=2), pytest.raises(RunError, match="No space left"):
        run.write("report.md", "a longer text")
    assert (run.folder / "report.md").read_text() == "old"
    assert sorted(os.listdir(run.folder)) == before


def test_json_text_is_the_same_for_the_same_value() -> None:
    assert json_text({"b": 1, "a": [1.5, "é"]}) == json_text({"a": [1.5, "é"], "b": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        json_text(float("nan"))


@pytest.mark.parametrize("content", [None, "", "[]", "{", "\0", "[" * 9999])
def test_bookkeeping_that_is_damaged_counts_as_none(run: RunDirectory, content: str | None) -> None:
    if content is not None:
        (run.folder / "book.json").write_text(content)
    assert run.read_record("book.json", Score) is None
    run.write_record("book.json", Score(key="a"))
    assert run.read_record("book.json", Score) == Score(key="a")


# --- one writer ----------------------------------------------------------------------------------

_HOLD = """
import sys
from mlx_steer.run.directory import RunDirectory
with RunDirectory.open(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def _another_writer(folder: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("fresh", [False, True])
def test_a_second_writer_is_told_who_writes(tmp_path: Path, fresh: bool) -> None:
    folder = tmp_path / "run"
    with _another_writer(folder) as other:
        with (
            pytest.raises(RunError, match=f"is being written by process {other.pid}; wait"),
            RunDirectory.open(folder, fresh=fresh),
        ):
            pass
        assert os.listdir(tmp_path) == ["run"]
        other.send_signal(signal.SIGKILL)
        other.wait()
        # The lock of a process that was killed holds nobody up, though its file is still there.
        assert (folder / ".lock").read_text() == f"process {other.pid}\n"
        with RunDirectory.open(folder, fresh=fresh):
            assert (folder / ".lock").read_text() == f"process {os.getpid()}\n"


def test_a_lock_on_a_directory_that_was_moved_away_is_not_taken_for_one_on_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    folder, flock = tmp_path / "run", fcntl.flock
    with RunDirectory.open(folder):
        pass
    moved: list[Path] = []

    def slow(handle: int, how: int) -> None:
        if not moved:  # another process starts over between our opening the lock and taking it
            moved.append(folder.rename(tmp_path / "old"))
            folder.mkdir()
        flock(handle, how)

    monkeypatch.setattr(fcntl, "flock", slow)
    with RunDirectory.open(folder) as run:
        run.append("rows.jsonl", ROWS[:1])
        assert (folder / ".lock").read_text() == f"process {os.getpid()}\n"
    assert not (tmp_path / "old" / "rows.jsonl").exists()


def test_half_written_files_of_dead_processes_are_swept_up(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with RunDirectory.open(folder) as run:
        run.write("report.md", "whole")
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for name in (f".report.md.{dead.pid}.part", f".x.{10**30}.part", f".rows.{os.getpid()}.part"):
        (folder / name).write_text("half")
    (folder / ".vectors.0123abcd.new").mkdir()
    (folder / ".vectors_shuffled.0123abcd.old").mkdir()
    (folder / f".report.md.{os.getppid()}.part").write_text("being written")
    with RunDirectory.open(folder):
        left = sorted(os.listdir(folder))
    assert left == sorted([f".report.md.{os.getppid()}.part", ".lock", "report.md", "run.log"])


# --- Ctrl-C --------------------------------------------------------------------------------------


@pytest.fixture
def interruptible() -> Iterator[None]:
    """A shell that started the tests in the background has SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("write", WRITES)
def test_ctrl_c_waits_for_the_end_of_a_write(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, write: Callable[[RunDirectory], None]
) -> None:
    real = os.write

    def interrupted(handle: int, data: Any) -> int:
        done = real(handle, bytes(data)[:7])
        signal.raise_signal(signal.SIGINT)
        return done

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(os, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(run)
    monkeypatch.undo()
    assert signal.getsignal(signal.SIGINT) is before
    for name in ("rows.jsonl", "run.log"):
        path = run.folder / name
        assert not path.exists() or path.read_text().endswith("\n")
    assert run.read("rows.jsonl", Row) in ([], ROWS[5:6])
    assert not list(run.folder.glob("*.part"))


# --- opening -------------------------------------------------------------------------------------


def test_fresh_keeps_the_old_directory_beside_the_new_one(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    for number in range(3):
        with RunDirectory.open(folder, fresh=True) as run:
            assert run.read("rows.jsonl", Row) == []
            run.append("rows.jsonl", ROWS[number : number + 1])
    kept = sorted(path for path in tmp_path.iterdir() if path != folder)
    assert len(kept) == 2
    texts = {(path / "rows.jsonl").read_text() for path in kept}
    assert texts == {line(row) for row in ROWS[:2]}


@pytest.mark.parametrize("name", [".", "../run", "..", "sub/.."])
def test_fresh_works_on_the_directory_one_is_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    folder = tmp_path / "run"
    with RunDirectory.open(folder) as run:
        run.append("rows.jsonl", ROWS)
    (folder / "sub").mkdir()
    monkeypatch.chdir(folder / "sub" if name == ".." else folder)
    with RunDirectory.open(name, fresh=True) as run:
        assert run.read("rows.jsonl", Row) == []
    assert len([path for path in tmp_path.iterdir() if path.name.startswith("run.")]) == 1
    assert not (folder / "rows.jsonl").exists()


def test_an_empty_directory_may_become_a_run(tmp_path: Path) -> None:
    (tmp_path / ".DS_Store").write_text("")
    for fresh in (False, True):
        with RunDirectory.open(tmp_path, fresh=fresh):
            pass


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("name", ["config.yaml", "vectors", "thesis.tex", "metrics.json"])
def test_a_directory_with_other_things_is_left_alone(
    tmp_path: Path, name: str, fresh: bool
) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / name).write_text("mine")
    with (
        pytest.raises(RunError, match="holds other things than a run; choose another --out"),
        RunDirectory.open(tmp_path / "home", fresh=fresh),
    ):
        pass
    assert os.listdir(tmp_path / "home") == [name]


@pytest.mark.parametrize("manifest", [b"", b"{", b"[]", b"5", b"\xff", b"[" * 9999])
def test_a_damaged_manifest_does_not_keep_a_run_from_going_on(
    tmp_path: Path, manifest: bytes
) -> None:
    (tmp_path / "manifest.json").write_bytes(manifest)
    with RunDirectory.open(tmp_path):
        pass


def test_a_run_of_another_version_is_left_alone_unless_one_starts_over(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "manifest.json").write_text('{"format_version": 3}')
    with pytest.raises(RunError, match=r"format 3, this is 2.*--fresh"), RunDirectory.open(folder):
        pass
    with RunDirectory.open(folder, fresh=True):
        assert not (folder / "manifest.json").exists()


@pytest.mark.parametrize("name", ["a\0b", "x" * 300])
def test_a_name_that_is_no_path_is_an_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(RunError), RunDirectory.open(tmp_path / name):
        pass
