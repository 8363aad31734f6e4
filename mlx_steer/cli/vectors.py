"""vectors show, compare, cosine, combine, export, import, check, push, pull."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlx_steer.cli.group import Group
from mlx_steer.cli.options import FACTOR, LAYERS, NUMBERS

if TYPE_CHECKING:
    from mlx_steer.vectors import SteeringVectorSet
    from mlx_steer.vectors.exchange.formats import ExportFormat, ImportFormat

_POSITIONS = {"last": "last response token", "mean": "mean over the response tokens"}


@click.group(cls=Group)
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


@vectors.command(short_help="Compare vectors folders A and B by layer.")
@click.argument("a", type=click.Path())
@click.argument("b", type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def compare(a: str, b: str, as_json: bool) -> None:
    """Compare vectors folders A and B by layer: cosine, norms and their ratio."""
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


@vectors.command(short_help="Cosines between several vectors FOLDERS.")
@click.argument("folders", nargs=-1, required=True, type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--plot", type=click.Path(path_type=Path), help="Write a heat map (.png) as well.")
def cosine(folders: tuple[str, ...], as_json: bool, plot: Path | None) -> None:
    """Cosines between all pairs of vectors FOLDERS, such as several behaviors', by layer."""
    from rich.markup import escape
    from rich.table import Table

    from mlx_steer.cli.output import console, safe
    from mlx_steer.errors import VectorError
    from mlx_steer.vectors.cosines import cosine_table, heat_map

    if plot is not None and plot.suffix != ".png":
        raise click.UsageError(f"--plot writes PNG files; call {plot.name!r} something.png")
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


@vectors.command(short_help="Add up vectors FOLDERS, each times its weight.")
@click.argument("folders", nargs=-1, required=True, type=click.Path())
@click.option("--weights", type=NUMBERS, help="One for each folder, such as 1,-0.5; default 1.")
@click.option("--normalise", is_flag=True, help="Scale every vector to norm 1 first.")
@click.option(
    "--out", "-o", required=True, type=click.Path(path_type=Path), help="The vectors folder."
)
def combine(
    folders: tuple[str, ...], weights: tuple[float, ...] | None, normalise: bool, out: Path
) -> None:
    """Add up vectors FOLDERS of one model, each times its weight.

    For the mean of two, give --weights 0.5,0.5. All must have the same layers and token position.
    """
    from mlx_steer.vectors import load_vectors

    weights = weights or (1.0,) * len(folders)
    if len(weights) != len(folders):
        raise click.UsageError(
            f"there are {len(folders)} folders and {len(weights)} weights; give one weight each"
        )
    if 0 in weights:
        raise click.UsageError("a weight of 0 takes a folder out; leave the folder out instead")
    loaded = [load_vectors(folder) for folder in folders]
    if normalise:
        loaded = [found.normalised() for found in loaded]
    parts = [
        found if weight == 1 else found * weight
        for found, weight in zip(loaded, weights, strict=True)
    ]
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    total.save(out)
    print_vectors(total)
    click.echo(str(out))


@vectors.command(short_help="Write a FOLDER in another tool's format.")
@click.argument("folder", type=click.Path())
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "kind",
    type=click.Choice(["gguf", "safetensors", "pt"]),
    required=True,
    help="gguf is llama.cpp's control vector; pt is a folder of layer_<i>.pt.",
)
@click.option("--layers", type=LAYERS, help="Which layers; needed for gguf, all by default else.")
@click.option(
    "--strength",
    type=FACTOR,
    default=1.0,
    show_default=True,
    help="Multiply the vectors with this first.",
)
def export(
    folder: str, out: Path, kind: ExportFormat, layers: tuple[int, ...] | None, strength: float
) -> None:
    """Write a vectors FOLDER as OUT, in a format of other tools.

    Steering there at strength 1 then is what --strength is here. llama.cpp adds every layer a
    control vector holds, so its layers must be named.
    """
    from mlx_steer.vectors import load_vectors
    from mlx_steer.vectors.exchange.formats import export_vectors

    found = load_vectors(folder)
    if strength == 0:
        raise click.UsageError("--strength 0 leaves nothing to write; give another")
    if layers is None and kind == "gguf":
        raise click.UsageError(
            "say --layers: llama.cpp adds all layers of a control vector at once; these vectors "
            f"have {', '.join(map(str, found))}"
        )
    chosen = tuple(found) if layers is None or isinstance(layers, str) else layers
    written = export_vectors(found if strength == 1 else found * strength, chosen, kind, out)
    if found.gates:
        click.echo("note: gates were left out, which no other format can say", err=True)
    click.echo(f"{out}: layers {', '.join(map(str, written))} at strength {strength:g}")


