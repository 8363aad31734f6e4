"""gate fit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

import click

from mlx_steer.cli.group import Group
from mlx_steer.cli.options import LAYERS, FromConfig, behavior_option, model_options, model_settings
from mlx_steer.team import launched_rank
from mlx_steer.words import GateMethod

if TYPE_CHECKING:
    from mlx_steer.stats import Rate


@click.group(cls=Group)
def gate() -> None:
    """Gates: steer only prompts that call for it."""


@gate.command()
@model_options
@behavior_option
@click.option("--vectors", required=True, type=click.Path(), help="The folder to save it in.")
@click.option("--layers", type=LAYERS, default="all", help="Layers to try, such as 12-20.")
@click.option(
    "--method",
    "methods",
    multiple=True,
    type=click.Choice(get_args(GateMethod)),
    metavar="METHOD",
    help="A way to make the direction: " + ", ".join(get_args(GateMethod)) + "; of several, "
    "cross-validation picks one.  [default: all]",
)
@click.option(
    "--false-positive-rate",
    default=FromConfig("GateConfig", "false_positive_rate"),
    type=click.FloatRange(0, 1, max_open=True),
    metavar="RATE",
    show_default=True,
    help="Of held-out prompts that should not be steered, at most so many may open it.",
)
@click.option("--system-prompt", help="A name or text: the prompt it will be used under.")
@click.option("--name", default="plain", show_default=True, help="Of the gate.")
def fit(
    behavior: str,
    vectors: str,
    layers: Any,
    methods: tuple[Any, ...],
    false_positive_rate: float,
    system_prompt: str | None,
    name: str,
    **options: Any,
) -> None:
    """Fit a gate on a behavior's gate prompts and save it with the vectors."""
    from rich.table import Table

    from mlx_steer.behaviors import load_behavior
    from mlx_steer.cli.output import console, safe
    from mlx_steer.config import GateConfig, parse_section
    from mlx_steer.engine.guard import load_model
    from mlx_steer.experiment.condition_sets import resolve_system_prompt
    from mlx_steer.extraction.gates import fit_gate
    from mlx_steer.vectors import load_vectors

    given = {"layers": layers, "false_positive_rate": false_positive_rate}
    if methods:
        given["methods"] = methods
    trial = parse_section(GateConfig, given, "the command line")
    data, found = load_behavior(behavior), load_vectors(vectors)
    settings = model_settings(options)
    model = load_model(settings.pop("name"), **settings)
    for warning in found.check_fits(model.hidden_size, model.num_layers, model.info.id):
        click.echo(f"note: {safe(warning)}", err=True)
    prompt = resolve_system_prompt(data.system_prompts, system_prompt)[1] if system_prompt else None
    done = fit_gate(
        model,
        data,
        trial,
        system_prompt=prompt,
        name=name,
    )
    model.team.agree({"gate": name})  # all are there still
    if not launched_rank():  # of several ranks, the first
        found.with_gate(done.gate, done.info).save(vectors)
    table = Table("layer", "method", "held-out AUC")
    for one in done.candidates[:8]:
        table.add_row(str(one.layer), one.method, f"{one.auc:.3f}")
    console().print(table)
    click.echo(
        f"gate {name}: layer {done.gate.layer}, {done.method}; held out it opens for "
        f"{_rate(done.opened)} of {data.set_word('target')} and {_rate(done.achieved)} of "
        f"{data.set_word('other')} prompts"
    )


def _rate(rate: Rate) -> str:
    return f"{rate.count} of {rate.n} ({rate.low:.0%} to {rate.high:.0%})"
