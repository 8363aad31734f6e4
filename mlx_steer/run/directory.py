"""The run directory: everything of one experiment, written so that nothing finished is lost.

Rows are appended, a batch at a time, and forced to disk; every other file is written under a
temporary name and renamed. One process at a time writes a run.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from mlx_steer.errors import RunError
from mlx_steer.files import json_line, problems, sync_folder, write_all, write_beside
from mlx_steer.run.records import FORMAT_VERSION, READABLE_FORMATS, record_json

_Kind = TypeVar("_Kind")
_Record = TypeVar("_Record", bound=BaseModel)

_LOCK = ".lock"
# Any one of these shows that a directory is a run; a config.yaml or a vectors folder may be
# anybody's.
MARKS = {"run.log", "rows.jsonl", "manifest.json"}
# A file before it is renamed, by the number of its process, and vectors folders likewise.
_PART = re.compile(r"\..+\.(\d+)\.part")
_HALF_SAVED = re.compile(r"\.vectors(_\w+)?\.[0-9a-f]{8}\.(new|old)")


class RunDirectory:
    """A run's files; use `RunDirectory.open` to write rows.

    Args:
        folder: The directory, which exists.
        identity: Device and inode of the locked directory: if another one stands in its place,
            nothing is written. None for a reader that adds derived files.

    Attributes:
        before_write: Told every file's name and what is to be written, before it is; may raise.
    """

    def __init__(self, folder: Path, identity: tuple[int, int] | None = None) -> None:
        """See the class."""
        self.folder = folder
        self._identity = identity
        self.before_write: Callable[[str, bytes], None] | None = None

    @staticmethod
    @contextmanager
    def open(folder: str | Path, *, fresh: bool = False) -> Iterator[RunDirectory]:
        """Make or continue a run, locked against other writers while the context lasts.

        Args:
            folder: The directory.
            fresh: Start over; a directory that exists is kept beside the new one.

        Raises:
            RunError: If another process writes the run, or the directory cannot be used.
        """
        folder = Path(folder)
        if folder.name in ("", ".."):
            folder = Path(os.path.abspath(folder))
        with _clear_errors(folder):
            has_run = _check_usable(folder, any_version=fresh)
            if fresh and has_run:
                with _locked(folder):
                    folder.rename(_free_name(folder))
            folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder) as identity:
            run = RunDirectory(folder, identity)
            run.log(f"opened by process {os.getpid()}")
            run._sweep_up()
            yield run

    def write(self, name: str, text: str) -> None:
        """Write a whole file: a reader sees the old one or the new one, never a part."""
        if self.before_write is not None:
            self.before_write(name, text.encode())
        with _clear_errors(self.folder), _uninterrupted():
            self._check_in_place()
            write_beside(self.folder / name, text.encode())

    def write_json(self, name: str, value: object) -> None:
        """Write a JSON file: sorted keys, indented, the same value the same bytes."""
        self.write(name, json_text(value))

    def write_record(self, name: str, record: BaseModel) -> None:
        """Write a record as a JSON file."""
        self.write_json(name, record_json(record))

    def read_record(self, name: str, kind: type[_Record]) -> _Record | None:
        """A record that an earlier start of the run wrote; None if it is missing or damaged."""
        try:
            return kind.model_validate_json((self.folder / name).read_bytes())
        except (OSError, ValidationError):
            return None

    def append(self, name: str, records: Iterable[BaseModel]) -> None:
        """Append JSON lines and force them to disk; each is there whole or not at all."""
        lines = "".join(json_line(record_json(record)) for record in records).encode()
        if not lines:
            return
        if self.before_write is not None:
            self.before_write(name, lines)
        path = self.folder / name
        with _clear_errors(self.folder), _uninterrupted():
            self._check_in_place()
            existed = path.exists()
            # Opened each time: a directory deleted meanwhile must be an error, not a lost write.
            before = _whole_length(path) if existed else 0
            try:
                write_all(path, lines, os.O_APPEND)
            except OSError:
                with contextlib.suppress(OSError):
                    os.truncate(path, before)
                raise
            if not existed:
                sync_folder(self.folder)

    def read(self, name: str, kind: type[_Record]) -> list[_Record]:
        """The records of a JSON-lines file; a torn last line is cut off, here and on disk.

        Raises:
            RunError: If a line is damaged or the file cannot be read.
        """
        path = self.folder / name
        with _clear_errors(self.folder), _uninterrupted():
            if not path.exists():
                return []
            data = path.read_bytes()
            whole = data.rfind(b"\n") + 1
            if whole < len(data):
                os.truncate(path, whole)
        return parse_lines(data[:whole], path, kind)

    def log(self, text: str) -> None:
        """Add a dated line to run.log, for people."""
        line = f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {text}\n"
        with _clear_errors(self.folder), _uninterrupted():
            self._check_in_place()
            write_all(self.folder / "run.log", line.encode(), os.O_APPEND, sync=False)

    def _check_in_place(self) -> None:
        if self._identity is not None and _identity(os.stat(self.folder)) != self._identity:
            raise RunError(
                f"{self.folder} was replaced by another directory while it was being written; "
                "run the same command again to go on with the one that is there now"
            )

    def _sweep_up(self) -> None:
        """Remove what processes that were killed have left half-written."""
        for path in self.folder.iterdir():
            part = _PART.fullmatch(path.name)
            if part and not _alive(int(part[1])):
                with contextlib.suppress(OSError):
                    path.unlink()
            elif _HALF_SAVED.fullmatch(path.name):
                shutil.rmtree(path, ignore_errors=True)


def parse_lines(data: bytes, path: Path, kind: type[_Kind]) -> list[_Kind]:
    """The records of a file of JSON lines.

    Raises:
        RunError: If a line is no such record; a run directory is not for editing by hand.
    """
    adapter = TypeAdapter(kind)
    records = []
    for number, line in enumerate(data.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            records.append(adapter.validate_json(line))
        except ValidationError as error:
            raise RunError(
                f"line {number} of {path} is damaged ({problems(error, kind)[0]}); remove that "
                "line and run the same experiment again, which makes what is missing"
            ) from error
    return records


def json_text(value: object) -> str:
    """A JSON file's text: sorted keys, indented, a newline at the end."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True, indent=2, allow_nan=False) + "\n"


