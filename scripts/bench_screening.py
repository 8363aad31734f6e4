"""Does screening by first-token odds find the cells that decoding finds, and what does it save?

Reads the decoded rows of a run (or decodes a small grid), screens the same cells on the same
prompts, and compares the two.
"""

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import click

import mlx_steer  # noqa: F401  (before mlx: it puts OpenBLAS in front of it)

# isort: split
from measuring import Json, Silent, publish
from scipy.stats import spearmanr

from mlx_steer.bands import layers_of
from mlx_steer.behaviors import load_behavior
from mlx_steer.conditions import Condition
from mlx_steer.config import parse_config
from mlx_steer.engine.guard import load_model
from mlx_steer.engine.jobs import Job
from mlx_steer.engine.screening import opening_tokens, screen
from mlx_steer.errors import SteerError
from mlx_steer.experiment import condition_sets as design
from mlx_steer.experiment.execute import run_experiment
from mlx_steer.experiment.leans import lean, screening_rank
from mlx_steer.experiment.rows import prompt_ids
from mlx_steer.metrics import Cell, cell_of, choose_cell, judged
from mlx_steer.model.load import Model
from mlx_steer.run.directory import RunDirectory
from mlx_steer.run.reader import RunData, load_run
from mlx_steer.run.screened import Lean

LAYERS, STRENGTHS = "9,12,15,18", "0.5,1.0,1.5"


def decode(folder: Path, name: str, layers: str, strengths: str, prompts: int, tokens: int) -> None:
    """Run a whole sweep, unscreened."""
    values = {
        "name": "screening",
        "model": {"name": name},
        "extract": {"layers": [int(part) for part in layers.split(",")]},
        "sweep": {"strengths": [float(part) for part in strengths.split(",")],
                  "system_prompts": []},
        "generation": {"max_tokens": tokens},
        "prompts_per_set": prompts,
    }  # fmt: skip
    config = parse_config(values, "the benchmark")
    with RunDirectory.open(folder) as run:
        run_experiment(config, run, Silent(), compare=False)


def conditions_of(run: RunData) -> list[Condition]:
    """The run's base and plain steering cells, those that have decoded select rows."""
    vectors, made = run.vectors, [design.BASE]
    if vectors is None:
        raise click.ClickException(f"{run.folder} has no vectors")
    for record in run.conditions:
        if record.kind == "steering" and record.layer is not None and record.strength is not None:
            own = [vectors[layer] for layer in layers_of(record.layer)]
            cell = design.steering(own, record.strength, run.behavior.name)
            if any(run.prompts[p].split == "select" for p in record.rows):
                made.append(cell)
    return made


def screened(
    model: Model, run: RunData, chosen: Sequence[Condition]
) -> tuple[dict[str, Lean], float]:
    """Each cell's lean before decoding, and the seconds it took."""
    items = [p for p in run.prompts.values() if p.split == "select" and p.set != "borderline"]
    done = set(run.condition(design.BASE.name).rows)
    items = [p for p in items if p.id in done]
    behavior = load_behavior(run.config.behavior)
    shown, _ = opening_tokens(model, behavior)
    names: dict[str, tuple[str, str]] = {}
    jobs: list[Job] = []
    for item in items:
        for condition in chosen:
            key = str(len(jobs))
            names[key] = (condition.name, item.id)
            jobs.append(Job(key, prompt_ids(model, item, None), condition))
    start = time.perf_counter()
    scores = screen(model, jobs, shown)
    seconds = time.perf_counter() - start
    odds: dict[str, dict[str, float]] = {c.name: {} for c in chosen}
    for key, value in scores.items():
        name, prompt_id = names[key]
        odds[name][prompt_id] = value
    sets = {p.id: p.set for p in items}
    return {name: lean(values, sets) for name, values in odds.items()}, seconds


def agreement(cells: Sequence[Cell], leans: Mapping[str, Lean], order: Sequence[str]) -> Json:
    """Spearman's correlation of several screens with the decoded rate and gap."""
    screens: dict[str, Callable[[Cell], float]] = {
        "the rank that is used": lambda c: -order.index(c.condition),
        "target log-odds": lambda c: leans[c.condition].target_log_odds,
        "target minus other log-odds": lambda c: (
            leans[c.condition].target_log_odds - leans[c.condition].other_log_odds
        ),
        "target minus other probability": lambda c: (
            leans[c.condition].target - leans[c.condition].other
        ),
    }
    rates = [c.target.value for c in cells]
    gaps = [c.target.value - c.false_positive.value for c in cells]
    return {
        name: {
            "with the target rate": float(spearmanr([value(c) for c in cells], rates).statistic),
            "with the gap": float(spearmanr([value(c) for c in cells], gaps).statistic),
        }
        for name, value in screens.items()
    }


