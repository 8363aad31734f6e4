"""gate fit."""

from __future__ import annotations

from typing import Any

import click

from mlx_steer.cli.options import LAYERS, behavior_option, model_options, model_settings


@click.group()
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
    type=click.Choice(["mean_difference", "whitened_mean_difference", "logistic_regression"]),
    help="Ways to make the direction; cross-validation picks one. Default: all.",
)
@click.option(
    "--false-positive-rate",
    default=0.05,
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
    from mlx_steer.engine.guard import load_model
    from mlx_steer.experiment.condition_sets import resolve_system_prompt
    from mlx_steer.extraction.gates import GATE_METHODS, fit_gate
    from mlx_steer.vectors import load_vectors

    data, found = load_behavior(behavior), load_vectors(vectors)
    settings = model_settings(options)
    model = load_model(settings.pop("name"), **settings)
    for warning in found.check_fits(model.hidden_size, model.num_layers, model.info.id):
        click.echo(f"note: {safe(warning)}", err=True)
    prompt = resolve_system_prompt(data.system_prompts, system_prompt)[1] if system_prompt else None
    done = fit_gate(
        model,
        data,
        layers=None if layers == "all" else layers,
        methods=methods or GATE_METHODS,
        false_positive_rate=false_positive_rate,
        system_prompt=prompt,
        name=name,
    )
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


def _rate(rate: Any) -> str:
    return f"{rate.count} of {rate.n} ({rate.low:.0%} to {rate.high:.0%})"
