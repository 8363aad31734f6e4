"""The gated activation as mlx-lm has it beside ours on x86 Linux; numpy tells the errors."""

from __future__ import annotations

from dataclasses import asdict

import click

import mlx_steer  # noqa: F401  (before mlx: it puts OpenBLAS in front of it)

# isort: split
import mlx.core as mx
import numpy as np
from measuring import Json, in_turn, publish, ratio
from mlx_lm.models.activations import swiglu

from mlx_steer.model.activation import by_power

WIDTH = 1536  # of SmolLM2's inner layers


@click.command()
@click.option("--pairs", default=40, show_default=True, help="Runs of each, in turn.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def main(pairs: int, as_json: bool) -> None:
    """Print mlx-lm's time over ours (1 is as fast), and the largest relative error of each."""
    faster, found = by_power(swiglu), list[Json]()
    table = [["rows", "speed over mlx-lm's", "its largest error", "ours"]]
    for rows in (4, 128, 1024):
        mx.random.seed(rows)
        gate, x = 3 * mx.random.normal((rows, WIDTH)), mx.random.normal((rows, WIDTH))
        mx.eval(gate, x)
        tasks = {
            "theirs": lambda gate=gate, x=x: mx.eval(swiglu(gate, x)),
            "ours": lambda gate=gate, x=x: mx.eval(faster(gate, x)),
        }
        in_turn(tasks, 3)
        seconds = in_turn(tasks, pairs)
        speed = ratio(seconds["theirs"], seconds["ours"])
        wide = np.array(gate, np.float64)
        exact = wide / (1 + np.exp(-wide)) * np.array(x, np.float64)
        errors = [
            float(np.max(np.abs(np.array(f(gate, x), np.float64) / exact - 1)))
            for f in (swiglu, faster)
        ]
        found.append({"rows": rows, "speed": asdict(speed), "errors": errors})
        table.append([str(rows), str(speed), *(f"{error:.1e}" for error in errors)])
    publish({"activation": found}, table, "python scripts/bench_activation.py", as_json)


if __name__ == "__main__":
    main()
