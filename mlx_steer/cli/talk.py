"""generate and chat: base and steered, side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

import click

from mlx_steer.cli.options import (
    FACTOR,
    LAYER,
    TEXT,
    FromConfig,
    generation_options,
    model_options,
    model_settings,
)
from mlx_steer.words import Operator, Scope

if TYPE_CHECKING:
    from mlx_steer.bands import LayerOrBand
    from mlx_steer.conditions import Condition, Gate, Intervention
    from mlx_steer.model.chat import Message
    from mlx_steer.model.load import Model
    from mlx_steer.vectors import SteeringVectorSet


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
@click.option("--steered-only", is_flag=True, help="Print the steered response and nothing else.")
@click.argument("prompt", type=TEXT)
def generate(prompt: str, steered_only: bool, **options: Any) -> None:
    """Answer one PROMPT, base and steered side by side.

    For several vectors at once give --vectors, --layer, --strength and --operator several times;
    the first of each belong together, then the second, and so on. One given once counts for all.
    """
    pair = _Pair(options)
    base, steered = pair.answers([*pair.start, {"role": "user", "content": prompt}])
    if steered_only:
        from mlx_steer.cli.output import safe

        click.echo(safe(steered))
    else:
        pair.show(base, steered)


@click.command()
@model_options
@_steering_options
@generation_options
def chat(**options: Any) -> None:
    """Talk to the base and the steered model at once.

    Each keeps its own conversation. For several vectors at once give --vectors, --layer, --strength
    and --operator several times; the first of each belong together, then the second, and so on. One
    given once counts for all.
    """
    pair = _Pair(options)
    sides: tuple[list[Message], list[Message]] = ([*pair.start], [*pair.start])
    click.echo("Type a message; an empty line, Ctrl-C or Ctrl-D ends the chat.", err=True)
    while True:
        try:
            text = input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            click.echo(err=True)
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
    """A model under two conditions, base and steered; `start` is how conversations begin."""

    def __init__(self, options: dict[str, Any]) -> None:
        from mlx_steer.bands import band_of, layers_of
        from mlx_steer.cli.output import safe
        from mlx_steer.conditions import Condition, Intervention
        from mlx_steer.engine.guard import load_model
        from mlx_steer.engine.jobs import Sampling
        from mlx_steer.vectors import load_vectors

        self.scope: Scope = options["scope"]
        names = ("folders", "layers", "strengths", "operators")
        folders, layers, strengths, operators = _together({name: options[name] for name in names})
        loaded = {folder: load_vectors(folder) for folder in folders}
        system = _system_prompt(options["system_prompt"], next(iter(loaded.values())))
        self.start: list[Message] = [{"role": "system", "content": system}] if system else []
        settings = model_settings(options)
        self.model: Model = load_model(settings.pop("name"), **settings)
        shape = (self.model.hidden_size, self.model.num_layers, self.model.info.id)
        notes = dict.fromkeys(
            note for found in loaded.values() for note in found.check_fits(*shape)
        )
        for note in notes:
            click.echo(f"note: {safe(note)}", err=True)
        acts, labels = list[Intervention](), list[str]()
        for folder, place, strength, operator in zip(
            folders, layers, strengths, operators, strict=True
        ):
            own, found = [self.model.layer(index) for index in layers_of(place)], loaded[folder]
            name = found.metadata.behavior
            acts += [
                Intervention(layer, found[layer].array, strength, operator, self.scope, name)
                for layer in own
            ]
            labels.append(_label(acts[-1], band_of(own), several=len(loaded) > 1))
        gates = (_gate(loaded, options["gate"]),) if options["gate"] else ()
        label = " + ".join(labels)
        self.base: Condition = Condition("base")
        self.steered: Condition = Condition(
            f"{'gated ' if gates else ''}{label}", None, tuple(acts), gates
        )
        self.sampling = Sampling(options["max_tokens"], options["temperature"], options["seed"])

    def answers(self, base: list[Message], steered: list[Message] | None = None) -> tuple[str, str]:
        """Both responses to a conversation, or to two."""
        from mlx_steer.engine.complete import complete
        from mlx_steer.engine.jobs import Job

        sides = ((self.base, base), (self.steered, steered or base))
        jobs = [
            Job(condition.name, tuple(self.model.chat.conversation_ids(messages)), condition)
            for condition, messages in sides
        ]
        if self.scope == "thinking" and not self.model.chat.thinks(jobs[1].ids):
            click.echo("note: the model is not thinking, so nothing is steered", err=True)
        first, second = complete(self.model, jobs, self.sampling)
        if second.gates:
            state = "open" if second.steered else "shut"
            click.echo(f"gate {state} ({second.gates[0]:+.3f})", err=True)
        if any(done.thinking and not done.text for done in (first, second)):
            click.echo("note: still thinking at the last token; give more --max-tokens", err=True)
        return first.text.strip(), second.text.strip()

    def show(self, base: str, steered: str) -> None:
        """Two columns on a wide terminal."""
        from rich.table import Column, Table
        from rich.text import Text

        from mlx_steer.cli.output import console, safe

        table = Table(
            Column("base", ratio=1), Column(Text(safe(self.steered.name)), ratio=1), expand=True
        )
        table.add_row(Text(safe(base)), Text(safe(steered)))
        console().print(table)


def _together(given: dict[str, tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Options that were given several times, all at one length; once counts for all."""
    count = max(map(len, given.values()))
    for name, values in given.items():
        if len(values) not in (1, count):
            option = {"folders": "--vectors"}.get(name, f"--{name.removesuffix('s')}")
            raise click.UsageError(
                f"{option} is given {len(values)} times and another option {count} times; give it "
                f"once or {count} times"
            )
    return [values * count if len(values) == 1 else values for values in given.values()]


def _system_prompt(name_or_text: str | None, vectors: SteeringVectorSet) -> str | None:
    """A text, found by name with the behavior of the vectors if it is a shipped one."""
    from mlx_steer.behaviors import list_behaviors, load_behavior
    from mlx_steer.experiment.condition_sets import resolve_system_prompt

    if not name_or_text:
        return None
    behavior = vectors.metadata.behavior
    known = load_behavior(behavior).system_prompts if behavior in list_behaviors() else {}
    return resolve_system_prompt(known, name_or_text)[1]


def _gate(loaded: dict[str, SteeringVectorSet], name: str) -> Gate:
    """The gate of that name in the first folder that has it."""
    sets = list(loaded.values())
    found = next((one for one in sets if any(g.name == name for g in one.gates)), sets[0])
    return found.gate(name)


def _label(act: Intervention, place: LayerOrBand, several: bool) -> str:
    """What an intervention does at a layer or in a band, for the head of its column."""
    from mlx_steer.bands import layer_words

    words = {"add": ", strength", "ablate": " ablated by", "clamp": " clamped to"}
    name = f"{act.name} " if several else ""
    return f"{name}{layer_words(place)}{words[act.operator]} {act.strength:g}"
