"""Kill a run with SIGKILL again and again, and compare what it ends with to an undisturbed run's.

The real command line runs the config in a directory of its own, is killed at random moments, and
goes on, until it is done; that is one round. Rows, metrics, scores and vectors must then be byte
for byte those of a run that nobody disturbed, and no row may stand there twice. What each process
told of its work says how many rows were under way, and so lost, at each kill.
"""

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import click

Json = dict[str, object]

EVERY = 200
# Growth that is none: allocators keep what they had, and the heap of Python is ragged.
SLACK, SLACK_BYTES = 1.05, 16e6
COMPARED = ("rows.jsonl", "scores.jsonl", "prices.jsonl", "metrics.json")


@dataclass
class Life:
    """One process: from its start to its kill or its end.

    Attributes:
        killed: Whether it was killed; else it ended by itself.
        seconds: How long it lived.
        stage: What it was doing at last; `start` is all before the first row, extraction too.
        finished: Rows it told of as generated.
        written: Rows it added to rows.jsonl.
        decoding: Rows that were being decoded when it was killed.
        tokens: Tokens it made.
        high_water: The most memory it had, in bytes.
        memory: (rows finished, MLX's active bytes, resident bytes) at every told step.
    """

    killed: bool = False
    seconds: float = 0.0
    stage: str = "start"
    finished: int = 0
    written: int = 0
    decoding: int = 0
    tokens: int = 0
    high_water: int = 0
    memory: list[tuple[int, int, int]] = field(default_factory=list, repr=False)


@dataclass(frozen=True)
class Round:
    """One run, killed until it was done.

    Attributes:
        lives: Its processes.
        rows: Rows at the end.
        twice: Row keys that stand more than once in rows.jsonl.
        lost: Rows that were finished on disk and then gone.
        different: Files that are not those of the undisturbed run.
    """

    lives: tuple[Life, ...]
    rows: int
    twice: int
    lost: int
    different: tuple[str, ...]

    @property
    def kills(self) -> int:
        """Processes that were killed."""
        return sum(life.killed for life in self.lives)


class Teller:
    """The progress of a process under watch: every step is a line of JSON on a pipe.

    Written at once and unbuffered, so that the last line is true at the moment of a kill.

    Args:
        handle: The pipe's file descriptor.
    """

    def __init__(self, handle: int) -> None:
        """Nothing done yet."""
        self._handle = handle
        self._stage, self._rows, self._tokens, self._decoding = "start", 0, 0, 0

    def stage(self, name: str, total: int, done: int) -> None:
        """A stage begins."""
        self._stage, self._decoding = name, 0
        self._write()

    def advance(self, units: int = 0, tokens: int = 0) -> None:
        """Rows were finished or tokens are made."""
        if self._stage in ("sweep", "compare", "controls"):
            self._rows += units
            self._decoding = tokens or self._decoding - units
        self._tokens += tokens
        self._write()

    def note(self, text: str) -> None:
        """For people, on standard error."""
        print(text, file=sys.stderr)

    def tell(self, text: str) -> None:
        """Nothing: the run's log has it."""

    def _write(self) -> None:
        import mlx.core as mx

        told = [self._stage, self._rows, self._tokens, self._decoding, mx.get_active_memory()]
        os.write(self._handle, json.dumps(told).encode() + b"\n")


def child(config: Path, out: Path, handle: int) -> None:
    """`mlx-steer run`, telling its steps to a pipe instead of a terminal."""
    from mlx_steer.cli import experiments, main

    @contextmanager
    def told(quiet: bool) -> Iterator[Teller]:
        yield Teller(handle)

    setattr(experiments, "progress", told)  # noqa: B010  (it exports none, to mypy)
    sys.argv = ["mlx-steer", "run", str(config), "--out", str(out), "--quiet"]
    main()