def tell(result: Json, keep: int) -> None:
    """Print what is not in the table."""
    best, seconds = result["chosen_of_all"], result["seconds"]
    for screen_name, values in result["spearman"].items():
        parts = ", ".join(f"{value:+.2f} {what}" for what, value in values.items())
        click.echo(f"Spearman, {screen_name}: {parts}")
    click.echo(
        f"The choice among all {len(result['cells'])} cells, {best['condition']}, has rank "
        f"{best['rank']}; of the best {keep}, {result['chosen_of_kept']} is chosen."
    )
    spent = f"Screening took {seconds['screening']:.0f} s"
    if seconds["saved"] is not None:
        spent += f", decoding all cells {seconds['decoding_all']:.0f} s"
        spent += f"; keeping {keep} saves {seconds['saved']:.0f} s"
    click.echo(spent + ".")


@click.command()
@click.option("--run", "folder", type=click.Path(path_type=Path), help="Compare with this run.")
@click.option("--model", "name", default="smollm2-135m", show_default=True)
@click.option("--layers", default=LAYERS, show_default=True)
@click.option("--strengths", default=STRENGTHS, show_default=True)
@click.option("--prompts", default=20, show_default=True, help="Of each set; without --run.")
@click.option("--max-tokens", default=32, show_default=True, help="Without --run.")
@click.option("--keep", default=4, show_default=True, help="Cells that screening would leave.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def main(
    folder: Path | None,
    name: str,
    layers: str,
    strengths: str,
    prompts: int,
    max_tokens: int,
    keep: int,
    as_json: bool,
) -> None:
    """Print how well screening ranks the cells, and the time it saves."""
    try:
        with tempfile.TemporaryDirectory() as scratch:
            at = folder or Path(scratch) / "run"
            if folder is None:
                decode(at, name, layers, strengths, prompts, max_tokens)
            run = load_run(at)
        settings = run.config.model.model_dump()
        model = load_model(settings.pop("name"), **settings)
        chosen = conditions_of(run)
        leans, seconds = screened(model, run, chosen)
    except SteerError as error:
        raise click.ClickException(str(error)) from error
    scored, limits = judged(run), run.config.sweep.limits
    base, *cells = [cell_of(run, scored, c.name, "select") for c in chosen]
    limit = leans[base.condition].other + limits.false_positives
    ranked = sorted(
        cells, key=lambda c: screening_rank(leans[c.condition], limit, c.strength or 0.0)
    )
    order = [c.condition for c in ranked]
    best, met = choose_cell(cells, base, limits)
    kept_best, _ = choose_cell(ranked[:keep], base, limits)
    # A finished run's manifest counts only its last start: a resumed one tells nothing of decoding.
    decoding = run.manifest.seconds.get("sweep")
    saved = None
    if decoding and decoding > seconds:
        saved = decoding * (1 - min(keep, len(cells)) / len(cells)) - seconds
    result: Json = {
        "cells": [
            {"condition": c.condition, "rank": i, **dict(leans[c.condition]),
             "decoded_target": c.target.value, "decoded_false_positive": c.false_positive.value,
             "coherence": c.coherence}
            for i, c in enumerate(ranked, 1)
        ],
        "spearman": agreement(cells, leans, order),
        "chosen_of_all": {"condition": best.condition, "met_limits": met,
                          "rank": order.index(best.condition) + 1},
        "chosen_of_kept": kept_best.condition,
        "seconds": {"screening": seconds, "decoding_all": decoding, "saved": saved},
    }  # fmt: skip
    rows = [["rank", "cell", "target", "other", "decoded target", "decoded other", "coherence"]]
    rows += [
        [str(i), c.condition, f"{leans[c.condition].target:.3f}",
         f"{leans[c.condition].other:.3f}", f"{c.target.value:.2f}",
         f"{c.false_positive.value:.2f}", f"{c.coherence:.2f}"]
        for i, c in enumerate(ranked, 1)
    ]  # fmt: skip
    publish(result, rows, "python scripts/bench_screening.py", as_json)
    if not as_json:
        tell(result, keep)


if __name__ == "__main__":
    main()
