"""vectors show, compare, cosine, combine, push, pull."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlx_steer.cli.options import NUMBERS

if TYPE_CHECKING:
    from mlx_steer.vectors import SteeringVectorSet


@click.group()
def vectors() -> None:
    """Look at, combine and share vectors folders."""


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


@vectors.command()
@click.argument("folders", nargs=-1, required=True, type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--plot", type=click.Path(path_type=Path), help="Write a heat map (.png) as well.")
def cosine(folders: tuple[str, ...], as_json: bool, plot: Path | None) -> None:
    """Cosines between several vectors FOLDERS, of several behaviors say, layer by layer."""
    from rich.markup import escape
    from rich.table import Table

    from mlx_steer.cli.output import console, safe
    from mlx_steer.cosines import cosine_table, heat_map
    from mlx_steer.errors import VectorError

    sets = _named(folders)
    if len({found.metadata.model.fingerprint for found in sets.values()}) > 1:
        click.echo("note: these vectors are not all of one model; see vectors show", err=True)
    found = cosine_table(sets)
    if plot is not None:
        try:
            plot.write_bytes(heat_map(found))
        except OSError as error:
            raise VectorError(f"{plot} cannot be written: {error.strerror or error}") from error
    if as_json:
        record = {
            "names": found.names,
            "layers": found.layers,
            "chance": found.chance,
            "cosines": [
                {"a": a, "b": b, "values": values} for (a, b), values in found.values.items()
            ],
        }
        click.echo(json.dumps(record, indent=2))
        return
    # Brackets in a name would be taken for markup.
    table = Table("layer", *(escape(safe(f"{a}, {b}")) for a, b in found.values))
    for i, layer in enumerate(found.layers):
        table.add_row(str(layer), *(f"{values[i]:+.3f}" for values in found.values.values()))
    console().print(table)
    click.echo(f"two random directions of this size: 0 ± {found.chance:.3f}")


@vectors.command()
@click.argument("folders", nargs=-1, required=True, type=click.Path())
@click.option("--weights", type=NUMBERS, help="One for each folder, such as 1,-0.5; default 1.")
@click.option(
    "--out", "-o", required=True, type=click.Path(path_type=Path), help="The vectors folder."
)
def combine(folders: tuple[str, ...], weights: tuple[float, ...] | None, out: Path) -> None:
    """Add up vectors FOLDERS of one model, each times its weight."""
    from mlx_steer.vectors import load_vectors

    weights = weights or (1.0,) * len(folders)
    if len(weights) != len(folders):
        raise click.UsageError(f"{len(folders)} folders need {len(folders)} weights")
    parts = [
        found if weight == 1 else found * weight
        for found, weight in zip(map(load_vectors, folders), weights, strict=True)
    ]
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    total.save(out)
    print_vectors(total)
    click.echo(str(out))


@vectors.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("repo", metavar="ORG/NAME")
@click.option(
    "--run", "run_dir", type=click.Path(path_type=Path), help="A run whose numbers go in the card."
)
@click.option("--private", is_flag=True, help="Make the repository private.")
def push(folder: Path, repo: str, run_dir: Path | None, private: bool) -> None:
    """Put a vectors FOLDER on the Hugging Face hub, with a model card."""
    from mlx_steer.cli.output import safe
    from mlx_steer.sharing import push_vectors

    shared = push_vectors(folder, repo, run=run_dir, private=private)
    for note in shared.notes:
        click.echo(f"note: {safe(note)}", err=True)
    click.echo(f"{shared.url} at revision {shared.revision}")


@vectors.command()
@click.argument("repo", metavar="ORG/NAME")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--revision", help="A branch, tag or commit; default: the newest of main.")
def pull(repo: str, out: Path, revision: str | None) -> None:
    """Fetch vectors from the Hugging Face hub into the folder OUT, and check them."""
    from mlx_steer.sharing import pull_vectors, resolve_revision

    commit = resolve_revision(repo, revision)
    print_vectors(pull_vectors(repo, out, commit))
    click.echo(f"{out} is {repo} at revision {commit}")


def _named(folders: tuple[str, ...]) -> dict[str, SteeringVectorSet]:
    """The sets by behavior, or by folder where that does not tell them apart."""
    from mlx_steer.vectors import load_vectors

    loaded = [load_vectors(folder) for folder in folders]
    for names in (
        [found.metadata.behavior for found in loaded],
        [Path(folder).name for folder in folders],
        list(folders),
    ):
        if len(set(names)) == len(names):
            return dict(zip(names, loaded, strict=True))
    raise click.UsageError("the same folder is given twice")


def print_vectors(found: SteeringVectorSet) -> None:
    """A table of norms, and where the vectors come from."""
    from rich.table import Table

    from mlx_steer.cli.output import console, safe

    own = found.metadata
    model = own.model.id + (f"@{own.model.revision}" if own.model.revision else "")
    table = Table("layer", "norm", "hidden-state norm", "relative dose at 1.0")
    for layer, vector in found.items():
        numbers = (f"{vector.norm:.3f}", f"{vector.hidden_norm:.2f}")
        table.add_row(str(layer), *numbers, f"{vector.relative_dose(1.0):.3f}")
    out = console()
    out.print(
        safe(
            f"{own.behavior} in {model}: {own.method} of {own.dataset.pairs} pairs "
            f"({own.dataset.name}), {own.token_position} token, {own.num_layers} layers of "
            f"{own.hidden_size}"
        ),
        markup=False,
        highlight=False,
    )
    out.print(table)