def live(config: Path, out: Path, seconds: float | None) -> Life:
    """Run a process until it ends, or for so many seconds and then kill it."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    before, start = len(lines_of(out / "rows.jsonl")), time.monotonic()
    process = subprocess.Popen(
        [sys.executable, __file__, "--config", str(config), "--out", str(out)],
        env={**os.environ, "SOAK_PIPE": str(writing)},
        pass_fds=(writing,),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writing)
    life, rest = Life(), b""
    resident = 0
    while process.poll() is None:
        if seconds is not None and time.monotonic() - start >= seconds:
            process.kill()
            life.killed = True
            break
        resident, peak = memory_of(process.pid)
        life.high_water = max(life.high_water, peak)
        rest = hear(life, reading, rest, resident)
        # Kills must not come only when this loop happens to look.
        left = 0.05 if seconds is None else seconds - (time.monotonic() - start)
        time.sleep(max(0.0, min(0.05, left)))
    said = process.communicate()[1]
    hear(life, reading, rest, resident)
    os.close(reading)
    life.seconds = time.monotonic() - start
    life.killed = life.killed and process.returncode == -9
    if not life.killed and process.returncode != 0:
        raise click.ClickException(f"the run ended with code {process.returncode}: {said.strip()}")
    life.written = len(lines_of(out / "rows.jsonl")) - before
    return life


def hear(life: Life, handle: int, rest: bytes, resident: int) -> bytes:
    """Take in what a process has told; gives back the part of a line."""
    while True:
        try:
            part = os.read(handle, 1 << 16)
        except BlockingIOError:
            return rest
        if not part:
            return rest
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            life.stage, life.finished, life.tokens, life.decoding, active = json.loads(line)
            if life.stage in ("sweep", "compare", "controls"):
                life.memory.append((life.finished, active, resident))


def memory_of(process: int) -> tuple[int, int]:
    """Resident bytes of a process, now and at most (as far as the system tells)."""
    status = Path(f"/proc/{process}/status")
    try:
        lines = dict(x.split(":", 1) for x in status.read_text().splitlines() if ":" in x)
        return tuple(int(lines[k].split()[0]) * 1024 for k in ("VmRSS", "VmHWM"))  # type: ignore
    except (OSError, KeyError):
        pass
    if status.parent.parent.is_dir() and Path("/proc/self").exists():
        return 0, 0  # it has just ended
    found = subprocess.run(["ps", "-o", "rss=", "-p", str(process)], capture_output=True, text=True)
    resident = int(found.stdout.strip() or 0) * 1024
    return resident, resident


def lines_of(path: Path) -> list[bytes]:
    """The whole lines of a file, which may not be there."""
    return path.read_bytes().split(b"\n")[:-1] if path.exists() else []


def key_of(line: bytes) -> str:
    """A row's key."""
    return str(json.loads(line)["key"])


def contents(folder: Path) -> dict[str, object]:
    """What must not depend on interruptions, by file name; lines in order."""
    found: dict[str, object] = {}
    for name in COMPARED:
        path = folder / name
        data = path.read_bytes() if path.exists() else None
        lines = name.endswith(".jsonl") and data is not None
        found[name] = sorted(lines_of(path)) if lines else data
    for path in sorted(folder.glob("vectors*/*")):
        found[str(path.relative_to(folder))] = path.read_bytes()
    return found


def kill_until_done(
    config: Path, out: Path, whole: Path, draw: Callable[[], float | None], say: Callable[..., None]
) -> Round:
    """Kill a run at moments that `draw` gives, until it gives none or the run is done."""
    lives: list[Life] = []
    held: list[bytes] = []
    lost = 0
    while True:
        life = live(config, out, draw())
        lives.append(life)
        now = lines_of(out / "rows.jsonl")
        lost += len(set(held) - set(now))
        held = now
        if not life.killed:
            break
        say(
            f"  killed after {life.seconds:.1f} s in {life.stage}: {life.written} rows written, "
            f"{life.decoding} under way, {len(now)} in all"
        )
    twice = sum(n - 1 for n in Counter(map(key_of, held)).values())
    found, expected = contents(out), contents(whole)
    names = sorted(found.keys() | expected.keys())
    different = tuple(n for n in names if found.get(n) != expected.get(n))
    return Round(tuple(lives), len(held), twice, lost, different)


def is_flat(values: list[float]) -> bool:
    """Whether the second half of a series never exceeds the first by more than some slack."""
    half = len(values) // 2
    return half == 0 or max(values[half:]) <= SLACK * max(values[:half]) + SLACK_BYTES


def soak(
    config: Path, out: Path, kills: int, minutes: float, seed: int, say: Callable[..., None]
) -> Json:
    """Rounds until the time is up; at least one."""
    rng, start = random.Random(seed), time.monotonic()
    whole = out / "undisturbed"
    say(f"An undisturbed run in {whole}")
    shutil.rmtree(whole, ignore_errors=True)
    reference = live(config, whole, None)
    rows = len(lines_of(whole / "rows.jsonl"))
    say(f"  {rows} rows in {reference.seconds:.0f} s, at most {reference.high_water / 1e9:.2f} GB")
    # Two such spells make a kill's share of the work, loading the model included.
    begin = loading_seconds(whole)
    spell = begin + max(0.0, reference.seconds - begin) / max(1, kills)
    rounds: list[Round] = []
    while not rounds or time.monotonic() - start < 60 * minutes:
        left = [kills if not minutes else sys.maxsize]

        def draw(left: list[int] = left) -> float | None:
            """Seconds to the next kill: any moment of a life may be the last."""
            late = bool(minutes) and time.monotonic() - start > 60 * minutes
            if left[0] == 0 or late:
                return None
            left[0] -= 1
            return rng.uniform(0, 2 * spell)

        folder = out / f"killed-{len(rounds) + 1}"
        say(f"Round {len(rounds) + 1} in {folder}")
        shutil.rmtree(folder, ignore_errors=True)
        rounds.append(kill_until_done(config, folder, whole, draw, say))
        last = rounds[-1]
        same = "same bytes" if not last.different else f"DIFFERENT: {', '.join(last.different)}"
        say(f"  done: {last.rows} rows, {last.kills} kills, {last.twice} twice, {same}")
    return summary(rounds, reference, rows, time.monotonic() - start)


