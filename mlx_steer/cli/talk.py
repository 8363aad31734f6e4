"""generate and chat: base and steered, side by side."""

from __future__ import annotations

from typing import Any, get_args

import click

from mlx_steer.cli.options import (
    FACTOR,
    LAYER,
    TEXT,
    FromConfig,
    generation_options,
    model_options,
)
from mlx_steer.words import Operator, Scope


def _steering_options(command: Any) -> Any:
    for option in (
        click.option(
            "--system-prompt",
            type=TEXT,
            help="For both sides: a name of the behavior's (detailed, calibrated) or a text.",
        ),
        click.option("--gate", help="A gate of the vectors folder: steer only if it opens."),
        click.option(
            "--scope",
            type=click.Choice(get_args(Scope)),
            metavar="SCOPE",
            default=FromConfig("ExperimentConfig", "scope"),
            show_default=True,
            help="The token positions that are steered: all; prompt; generated, those that predict "
            "a response token; or of these thinking or answer (see --thinking).",
        ),
        click.option(
            "--operator",
            "operators",
            type=click.Choice(get_args(Operator)),
            multiple=True,
            default=["add"],
            show_default=True,
            help="add strength x vector; ablate takes the part `strength` of the projection on it "
            "out; clamp sets the projection to `strength`.",
        ),
        click.option(
            "--strength",
            "strengths",
            type=FACTOR,
            multiple=True,
            default=[1.0],
            show_default=True,
            help="See --operator.",
        ),
        click.option(
            "--layer",
            "layers",
            type=LAYER,
            metavar="N",
            required=True,
            multiple=True,
            help="Counted from 0; negative from the end. 12-16 is a band: each layer's own vector.",
        ),
        click.option(
            "--vectors",
            "folders",
            required=True,
            multiple=True,
            type=click.Path(),
            help="A vectors folder.",
        ),
    ):
        command = option(command)
    return command


@click.command()
@model_options
@_steering_options
@generation_options
@click.option("--steered-only", is_flag=True, help="Write the steered response and nothing else.")
@click.argument("prompt", type=TEXT)
def generate(prompt: str, steered_only: bool, **options: Any) -> None:
    """Answer one PROMPT, base and steered side by side, as the words come.

    For several vectors at once give --vectors, --layer, --strength and --operator several times;
    the first of each belong together, then the second, and so on. One given once counts for all.
    """
    from mlx_steer.cli.columns import columns, text
    from mlx_steer.cli.pair import Pair

    pair = Pair(options)
    said = [*pair.start, {"role": "user", "content": prompt}]
    with text() if steered_only else columns(["base", pair.label]) as draw:
        answers = pair.answer(None if steered_only else said, said, draw)
    for line in answers.told():
        click.echo(line, err=True)
    if answers.stopped:
        raise KeyboardInterrupt


@click.command()
@model_options
@_steering_options
@generation_options
def chat(**options: Any) -> None:
    """Talk to the base and the steered model at once.

    Each keeps its own conversation. Lines that begin with a slash change what steers from the next
    message on: /strength, /layer, /gate, /base, /again, /save; /help says what each does.

    For several vectors at once give --vectors, --layer, --strength and --operator several times;
    the first of each belong together, then the second, and so on. One given once counts for all.
    """
    from mlx_steer.cli.conversation import Conversation
    from mlx_steer.cli.pair import Pair

    Conversation(Pair(options)).hold()
