"""How time and peak memory grow: with rows, batch size, layers of the sweep, and prompt length.

Each series changes one thing. What should grow in step with it is given per unit, so that a column
that stays level means growth no faster than the work.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import click

import mlx_steer  # noqa: F401  (before mlx: it puts OpenBLAS in front of it)

# isort: split
import mlx.core as mx
import numpy as np
from measuring import Json, machine, publish

from mlx_steer.conditions import Condition, Intervention
from mlx_steer.engine.complete import complete
from mlx_steer.engine.guard import load_model
from mlx_steer.engine.jobs import Job, Sampling
from mlx_steer.model.load import Model

HEAD_TOKENS = 20


@dataclass(frozen=True)
class Point:
    """One measurement.

    Attributes:
        size: What the series changes.
        seconds: Of generating all rows.
        peak: Bytes on top of the weights.
        units: What the time is divided by: rows, or thousands of prompt tokens.
    """

    size: int
    seconds: float
    peak: int
    units: float


@dataclass(frozen=True)
class Series:
    """Measurements along one axis."""

    title: str
    axis: str
    unit: str
    points: tuple[Point, ...]


def jobs_of(model: Model, prompts: int, own_tokens: int, chosen: Sequence[Condition]) -> list[Job]:
    """So many random prompts with a shared head, under every condition."""
    rng, size = np.random.default_rng(2), int(model.config["vocab_size"])
    head = rng.integers(10, size, HEAD_TOKENS).tolist()
    ids = [tuple(head + rng.integers(10, size, own_tokens).tolist()) for _ in range(prompts)]
    return [Job(f"{i} {c.name}", p, c) for i, p in enumerate(ids) for c in chosen]


def cells(model: Model, layers: Sequence[int], strengths: Sequence[float]) -> list[Condition]:
    """Base and every layer at every strength, with small random vectors."""
    made = [Condition("base")]
    for layer in layers:
        drawn = np.random.default_rng(layer).standard_normal(model.hidden_size)
        vector = (drawn / 50).astype(np.float32)
        made += [Condition(f"{layer} {s}", None, (Intervention(layer, vector, s),))
                 for s in strengths]  # fmt: skip
    return made


def measure(
    model: Model, size: int, jobs: list[Job], tokens: int, batch: int, units: float
) -> Point:
    mx.clear_cache()
    weights = mx.get_active_memory()
    mx.reset_peak_memory()
    start = time.perf_counter()
    complete(model, jobs, Sampling(tokens), batch)
    return Point(size, time.perf_counter() - start, mx.get_peak_memory() - weights, units)


def by_rows(model: Model, sizes: Sequence[int]) -> Series:
    chosen = cells(model, [model.num_layers // 2], [0.1 * i for i in range(1, 10)])
    points = []
    for size in sizes:
        jobs = jobs_of(model, max(1, size // len(chosen)), 8, chosen)
        points.append(measure(model, size, jobs, 2, 64, len(jobs)))
    return Series("Rows of an experiment", "rows", "row", tuple(points))


def by_batch(model: Model, sizes: Sequence[int]) -> Series:
    chosen = cells(model, [model.num_layers // 2], [0.5, 1.0, 1.5])
    jobs = jobs_of(model, max(1, max(sizes) // len(chosen)), 8, chosen)
    points = [measure(model, size, jobs, 4, size, len(jobs)) for size in sizes]
    return Series("Rows decoded at a time", "batch size", "row", tuple(points))


def by_layers(model: Model, sizes: Sequence[int]) -> Series:
    points = []
    for size in sizes:
        layers = np.linspace(0, model.num_layers - 1, min(size, model.num_layers)).astype(int)
        jobs = jobs_of(model, 6, 24, cells(model, sorted(set(layers.tolist())), [1.0]))
        points.append(measure(model, size, jobs, 4, 64, len(jobs)))
    return Series("Layers of the sweep", "layers", "row", tuple(points))


def by_length(model: Model, sizes: Sequence[int]) -> Series:
    chosen = cells(model, [model.num_layers // 2], [0.5, 1.0])
    points = []
    for size in sizes:
        jobs = jobs_of(model, 1, max(1, size - HEAD_TOKENS), chosen)
        points.append(measure(model, size, jobs, 4, 64, size / 1000))
    return Series("Length of the prompts", "tokens", "1,000 tokens", tuple(points))


def plot(series: Sequence[Series], path: Path, about: str) -> None:
    """One page: time above, memory below."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, len(series), figsize=(4 * len(series), 7))
    for column, one in enumerate(series):
        sizes = [p.size for p in one.points]
        lines = ([p.seconds for p in one.points], [p.peak / 1e9 for p in one.points])
        for axis, values, label in zip(axes[:, column], lines, ("seconds", "GB"), strict=True):
            axis.plot(sizes, values, "o-", color="#2a6f97")
            # The dotted line grows in step with the axis from the first point on.
            first = values[0] / sizes[0]
            axis.plot(sizes, [first * s for s in sizes], ":", color="#888888")
            axis.set(xscale="log", yscale="log", xlabel=one.axis)
            axis.set_xticks(sizes, [f"{s:,}" for s in sizes], rotation=45)
            axis.set_ylabel(label if column == 0 else "")
            axis.minorticks_off()
            axis.grid(alpha=0.3)
        axes[0, column].set_title(one.title)
    figure.suptitle(f"Time and peak memory beyond the weights. {about}", fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


@click.command()
@click.option("--model", "name", default="smollm2-135m", show_default=True)
@click.option("--quick", is_flag=True, help="A few small sizes of each, in less than a minute.")
@click.option("--plot", "path", type=click.Path(path_type=Path), default=Path("growth.png"),
              show_default=True, help="The page of plots.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def main(name: str, quick: bool, path: Path, as_json: bool) -> None:
    """Measure growth along four axes; print a table and write a page of plots."""
    model = load_model(name)
    most = model.num_layers
    limit = min(2048, (model.context or 4096) - 8)
    complete(model, jobs_of(model, 2, 8, cells(model, [1], [1.0])), Sampling(2))  # warms up
    series = (
        by_rows(model, (20, 40, 80) if quick else (100, 400, 1600, 3200)),
        by_batch(model, (1, 4, 16) if quick else (1, 4, 16, 64, 128)),
        by_layers(model, (1, 2, 4) if quick else sorted({1, 2, 5, 10, 20, most})),
        by_length(model, (32, 64, 128) if quick else sorted({32, 128, 512, limit})),
    )
    about = machine()
    device = "Metal" if about["metal"] else "CPU figures"
    plot(series, path, f"{name}, {about['device']} ({device}), {about['date']}")
    rows = [["series", "size", "seconds", "seconds per", "peak beyond weights"]]
    for one in series:
        rows += [
            [one.title, f"{p.size:,}", f"{p.seconds:.2f}", f"{p.seconds / p.units:.3f} {one.unit}",
             f"{p.peak / 1e9:.3f} GB"]
            for p in one.points
        ]  # fmt: skip
    result: Json = {"model": name, "quick": quick, "series": [asdict(s) for s in series]}
    publish(result, rows, f"python scripts/bench_growth.py --plot {path.name}", as_json)


if __name__ == "__main__":
    main()
