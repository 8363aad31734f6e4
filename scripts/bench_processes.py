"""What do several processes of one machine gain over one (`mlx-steer run --processes`)?

The run of one process, with all cores to itself, and that of several are made one after the other
in OUT, from nothing; their files are compared. For a machine without a GPU.
"""

import json
import subprocess
import sys
from pathlib import Path

import click
from bench_ranks import compared
from measuring import publish


def make(config: Path, run: Path, processes: str) -> dict[str, float]:
    """Make a run; the seconds of its parts."""
    command = [Path(sys.executable).parent / "mlx-steer", "run", config, "--out", run, "--fresh"]
    subprocess.run([*map(str, command), "--processes", processes], check=True)
    found: dict[str, float] = json.loads((run / "manifest.json").read_text())["seconds"]
    return found


@click.command()
@click.argument("config", type=click.Path(path_type=Path, exists=True))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--processes", default="auto", show_default=True, help="As of mlx-steer run.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def main(config: Path, out: Path, processes: str, as_json: bool) -> None:
    """Make CONFIG's run in both ways; see the module."""
    runs = {n: out / f"processes_{n}" / config.stem for n in ("1", processes)}
    one, several = (make(config, run, n) for n, run in runs.items())
    parts = {name: (one[name], several[name]) for name in one}
    parts["all"] = sum(one.values()), sum(several.values())
    rows = [("part", "seconds of one process", f"of {processes}", "ratio")]
    for name, (before, after) in parts.items():
        rows.append((name, f"{before:.1f}", f"{after:.1f}", f"{after / before:.2f}"))
    files = compared(runs["1"], runs[processes])
    result = {"seconds": parts, "files": files}
    publish(result, rows, "python scripts/bench_processes.py CONFIG OUT", as_json)
    click.echo(files, err=True)


if __name__ == "__main__":
    main()
