"""plan: what a run will show, need and take."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlx_steer.cli.options import json_option

if TYPE_CHECKING:
    from mlx_steer.experiment.plan import ExperimentPlan


@click.command(short_help="Say what a CONFIG will run, need and take.")
@click.argument("config", type=click.Path(path_type=Path))
@click.option(
    "--batch-size", type=click.IntRange(1, 4096), metavar="N", help="Instead of the config's."
)
@click.option("--measure", is_flag=True, help="Load the model and time it, to say how long.")
@click.option(
    "--runs",
    type=click.Path(path_type=Path),
    default=Path("runs"),
    show_default=True,
    help="Where earlier runs are, whose speeds say how long this one takes.",
)
@click.option(
    "--ranks",
    type=click.IntRange(1, 1024),
    default=1,
    metavar="N",
    help="For model.shard: how many ranks there will be; memory is each one's.",
)
@click.option(
    "--parts",
    type=click.IntRange(1, 10_000),
    default=1,
    metavar="N",
    help="How much each of N parts has to do (run --part).",
)
@json_option
def plan(config: Path, batch_size: int | None, measure: bool, as_json: bool, **how: Any) -> None:
    """Say what the experiment of a CONFIG file will run, show, need and take."""
    from mlx_steer.config import load_config
    from mlx_steer.experiment.plan import plan_experiment

    experiment = load_config(config)
    if batch_size is not None:
        changed = experiment.generation.model_copy(update={"batch_size": batch_size})
        experiment = experiment.model_copy(update={"generation": changed})
    found = plan_experiment(experiment, measure=measure, **how)
    if as_json:
        click.echo(json.dumps(found.to_json(), indent=2))
    else:
        _print_plan(found)
        if found.rounds:
            _print_rounds(found, how["parts"])


def _print_rounds(found: ExperimentPlan, parts: int) -> None:
    from rich.table import Table

    from mlx_steer.cli.output import console, duration

    title = f"Each of {parts} parts, at most"
    table = Table("round", "stages", "rows", "time", title=title, title_justify="left")
    for number, one in enumerate(found.rounds, 1):
        time = "" if one.seconds is None else duration(one.seconds)
        table.add_row(str(number), ", ".join(one.stages), str(one.rows), time)
    out = console()
    out.print(table)
    out.print("After each round all parts are merged; mlx-steer run then does what is left.")


def _print_plan(found: ExperimentPlan) -> None:
    from rich.table import Table

    from mlx_steer.cli.output import console, duration, safe

    out = console()
    where = "on this machine" if found.downloaded else "not downloaded"
    out.print(safe(f"{found.name}: {found.model} ({where})"), markup=False)
    table = Table("stage", "conditions", "prompts", "rows", "prompt tokens", "new tokens", "time")
    for stage in found.stages:
        seconds = found.seconds.get(stage.name)
        table.add_row(
            stage.name,
            str(stage.conditions or ""),
            str(stage.prompts),
            str(stage.rows),
            f"{stage.prompt_tokens:,}",
            f"{stage.response_tokens:,}" if stage.decoded else "",
            "" if seconds is None else duration(seconds),
        )
    out.print(table)
    if found.rates is not None:
        total = duration(sum(found.seconds.values()))
        speeds = f"{found.rates.read:.0f} prompt and {found.rates.decode:.0f} new tokens/s"
        out.print(f"At most about {total}, at {speeds}. {found.rates.basis}", markup=False)
    elif found.memory is not None:
        out.print(
            f"At most about {sum(stage.decoded for stage in found.stages):,} new tokens. How long "
            "they take no earlier run on this machine tells (--runs); --measure finds out.",
            markup=False,
        )
    _print_power(found)
    _print_memory(found)
    for note in found.notes:
        out.print(safe(f"note: {note}"), markup=False)


def _print_power(found: ExperimentPlan) -> None:
    from rich.table import Table

    from mlx_steer.cli.output import console

    def points(difference: float | None) -> str:
        return "none" if difference is None else f"{100 * difference:.0f}"

    title = (
        f"Found with 80 % power, in points: alone / among the primary tests ({found.comparisons})"
    )
    table = Table("prompts", "base rate", "rise", "fall", title=title, title_justify="left")
    for line in found.power:
        table.add_row(
            f"{line.prompts} {line.set}",
            f"{100 * line.base_rate:.0f} %",
            f"{points(line.rise)} / {points(line.rise_corrected)}",
            f"{points(line.fall)} / {points(line.fall_corrected)}",
        )
    console().print(table)


def _print_memory(found: ExperimentPlan) -> None:
    from rich.table import Table

    from mlx_steer.cli.output import console
    from mlx_steer.model.machine import MACS

    if found.memory is None:
        return
    limit = found.memory.working_set
    title = f"GB by batch size, of {limit / 1e9:.1f} that MLX can use here"
    head = ("rows", "weights", "KV cache", "copies", "activ.", "logits", "peak", "fits")
    table = Table(*head, title=title, title_justify="left")
    for line in found.memory.sizes:
        fits = "yes" if line.fits(limit) else "no"
        table.add_row(
            str(line.rows),
            *(
                f"{size / 1e9:.2f}"
                for size in (
                    line.weights,
                    line.kv_cache,
                    line.shared + line.copies,
                    line.activations,
                    line.logits,
                    line.peak,
                )
            ),
            f"{fits}, chosen" if line.rows == found.batch_size else fits,
        )
    out = console()
    out.print(table)
    parts = {"extraction": found.memory.extraction, "scoring": found.memory.scoring}
    out.print("; ".join(f"{name} peaks at {size / 1e9:.2f} GB" for name, size in parts.items()))
    macs = {memory: found.memory.rows_on_mac(memory) for memory in MACS}
    held = (f"{memory} GB: {rows or 'none'}" for memory, rows in macs.items())
    out.print(f"Rows that Macs hold, by their memory: {'; '.join(held)}")
