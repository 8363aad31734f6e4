"""Are rows over ranks those of one process, after kills too, and what do the ranks wait and send?

Every process has one core and one thread. The run over ranks is begun, killed and begun again as
often as is asked for; it and the run of one process lie in OUT and go on where they were left.
"""

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import click

RANKED = (
    "import os; os.sched_setaffinity(0, {int(os.environ.get('MLX_RANK', 0)) % os.cpu_count()}); "
    "from mlx_steer.cli import main; main()"
)
# Files that hold times, or the run's own place.
APART = ("config.yaml", "manifest.json", "run.log", "report.md", "report.html")
WAITED = re.compile(r"(\w+): of ([\d.]+) s rank (\d+) waited ([\d.]+), sent (\d+) bytes")


def start(config: Path, run: Path, ranks: int) -> subprocess.Popen[bytes]:
    """Begin a run, or go on with it."""
    command = [sys.executable, "-c", RANKED, "run", str(config), "--out", str(run)]
    if ranks > 1:
        launcher = Path(sys.executable).parent / "mlx.launch"
        command = [str(launcher), "-n", str(ranks), "--backend", "ring", "--", *command]
    run.parent.mkdir(parents=True, exist_ok=True)
    said = (run.parent / "said.txt").open("ab")
    begun = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=said,
        stderr=said,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        start_new_session=True,
    )
    if ranks > 1:
        while len(ranks_of(begun.pid)) < ranks and begun.poll() is None:
            time.sleep(0.01)
        # mlx.launch asks without a pause whether ranks take input: here that would take a core.
        for thread in Path(f"/proc/{begun.pid}/task").iterdir():
            os.setpriority(os.PRIO_PROCESS, int(thread.name), 19)
    return begun


def ranks_of(launcher: int) -> list[int]:
    """The processes that a launcher has started."""
    files = Path(f"/proc/{launcher}/task").glob("*/children")
    return sorted({int(number) for file in files for number in file.read_text().split()})


def content(run: Path) -> dict[str, object]:
    """Everything that must be the same; lines of rows and scores in any order."""
    found: dict[str, object] = {}
    for path in sorted(run.rglob("*")):
        name = str(path.relative_to(run))
        if path.is_dir() or name.startswith(".") or name in APART or path.suffix == ".png":
            continue
        data = path.read_bytes()
        found[name] = sorted(data.splitlines()) if path.suffix == ".jsonl" else data
    return found


def rows_in(run: Path) -> int:
    """Rows that are on disk."""
    path = run / "rows.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


@click.command()
@click.argument("config", type=click.Path(path_type=Path, exists=True))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--alone", is_flag=True, help="Make the run of one process.")
@click.option("--ranks", default=0, help="Make the run over so many ranks, to its end.")
@click.option("--kills", default=0, help="Kill a rank of two so many times, and begin again.")
@click.option("--killed", "go_on", is_flag=True, help="With --ranks: of the run that was killed.")
@click.option("--most-seconds", default=30.0, help="Before a kill.")
@click.option("--seed", default=0)
def main(
    config: Path, out: Path, alone: bool, ranks: int, go_on: bool, kills: int, **how: float
) -> None:
    """Make the runs of CONFIG in OUT and compare them; see the module."""
    one = out / "alone" / config.stem
    if alone:
        begun = time.perf_counter()
        start(config, one, 1).wait()
        click.echo(f"one process: {rows_in(one)} rows in {time.perf_counter() - begun:.1f} s")
    killed = out / "killed" / config.stem
    draw = random.Random(how["seed"])
    for number in range(kills):
        launcher = start(config, killed, 2)
        time.sleep(draw.uniform(3, how["most_seconds"]))
        which, here = draw.randrange(2), ranks_of(launcher.pid)
        if len(here) < 2:
            click.echo("it had ended before")
            launcher.wait()
            break
        os.kill(here[which], signal.SIGKILL)
        end = time.perf_counter()
        launcher.wait(60)
        click.echo(
            f"kill {number + 1}: rank {which}; the other ended {time.perf_counter() - end:.1f} "
            f"s later; {rows_in(killed)} rows kept"
        )
    if ranks:
        many = killed if go_on or kills else out / f"over_{ranks}" / config.stem
        begun = time.perf_counter()
        start(config, many, ranks).wait()
        click.echo(f"{ranks} ranks: {rows_in(many)} rows, {time.perf_counter() - begun:.1f} s")
        _compare(one, many)


def compared(one: Path, many: Path) -> str:
    """Which files of two runs are unlike, as a sentence."""
    found, wanted = content(many), content(one)
    unlike = sorted(n for n in found.keys() | wanted.keys() if found.get(n) != wanted.get(n))
    return f"{len(wanted)} files compared; unlike: {', '.join(unlike) or 'none'}"


def _compare(one: Path, many: Path) -> None:
    click.echo(compared(one, many))
    for part, spent, rank, waited, sent in WAITED.findall((many / "run.log").read_text()):
        share = 100 * float(waited) / max(float(spent), 1e-9)
        click.echo(
            f"{part}: {spent} s; rank {rank} waited {waited} s ({share:.1f} %), {sent} bytes"
        )


if __name__ == "__main__":
    main()
