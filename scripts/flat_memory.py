"""Send many rows through the engine in one process, and see whether its memory stays level.

The rows are prompts of a config's behavior under small random vectors; memory is read every 200.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click

import mlx_steer  # noqa: F401  (before mlx: it puts OpenBLAS in front of it)

# isort: split
import mlx.core as mx
import numpy as np
from soak import EVERY, Json, is_flat, memory_of

from mlx_steer.behaviors.two_sentences import behavior_of
from mlx_steer.conditions import Condition, Intervention
from mlx_steer.config import load_config
from mlx_steer.engine.complete import completions
from mlx_steer.engine.guard import load_model
from mlx_steer.engine.jobs import Job, Sampling
from mlx_steer.experiment.plan import batch_for


def flat_rows(config: Path, rows: int, say: Callable[..., None]) -> Json:
    """Generate so many rows in this process, in one call, and read memory on the way."""
    experiment = load_config(config)
    behavior = behavior_of(experiment.behavior)
    settings = experiment.model.model_dump()
    model = load_model(settings.pop("name"), **settings)
    batch = batch_for(experiment, behavior, model).rows
    rng = np.random.default_rng(experiment.statistics.seed)
    layers = range(0, model.num_layers, max(1, model.num_layers // 4))
    # Small random vectors: what is measured is memory, not behavior.
    vectors = [(k, rng.standard_normal(model.hidden_size).astype(np.float32)) for k in layers]
    chosen = [
        Condition("base"),
        *(Condition(f"layer {k}", None, (Intervention(k, v, 0.05),)) for k, v in vectors),
    ]
    prompts = behavior.prompts
    jobs = [
        # Numbered, so that every prompt is another one.
        Job(str(i), tuple(model.chat.prompt_ids(f"{i}. {prompts[i % len(prompts)].prompt}")), c)
        for i in range(0, rows, len(chosen))
        for c in chosen[: rows - i]
    ]
    jobs = [Job(str(i), job.ids, job.condition) for i, job in enumerate(jobs)]
    done, points, start = 0, list[Json](), time.monotonic()
    for _ in completions(model, jobs, Sampling(experiment.generation.max_tokens), batch):
        done += 1
        if done % EVERY == 0:
            resident, peak = memory_of(os.getpid())
            active = mx.get_active_memory()
            points.append({"rows": done, "active": active, "resident": resident, "high": peak})
            say(
                f"  {done} rows, {time.monotonic() - start:.0f} s: MLX {active / 1e9:.3f} GB, "
                f"resident {resident / 1e9:.3f} GB, at most {peak / 1e9:.3f} GB"
            )
    series = {n: [float(str(p[n])) for p in points] for n in ("active", "resident")}
    flat = {name: is_flat(values) for name, values in series.items()}
    return {"passed": all(flat.values()) and done == rows, "rows": done, "batch_size": batch,
            "flat": flat, "points": points}  # fmt: skip


@click.command()
@click.option("--config", required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--rows", default=2000, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON at the end.")
def main(config: Path, rows: int, as_json: bool) -> None:
    """Watch the memory of many rows."""

    def say(text: str) -> None:
        click.echo(text, err=as_json)

    found = flat_rows(config, rows, say)
    if as_json:
        click.echo(json.dumps(found, indent=2))
    passed = "PASSED" if found["passed"] else "FAILED"
    say(f"{passed}: {found['rows']} rows, memory flat: {found['flat']}")
    sys.exit(0 if found["passed"] else 1)


if __name__ == "__main__":
    main()
