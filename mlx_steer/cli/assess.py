"""assess: does steering work on a model?"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlx_steer.cli.experiments import batch_option, fresh_option, limit_option
from mlx_steer.cli.options import LAYERS, model_options, model_settings, quiet_option
from mlx_steer.cli.progress import progress
from mlx_steer.team import launched_rank

if TYPE_CHECKING:
    from mlx_steer.config import ExperimentConfig
    from mlx_steer.report.overview import Assessed


@click.command(short_help="Say whether steering works on a model, and at what price.")
@model_options
@click.option(
    "--behavior",
    "-b",
    "behaviors",
    multiple=True,
    help="A shipped behavior, or a folder of your own; may be given several times.  [default: all "
    "that are shipped]",
)
@click.option(
    "--layers",
    type=LAYERS,
    help="Such as 12,14,16 or 8-20.  [default: some five of the middle half]",
)
@click.option(
    "--max-tokens",
    type=click.IntRange(min=1),
    metavar="N",
    default=48,
    show_default=True,
    help="Response tokens at most.",
)
@click.option(
    "--out",
    "-o",
    type=click.Path(path_type=Path),
    help="A folder for the runs, one a behavior.  [default: runs/assess_MODEL]",
)
@batch_option
@limit_option
@fresh_option
@quiet_option
def assess(
    behaviors: tuple[str, ...], layers: Any, out: Path | None, fresh: bool, quiet: bool, **said: Any
) -> None:
    """Run the race for one or all shipped behaviors, and end with a table of answers.

    Each behavior gets a run directory with its report, and its vectors a card.json; assess.html in
    the folder has all answers. A behavior that cannot be tried on this model is named, and costs
    the others nothing. Continues where it was stopped.
    """
    from mlx_steer.behaviors import list_behaviors
    from mlx_steer.experiment.assess import assessment
    from mlx_steer.report.overview import write_overview

    if launched_rank() is not None:
        raise click.UsageError("assess is for one machine; start `mlx-steer run` on several")
    model = model_settings(said)
    chosen = None if layers in (None, "all") else layers
    # All of them first: a wrong name must not be found out after hours.
    configs = [
        assessment(model, name, layers=chosen, **said)
        for name in dict.fromkeys(behaviors or list_behaviors())
    ]
    names = [config.name for config in configs]
    if twice := next((n for n in names if names.count(n) > 1), None):
        raise click.UsageError(f"two behaviors are called {twice!r}; assess them apart")
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", str(model["name"])).strip("._-")[-60:]
    folder = out or Path("runs") / f"assess_{name or 'model'}"
    found = [_assessed(config, folder, fresh, quiet) for config in configs]
    page = write_overview(folder, str(model["name"]), found)
    _print_table(found)
    click.echo(str(page))
    if not any(one.first for one in found):
        raise SystemExit(2)


def _assessed(config: ExperimentConfig, folder: Path, fresh: bool, quiet: bool) -> Assessed:
    """One behavior, run and reported."""
    from mlx_steer.behaviors.two_sentences import behavior_of
    from mlx_steer.errors import SteerError
    from mlx_steer.experiment.execute import run_experiment
    from mlx_steer.report import write_report
    from mlx_steer.report.overview import Assessed
    from mlx_steer.run.directory import RunDirectory

    title = behavior_of(config.behavior).title or config.name
    try:
        with RunDirectory.open(folder / config.name, fresh=fresh) as directory:
            with progress(quiet) as told:
                run_experiment(config, directory, told)
            files = write_report(directory.folder)
    except SteerError as error:
        click.echo(f"note: {config.name}: {error}", err=True)
        return Assessed(title, problem=str(error))
    return Assessed(title, config.name, files.first, "nothing could be compared with base")


def _print_table(found: list[Assessed]) -> None:
    from rich.table import Table
    from rich.text import Text

    from mlx_steer.cli.output import console, safe
    from mlx_steer.report.overview import COLUMNS, cells

    table = Table(*COLUMNS)
    for one in found:
        table.add_row(*(Text(safe(text)) for text in cells(one)))
    console().print(table)