@vectors.command("import", short_help="Read vectors that another tool made.")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--out", "-o", required=True, type=click.Path(), help="The vectors folder to make.")
@click.option(
    "--format",
    "kind",
    type=click.Choice(
        [
            *("auto", "gguf", "repeng", "cvector-generator", "safetensors", "saklas"),
            *("pt", "persona", "axbench"),
        ]
    ),
    default="auto",
    show_default=True,
    help="cvector-generator: llama.cpp's own, each vector put where it was taken.",
)
@click.option("--model", "-m", metavar="MODEL", help="The model they are for; nothing is loaded.")
@click.option("--revision", help="A branch, tag or commit of the hub.")
@click.option("--behavior", help="What they steer; the file's name by default.")
@click.option("--layer", type=click.IntRange(min=0), metavar="N", help="AxBench only: the layer.")
@click.option(
    "--concept", type=click.IntRange(min=0), metavar="N", help="AxBench only: the row, from 0."
)
def import_(
    file: Path,
    out: str,
    kind: ImportFormat,
    layer: int | None,
    concept: int | None,
    **said: str | None,
) -> None:
    """Read vectors from FILE, in another tool's format, into a vectors folder.

    Layers get our numbers. What a format cannot say is asked for (the model) or stays unknown
    (relative doses); nothing in the file is ever run.
    """
    from mlx_steer.cli.output import safe
    from mlx_steer.vectors.exchange.foreign import vectors_of
    from mlx_steer.vectors.exchange.formats import ImportOptions, read_foreign

    foreign = read_foreign(file, ImportOptions(kind, layer, concept))
    model = None
    if said["model"] is not None:
        from mlx_steer.model.known import known_model

        model = known_model(said["model"], said["revision"])
    found = vectors_of(foreign, file, model, said["behavior"])
    found.save(out)
    print_vectors(found)
    for note in found.metadata.source.notes if found.metadata.source else ():
        click.echo(f"note: {safe(note)}", err=True)
    click.echo(out)


@vectors.command(short_help="Say whether a FOLDER fits a model.")
@click.argument("folder", type=click.Path())
@click.option("--model", "-m", required=True, metavar="MODEL", help="As for extract; not loaded.")
@click.option("--revision", help="A branch, tag or commit of the hub.")
def check(folder: str, model: str, revision: str | None) -> None:
    """Say whether the vectors of FOLDER fit a model, from its files alone.

    Exit code 2 if the hidden size or the number of layers is another.
    """
    from mlx_steer.cli.output import safe
    from mlx_steer.model.known import known_model
    from mlx_steer.vectors import load_vectors

    found, known = load_vectors(folder), known_model(model, revision)
    notes = found.check_fits(known.hidden_size, known.num_layers, known.info.id)
    same = found.metadata.model.fingerprint == known.info.fingerprint
    if not same and not notes:
        notes = ["the weights are not those the vectors were taken from; directions may differ"]
    for note in notes if not same else ():
        click.echo(f"note: {safe(note)}", err=True)
    weights = "the very weights they are for" if same else "the shape fits"
    click.echo(
        safe(f"{folder} fits {known.info.id}: {known.num_layers} layers of {known.hidden_size}")
        + f"; {weights}"
    )


@vectors.command(short_help="Put a FOLDER on the hub, with a model card.")
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("repo", metavar="ORG/NAME")
@click.option(
    "--run", "run_dir", type=click.Path(path_type=Path), help="A run whose numbers go in the card."
)
@click.option("--private", is_flag=True, help="Make the repository private.")
def push(folder: Path, repo: str, run_dir: Path | None, private: bool) -> None:
    """Put a vectors FOLDER on the Hugging Face hub, with a model card."""
    from mlx_steer.cli.output import safe
    from mlx_steer.report.measured_effect import measured_effect
    from mlx_steer.vectors import load_vectors
    from mlx_steer.vectors.share import push_vectors

    evidence = measured_effect(load_vectors(folder), run_dir) if run_dir else None
    shared = push_vectors(folder, repo, evidence=evidence, private=private)
    for note in shared.notes:
        click.echo(f"note: {safe(note)}", err=True)
    click.echo(f"{shared.url} at revision {shared.revision}")


@vectors.command(short_help="Fetch vectors from the hub and check them.")
@click.argument("repo", metavar="ORG/NAME")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--revision", help="A branch, tag or commit; default: the newest of main.")
def pull(repo: str, out: Path, revision: str | None) -> None:
    """Fetch vectors from the Hugging Face hub into the folder OUT, checked."""
    from mlx_steer.vectors.share import pull_vectors, resolve_revision

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


def print_vectors(found: SteeringVectorSet, separation: Mapping[int, float] | None = None) -> None:
    """A table of norms, and where the vectors come from.

    Args:
        found: The vectors.
        separation: Held-out AUC by layer, if it was measured.
    """
    from rich.table import Table

    from mlx_steer.cli.output import console, safe

    own = found.metadata
    model = own.model.id + (f"@{own.model.revision}" if own.model.revision else "")
    last = ["held-out AUC"] if separation is not None else []
    position = _POSITIONS.get(own.token_position, own.token_position)
    table = Table("layer", "norm", "hidden-state norm", "relative dose at 1.0", *last)
    for layer, vector in found.items():
        dose = vector.relative_dose(1.0)
        numbers = [f"{vector.norm:.3f}"]
        numbers.append("-" if vector.hidden_norm is None else f"{vector.hidden_norm:.2f}")
        numbers.append("-" if dose is None else f"{dose:.3f}")
        if separation is not None:
            numbers.append(f"{separation[layer]:.3f}")
        table.add_row(str(layer), *numbers)
    made = f"{own.method}, {position}"
    if own.dataset is not None:
        made = f"{own.method} of {own.dataset.pairs} pairs ({own.dataset.name}), {position}"
    if own.source is not None:
        made = f"imported from {own.source.file} ({own.source.format}); {made}"
    out = console()
    out.print(
        safe(
            f"{own.behavior} in {model}: {made}; the model has {own.num_layers} layers of "
            f"{own.hidden_size}"
        ),
        markup=False,
        highlight=False,
    )
    out.print(table)
    for gate in own.gates:
        click.echo(
            f"gate {gate.name}: layer {gate.layer}, {gate.method}, held-out AUC {gate.auc:.3f}"
        )
