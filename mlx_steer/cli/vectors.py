"""vectors show, vectors compare."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from mlx_steer.vectors import SteeringVectorSet


@click.group()
def vectors() -> None:
    """Look at vectors folders."""


@vectors.command()
@click.argument("folder", type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="Print the metadata as JSON.")
def show(folder: str, as_json: bool) -> None:
    """Print what a vectors FOLDER holds, after checking it."""
    from mlx_steer.vectors import load_vectors

    found = load_vectors(folder)
    if as_json:
        click.echo(json.dumps(found.metadata.model_dump(mode="json"), indent=2, sort_keys=True))
    else:
        print_vectors(found)


@vectors.command()
@click.argument("a", type=click.Path())
@click.argument("b", type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def compare(a: str, b: str, as_json: bool) -> None:
    """Compare two vectors folders layer by layer: cosine and ratio of norms (A / B)."""
    from dataclasses import asdict

    from rich.table import Table

    from mlx_steer.cli.output import console
    from mlx_steer.vectors import compare_vectors, load_vectors

    rows = compare_vectors(load_vectors(a), load_vectors(b))
    if as_json:
        click.echo(json.dumps([asdict(row) for row in rows], indent=2))
        return
    table = Table("layer", "cosine", "norm A", "norm B", "A / B")
    for row in rows:
        numbers = (f"{row.cosine:.6f}", f"{row.norm_a:.4f}", f"{row.norm_b:.4f}")
        table.add_row(str(row.layer), *numbers, f"{row.norm_ratio:.4f}")
    console().print(table)


def print_vectors(found: SteeringVectorSet) -> None:
    """A table of norms, and where the vectors come from."""
    from rich.table import Table

    from mlx_steer.cli.output import console

    own = found.metadata
    model = own.model.id + (f"@{own.model.revision}" if own.model.revision else "")
    table = Table("layer", "norm", "hidden-state norm", "relative dose at 1.0")
    for layer, vector in found.items():
        numbers = (f"{vector.norm:.3f}", f"{vector.hidden_norm:.2f}")
        table.add_row(str(layer), *numbers, f"{vector.relative_dose(1.0):.3f}")
    out = console()
    out.print(
        f"{own.behavior} in {model}: {own.method} of {own.dataset.pairs} pairs "
        f"({own.dataset.name}), {own.token_position} token, {own.num_layers} layers of "
        f"{own.hidden_size}",
        markup=False,
        highlight=False,
    )
    out.print(table)