def loading_seconds(folder: Path) -> float:
    """What loading the model took, by the run's manifest, and some for Python itself."""
    manifest = json.loads((folder / "manifest.json").read_text())
    return float(manifest["seconds"]["load"]) + 2.0


def summary(rounds: list[Round], reference: Life, rows: int, seconds: float) -> Json:
    """The verdict and what it rests on."""
    lives = [life for r in rounds for life in r.lives]
    kills = [life for life in lives if life.killed]
    made = sum(life.finished for life in lives)
    kept = sum(r.rows for r in rounds)
    long = [life for life in (reference, *lives) if life.finished >= EVERY]
    flat = {
        # None where no process lived long enough to tell.
        name: all(is_flat([float(m[at]) for m in life.memory]) for life in long) if long else None
        for name, at in (("mlx", 1), ("resident", 2))
    }
    sound = all(not r.different and not r.twice and not r.lost and r.rows == rows for r in rounds)
    return {
        "passed": sound and False not in flat.values(),
        "rounds": len(rounds),
        "kills": len(kills),
        "kills_by_stage": dict(Counter(life.stage for life in kills)),
        "processes": len(lives),
        "rows": kept,
        "rows_of_an_undisturbed_run": rows,
        "rows_standing_twice": sum(r.twice for r in rounds),
        "rows_lost_from_disk": sum(r.lost for r in rounds),
        "rows_under_way_at_kills": sum(life.decoding for life in kills),
        # Finished, and killed before the next write, at most some steps later.
        "rows_finished_but_not_yet_written": made - kept,
        "files_different": sorted({name for r in rounds for name in r.different}),
        "high_water_bytes": {
            "undisturbed": reference.high_water,
            "largest": max(life.high_water for life in lives),
            "median": sorted(life.high_water for life in lives)[len(lives) // 2],
        },
        "flat_over_long_processes": flat,
        "long_processes": len(long),
        "seconds": round(seconds, 1),
        "lives": [
            {k: v for k, v in asdict(life).items() if k != "memory"} for life in (reference, *lives)
        ],
    }


@click.command()
@click.option("--config", required=True, type=click.Path(path_type=Path, exists=True))
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    help="A folder for the runs, of its own.",
)
@click.option("--kills", default=20, show_default=True, help="Of a round.")
@click.option("--minutes", default=0.0, help="Rounds until the time is up; without it, one.")
@click.option("--seed", default=0, show_default=True, help="Of the moments of the kills.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON at the end.")
def main(config: Path, out: Path, kills: int, minutes: float, seed: int, as_json: bool) -> None:
    """Kill runs of a config and compare."""

    def say(text: str) -> None:
        click.echo(text, err=as_json)

    if "SOAK_PIPE" in os.environ:
        child(config, out, int(os.environ["SOAK_PIPE"]))
        return
    out.mkdir(parents=True, exist_ok=True)
    found = soak(config, out, kills, minutes, seed, say)
    (out / "soak.json").write_text(json.dumps(found, indent=2) + "\n")
    if as_json:
        click.echo(json.dumps(found, indent=2))
    say(f"{'PASSED' if found['passed'] else 'FAILED'}: {verdict(found)}")
    sys.exit(0 if found["passed"] else 1)


def verdict(found: Json) -> str:
    """One line for people."""
    return (
        f"{found['kills']} kills in {found['rounds']} rounds and {found['processes']} processes, "
        f"{found['rows']} rows; {found['rows_lost_from_disk']} lost, "
        f"{found['rows_standing_twice']} twice; {found['rows_under_way_at_kills']} under way and "
        f"{found['rows_finished_but_not_yet_written']} just finished at kills, made again; "
        f"different files: {found['files_different'] or 'none'}; memory flat: "
        f"{found['flat_over_long_processes']} over {found['long_processes']} long processes"
    )


if __name__ == "__main__":
    main()
