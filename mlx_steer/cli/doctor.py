"""doctor: is this machine sound?"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from itertools import groupby, zip_longest
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import click

from mlx_steer.cli.options import json_option, model_options, model_settings

if TYPE_CHECKING:
    from mlx_steer.checks.doctor import Diagnosis
    from mlx_steer.checks.steering_checks import Check


@click.command(short_help="Check this machine, for bug reports.")
@model_options
@click.option(
    "--speed/--no-speed",
    default=None,
    help="Measure decoding, steered and not; by default on a Mac only.",
)
@json_option
def doctor(speed: bool | None, as_json: bool, **options: Any) -> None:
    """Check this machine, and that steering works here; for bug reports.

    Without --model, tiny random models are checked. Exit code 1 if a check fails.
    """
    from mlx_steer.checks.doctor import examine
    from mlx_steer.engine.guard import load_model
    from mlx_steer.model.load import Model

    settings = model_settings(options)

    def load() -> Model:
        return load_model(settings.pop("name"), **settings)

    found = examine(load if settings["name"] else None, speed=speed)
    if as_json:
        click.echo(json.dumps(found.to_json(), indent=2))
    else:
        _print_diagnosis(found)
    if not found.healthy:
        sys.exit(1)


for _option in doctor.params:
    # The options are the same as everywhere, but here a model is not needed.
    if _option.name == "model":
        _option.required = False


def _print_diagnosis(found: Diagnosis) -> None:
    from mlx_steer.cli.output import console, safe

    facts = {**found.environment, "working_set_gb": round(found.working_set / 1e9, 1)}
    for name, value in {**facts, **found.metal}.items():
        # Left to the terminal to wrap: a path is there to be copied.
        click.echo(safe(f"{name}: {value}"))
    width = console().width
    for subject, checks in groupby(found.checks, lambda check: check.subject):
        click.echo(f"\n{safe(subject)}")
        click.echo(_line("result", "check", "measured", "limit"))
        for check in checks:
            for line in _check_lines(check, width):
                click.echo(safe(line))
    if found.speed:
        click.echo()
        click.echo("rows  unsteered tokens/s  steered tokens/s  ratio")
        for at in found.speed:
            click.echo(f"{at.rows:>4}{at.unsteered:>20.1f}{at.steered:>18.1f}{at.ratio:>7.3f}")


def _check_lines(check: Check, width: int) -> Iterator[str]:
    """One check in columns; what does not fit beside them goes on below, at whole words."""
    numbers = ("" if n is None else f"{n:.3g}" for n in (check.measured, check.limit))
    columns = _line(check.status, check.name, *numbers)
    detail = wrap(check.detail, max(20, width - len(columns) - 2), break_long_words=False)
    for beside, text in zip_longest([columns], detail or [""], fillvalue=" " * len(columns)):
        yield f"{beside}  {text}".rstrip()


def _line(status: str, name: str, measured: str, limit: str) -> str:
    return f"{status:<6}  {name:<29} {measured:>8} {limit:>7}"
