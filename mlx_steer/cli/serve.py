"""serve: a steered model behind the OpenAI API, and a page to play with it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlx_steer.cli.options import model_options, model_settings

if TYPE_CHECKING:
    from mlx_steer.model.load import Model
    from mlx_steer.serve.catalog import Catalog
    from mlx_steer.serve.protocol import Steer

_BUILT_IN = "smollm2-135m"


@click.command(short_help="Serve a steered model to a browser and to apps.")
@model_options
@click.option(
    "--vectors",
    multiple=True,
    metavar="[NAME=]FOLDER",
    help="Vectors that requests may steer with, under a name (by default the behavior's). The "
    "built-in model has its own.",
)
@click.option(
    "--preset",
    "presets",
    multiple=True,
    metavar="NAME=VECTORS,layer:N,strength:X",
    help="A condition that is offered as a model of its own, MODEL+NAME; also gate:NAME, "
    "operator:ablate, scope:generated; layer:12-16 is a band. Or a file NAME.yaml that /save of "
    "chat has written.",
)
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True)
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="The address it listens at; another than this machine's own needs --api-key.",
)
@click.option(
    "--api-key",
    envvar="MLX_STEER_API_KEY",
    help="What clients must know; better given as MLX_STEER_API_KEY.",
)
@click.option(
    "--allow-origin",
    "origins",
    multiple=True,
    metavar="ORIGIN",
    help="Let pages from there read responses, for example https://app.example.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(1, 128),
    default=64,
    show_default=True,
    help="Responses that are written at once, as far as they fit into memory; others wait.",
)
def serve(
    vectors: tuple[str, ...],
    presets: tuple[str, ...],
    host: str,
    port: int,
    api_key: str | None,
    origins: tuple[str, ...],
    batch_size: int,
    **options: Any,
) -> None:
    """Serve a steered model: a page to play with it, and the OpenAI API for apps.

    Without options it serves the built-in model with the vectors that come for it. Requests say how
    to steer by a preset's name, or in `steering`; docs/server.md has examples.
    """
    from mlx_steer.cli.output import safe
    from mlx_steer.engine.guard import load_model
    from mlx_steer.serve.completions import Service
    from mlx_steer.serve.guard import Access
    from mlx_steer.serve.limits import Limits
    from mlx_steer.serve.scheduler import Scheduler
    from mlx_steer.serve.server import Address, checked_key
    from mlx_steer.serve.server import serve as serve_until_stopped

    key = checked_key(host, api_key)
    # Both are cheap, and loading a model is not.
    named = [_named(text) for text in vectors]
    chosen = [_preset(text, named) for text in presets]
    listener = Address(host, port).listen()
    settings = model_settings(options)
    if settings["shard"]:
        raise click.UsageError("requests reach one rank alone: leave --shard out")
    model = load_model(settings.pop("name"), **settings)
    catalog = _catalog(model, named, chosen)
    _log_safely()
    scheduler = Scheduler(model, Limits(rows=batch_size))

    def started(bound: int) -> None:
        address = f"http://{f'[{host}]' if ':' in host else host}:{bound}"
        click.echo(f"{safe(model.info.id)} is served at {address} (the API at {address}/v1)")
        click.echo("Ctrl-C stops it.", err=True)

    service = Service(scheduler, model.chat, catalog, model.context)
    serve_until_stopped(scheduler, service, Access.of(host, key, origins), listener, started)
    click.echo("stopped", err=True)


def _catalog(
    model: Model,
    named: list[tuple[str | None, Path]],
    presets: list[tuple[str, tuple[Steer, ...]]],
) -> Catalog:
    """What is offered; what a person should know of it is printed."""
    from mlx_steer.cli.output import safe
    from mlx_steer.errors import VectorError
    from mlx_steer.serve.catalog import Catalog, Offered
    from mlx_steer.serve.problems import Problem
    from mlx_steer.serve.shipped import shipped_vectors

    if not named:
        named = [(None, folder) for folder in shipped_vectors(model.info.id)]
    offered = Offered(model.info.id, model.hidden_size, model.num_layers)
    catalog, notes = Catalog.load(offered, named)
    for name, steering in presets:
        try:
            catalog.add_preset(name, steering)
        except Problem as problem:
            raise VectorError(f"the preset {name[:60]!r} cannot be offered: {problem}") from problem
    for note in dict.fromkeys(notes):
        click.echo(f"note: {safe(note)}", err=True)
    if catalog.vectors:
        click.echo(f"vectors: {', '.join(catalog.vectors)}", err=True)
    else:
        click.echo(
            "note: there are no vectors, so nothing can be steered; make some with "
            "`mlx-steer extract` and give them as --vectors FOLDER",
            err=True,
        )
    return catalog


def _named(text: str) -> tuple[str | None, Path]:
    """NAME=FOLDER, or a folder alone."""
    name, equals, folder = text.partition("=")
    if not equals or "/" in name or "\\" in name:
        return None, Path(text)
    return name, Path(folder)


def _preset(text: str, named: list[tuple[str | None, Path]]) -> tuple[str, tuple[Steer, ...]]:
    """A preset as it was written, or in a file, whose vectors are added to the others."""
    from mlx_steer.serve.catalog import parse_preset
    from mlx_steer.serve.preset_file import PresetFile

    if "=" in text or not text.endswith((".yaml", ".yml")):
        return parse_preset(text)
    found = PresetFile.read(Path(text))
    known = {(name, folder.resolve()) for name, folder in named}
    for name, folder in found.vectors.items():
        if (name, Path(folder).resolve()) not in known:
            named.append((name, Path(folder)))
    return Path(text).stem, found.steering


def _log_safely() -> None:
    """Nothing of a request reaches the terminal as it came."""
    from mlx_steer.cli.output import safe

    class Safe(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            return "\n".join(map(safe, super().format(record).split("\n")))

    handler = logging.StreamHandler()
    handler.setFormatter(Safe("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)


for _option in serve.params:
    # The options are the same as everywhere, but here there is a model to begin with.
    if _option.name == "model":
        _option.required = False
        _option.default = _BUILT_IN
        _option.show_default = True  # type: ignore[attr-defined]
