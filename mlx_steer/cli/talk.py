"""generate and chat: base and steered, side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from mlx_steer.cli.options import (
    FACTOR,
    TEXT,
    generation_options,
    model_options,
    model_settings,
)

if TYPE_CHECKING:
    from mlx_steer.conditions import Condition
    from mlx_steer.model import Model
    from mlx_steer.model.chat import Message


def _steering_options(command: Any) -> Any:
    for option in (
        click.option("--system-prompt", type=TEXT, help="A system prompt, for both sides."),
        click.option("--gate", help="A gate of the vectors folder: steer only if it opens."),
        click.option(
            "--scope",
            type=click.Choice(["all", "generated", "prompt"]),
            default="all",
            show_default=True,
            help="The token positions that are steered.",
        ),
        click.option("--strength", type=FACTOR, default=1.0, show_default=True),
        click.option(
            "--layer", type=int, required=True, help="Counted from 0; negative from the end."
        ),
        click.option("--vectors", required=True, type=click.Path(), help="A vectors folder."),
    ):
        command = option(command)
    return command


@click.command()
@model_options
@_steering_options
@generation_options(150)
@click.option("--steered-only", is_flag=True, help="Print the steered response and nothing else.")
@click.argument("prompt", type=TEXT)
def generate(prompt: str, steered_only: bool, **options: Any) -> None:
    """Answer one PROMPT, base and steered side by side."""
    system, pair = options.pop("system_prompt"), _Pair(options)
    messages: list[Message] = [{"role": "user", "content": prompt}]
    if system:
        messages.insert(0, {"role": "system", "content": system})
    base, steered = pair.answers(messages)
    if steered_only:
        from mlx_steer.cli.output import safe

        click.echo(safe(steered))
    else:
        pair.show(base, steered)


@click.command()
@model_options
@_steering_options
@generation_options(150)
def chat(**options: Any) -> None:
    """Talk to the base and the steered model at once; each keeps its own conversation."""
    system, pair = options.pop("system_prompt"), _Pair(options)
    start: list[Message] = [{"role": "system", "content": system}] if system else []
    sides: tuple[list[Message], list[Message]] = ([*start], [*start])
    click.echo("Type a message; an empty line or Ctrl-D ends the chat.", err=True)
    while True:
        try:
            text = input("> ").strip()
        except EOFError:
            break
        except UnicodeDecodeError:
            click.echo("That was not UTF-8 text.", err=True)
            continue
        if not text:
            break
        for side in sides:
            side.append({"role": "user", "content": text})
        answers = pair.answers(*sides)
        pair.show(*answers)
        for side, answer in zip(sides, answers, strict=True):
            side.append({"role": "assistant", "content": answer})


class _Pair:
    """A model under two conditions: base and steered."""

    def __init__(self, options: dict[str, Any]) -> None:
        from mlx_steer.cli.output import safe
        from mlx_steer.conditions import Condition, Intervention
        from mlx_steer.generate import Sampling
        from mlx_steer.model import load_model
        from mlx_steer.vectors import load_vectors

        vectors = load_vectors(options["vectors"])
        settings = model_settings(options)
        self.model: Model = load_model(settings.pop("name"), **settings)
        shape = (self.model.hidden_size, self.model.num_layers, self.model.info.id)
        for warning in vectors.check_fits(*shape):
            click.echo(f"note: {safe(warning)}", err=True)
        layer = self.model.layer(options["layer"])
        item = Intervention(
            layer, vectors[layer].array, options["strength"], scope=options["scope"]
        )
        self.base: Condition = Condition("base")
        gates = (vectors.gate(options["gate"]),) if options["gate"] else ()
        label = f"{'gated ' if gates else ''}layer {layer}, strength {item.strength:g}"
        self.steered: Condition = Condition(label, None, (item,), gates)
        self.sampling = Sampling(options["max_tokens"], options["temperature"], options["seed"])

    def answers(self, base: list[Message], steered: list[Message] | None = None) -> tuple[str, str]:
        """Both responses to a conversation, or to two."""
        from mlx_steer.generate import Job, complete

        sides = ((self.base, base), (self.steered, steered or base))
        jobs = [
            Job(condition.name, tuple(self.model.chat.conversation_ids(messages)), condition)
            for condition, messages in sides
        ]
        first, second = complete(self.model, jobs, self.sampling)
        if second.gates:
            state = "open" if second.steered else "shut"
            click.echo(f"gate {state} ({second.gates[0]:+.3f})", err=True)
        return first.text.strip(), second.text.strip()

    def show(self, base: str, steered: str) -> None:
        """Two columns on a wide terminal."""
        from rich.table import Table
        from rich.text import Text

        from mlx_steer.cli.output import console, safe

        table = Table("base", self.steered.name, expand=True)
        table.add_row(Text(safe(base)), Text(safe(steered)))
        console().print(table)