def check_format(version: object, folder: Path, cure: str) -> None:
    """Refuse a run that another version of mlx-steer wrote.

    Args:
        version: The manifest's `format_version`.
        folder: The run directory.
        cure: What to do about it.

    Raises:
        RunError: If it is none that can be read.
    """
    if type(version) is not int or version not in READABLE_FORMATS:
        raise RunError(
            f"{folder} was written by another version of mlx-steer (format {str(version)[:20]}, "
            f"this is {FORMAT_VERSION}); {cure}"
        )


def _check_usable(folder: Path, any_version: bool) -> bool:
    """Whether the directory holds a run; raises RunError if it holds something else."""
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder} is a file, not a run directory; choose another --out")
    if not folder.is_dir():
        return False
    # Hidden files are a lock, parts, or a file manager's.
    names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    if not names:
        return False
    if not names & MARKS:
        raise RunError(f"{folder} holds other things than a run; choose another --out")
    try:
        manifest = json.loads((folder / "manifest.json").read_bytes())
        version = manifest.get("format_version")
    except (OSError, ValueError, AttributeError, RecursionError):
        return True  # it is written anew; rows are known by their keys, not by it
    if not any_version:
        check_format(version, folder, "use --fresh to start over beside it")
    return True


def _free_name(folder: Path) -> Path:
    stamp = time.strftime("%Y%m%d-%H%M%S")
    names = (
        folder.with_name(f"{folder.name}.{stamp}{s}")
        for s in ("", *map("-{}".format, range(1, 1000)))
    )
    return next(name for name in names if not name.exists())


@contextmanager
def _locked(folder: Path) -> Iterator[tuple[int, int]]:
    """The directory's identity, locked; the file says by whom, for the message of another."""
    # The system drops the lock with the process, however it dies: a stale one cannot exist.
    with _clear_errors(folder):
        handle = _lock_handle(folder)
    try:
        with _clear_errors(folder):
            os.truncate(handle, 0)
            os.pwrite(handle, f"process {os.getpid()}\n".encode(), 0)
            identity = _identity(os.stat(folder))
        yield identity
    finally:
        os.close(handle)


def _lock_handle(folder: Path) -> int:
    path = folder / _LOCK
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Since it was opened, the directory may have been moved away, lock and all.
            if _identity(os.stat(path)) == _identity(os.fstat(handle)):
                return handle
        except FileNotFoundError:
            pass  # moved away, and another one without a lock in its place, or none
        except BlockingIOError:
            owner = os.read(handle, 64).decode(errors="replace").strip() or "another process"
            os.close(handle)
            raise RunError(
                f"{folder} is being written by {owner}; wait for it, or choose another --out"
            ) from None
        except OSError:
            os.close(handle)
            raise
        os.close(handle)


@contextmanager
def _clear_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise RunError(
            f"{folder} was removed or renamed while it was being written ({error.filename}); "
            "run the same command again"
        ) from error
    except OSError as error:
        reason = error.strerror or type(error).__name__
        at = f" ({error.filename})" if error.filename else ""
        raise RunError(
            f"{folder} cannot be used: {reason}{at}; finished rows are safe, put that right and "
            "run the same command again, or choose another --out"
        ) from error
    except ValueError as error:  # a NUL in a path
        raise RunError(f"{str(folder)!r} is not a usable path: {error}") from error


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Hold Ctrl-C back until the block ends, so that it cannot tear a write."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the main thread's
        return
    held: list[int] = []
    before = signal.getsignal(signal.SIGINT)
    if before is None:  # not Python's; it could not be put back
        yield
        return
    signal.signal(signal.SIGINT, lambda number, _: held.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if held:
            signal.raise_signal(signal.SIGINT)


def _whole_length(path: Path) -> int:
    """The length of the file's whole lines; a torn last line is cut off."""
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - 1))
        if size == 0 or file.read(1) == b"\n":
            return size
        file.seek(0)
        whole = file.read().rfind(b"\n") + 1
    os.truncate(path, whole)
    return whole


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # somebody else's
        return True
    return process != os.getpid()
