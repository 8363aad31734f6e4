"""A model under two conditions, base and steered, for `generate` and `chat`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlx_steer.cli.options import model_settings
from mlx_steer.words import Operator, Scope

if TYPE_CHECKING:
    from mlx_steer.bands import LayerOrBand
    from mlx_steer.cli.columns import Draw
    from mlx_steer.conditions import Condition, Gate, Intervention
    from mlx_steer.model.chat import Message
    from mlx_steer.model.load import Model
    from mlx_steer.serve.messages import Begun, Event
    from mlx_steer.vectors import SteeringVectorSet


@dataclass(frozen=True, eq=False)
class Acting:
    """What one of the --vectors does.

    Attributes:
        folder: As it was given.
        vectors: What is in it.
        layers: Where it acts: one, or a band.
        strength: See --operator.
        operator: How it acts.
    """

    folder: str
    vectors: SteeringVectorSet
    layers: tuple[int, ...]
    strength: float
    operator: Operator

    def label(self, several: bool) -> str:
        """What it does, for the head of a column."""
        from mlx_steer.bands import band_of, layer_words

        words = {"add": ", strength", "ablate": " ablated by", "clamp": " clamped to"}
        name = f"{self.vectors.metadata.behavior} " if several else ""
        place = layer_words(band_of(self.layers))
        return f"{name}{place}{words[self.operator]} {self.strength:g}"

    def dose(self) -> float | None:
        """The relative dose, where there is one."""
        from mlx_steer.vectors import relative_dose

        if self.operator != "add":
            return None
        return relative_dose([self.vectors[layer] for layer in self.layers], self.strength)

    def interventions(self, scope: Scope) -> list[Intervention]:
        """The same, for the engine."""
        from mlx_steer.conditions import Intervention

        name = self.vectors.metadata.behavior
        return [
            Intervention(
                layer, self.vectors[layer].array, self.strength, self.operator, scope, name
            )
            for layer in self.layers
        ]


class Pair:
    """A model under two conditions, base and steered.

    Args:
        options: Of the command.

    Attributes:
        model: The model.
        acting: What steers; may be changed.
        gate: The gate that decides, by name; may be changed.
        scope: The positions that are steered.
        start: How conversations begin.
    """

    def __init__(self, options: dict[str, Any]) -> None:
        """See the class."""
        from mlx_steer.cli.output import safe
        from mlx_steer.engine.guard import load_model
        from mlx_steer.engine.jobs import Sampling
        from mlx_steer.serve.direct import Direct
        from mlx_steer.vectors import load_vectors

        self.scope: Scope = options["scope"]
        names = ("folders", "layers", "strengths", "operators")
        folders, layers, strengths, operators = _together({name: options[name] for name in names})
        loaded = {folder: load_vectors(folder) for folder in folders}
        system = _system_prompt(options["system_prompt"], next(iter(loaded.values())))
        self.start: list[Message] = [{"role": "system", "content": system}] if system else []
        self.gate: str | None = options["gate"] or None
        settings = model_settings(options)
        self.model: Model = load_model(settings.pop("name"), **settings)
        shape = (self.model.hidden_size, self.model.num_layers, self.model.info.id)
        notes = dict.fromkeys(
            note for found in loaded.values() for note in found.check_fits(*shape)
        )
        for note in notes:
            click.echo(f"note: {safe(note)}", err=True)
        self.acting = [
            Acting(folder, loaded[folder], self._layers(place), strength, operator)
            for folder, place, strength, operator in zip(
                folders, layers, strengths, operators, strict=True
            )
        ]
        self.steered()  # what does not fit is said now
        self._sampling = Sampling(options["max_tokens"], options["temperature"], options["seed"])
        self._direct = Direct(self.model)

    @property
    def label(self) -> str:
        """What steers, in a few words."""
        several = len({act.folder for act in self.acting}) > 1
        label = " + ".join(act.label(several) for act in self.acting)
        return f"{'gated ' if self.gate else ''}{label}"

    def steered(self) -> Condition:
        """What steers.

        Raises:
            VectorError: If vectors have no such layer, or none of them such a gate.
        """
        from mlx_steer.conditions import Condition

        acts = tuple(one for act in self.acting for one in act.interventions(self.scope))
        gates = (self.gate_of()[1],) if self.gate else ()
        return Condition(self.label, None, acts, gates)

    def gate_of(self) -> tuple[Acting, Gate]:
        """The gate that decides, and the first whose vectors have it.

        Raises:
            VectorError: If there is none of that name.
        """
        name = self.gate or ""
        has = (act for act in self.acting if any(g.name == name for g in act.vectors.gates))
        found = next(has, self.acting[0])
        return found, found.vectors.gate(name)

    def with_layers(self, places: Sequence[LayerOrBand]) -> None:
        """Act elsewhere; one layer or band for all, or one for each.

        Raises:
            ModelError: If the model has no such layer.
            VectorError: If vectors have none.
        """
        every = [self._layers(place) for place in self._each(places)]
        self._change([replace(a, layers=n) for a, n in zip(self.acting, every, strict=True)])

    def with_strengths(self, strengths: Sequence[float]) -> None:
        """Act at other strengths; one for all, or one for each."""
        every = self._each(strengths)
        self._change([replace(a, strength=x) for a, x in zip(self.acting, every, strict=True)])

    def _layers(self, place: LayerOrBand) -> tuple[int, ...]:
        from mlx_steer.bands import layers_of

        return tuple(self.model.layer(layer) for layer in layers_of(place))

    def _each(self, values: Sequence[Any]) -> list[Any]:
        count = len(self.acting)
        if len(values) not in (1, count):
            raise click.UsageError(f"give one, or one for each of the {count} --vectors in order")
        return list(values) * count if len(values) == 1 else list(values)

    def _change(self, acting: list[Acting]) -> None:
        before, self.acting = self.acting, acting
        try:
            self.steered()
        except Exception:
            self.acting = before
            raise

    def saved(self) -> tuple[dict[str, str], list[dict[str, Any]]]:
        """Vectors folders by name, and what steers as a request to the server says it."""
        names: dict[str, str] = {}
        for act in self.acting:
            # As they may stand in a URL.
            behavior = re.sub(r"[^A-Za-z0-9._-]+", "-", act.vectors.metadata.behavior).strip("-._")
            free = (behavior, *(f"{behavior}-{n}" for n in range(2, 99)))
            names.setdefault(act.folder, next(one for one in free if one not in names.values()))
        gated = self.gate_of()[0] if self.gate else None
        steering = []
        for act in self.acting:
            one: dict[str, Any] = {
                "vector": names[act.folder],
                "operator": act.operator,
                "scope": self.scope,
            }
            if act is gated:
                one["gate"] = self.gate
            steering += [
                {**one, "layer": item.layer, "strength": item.strength}
                for item in act.interventions(self.scope)
            ]
        folders = {name: str(Path(folder).absolute()) for folder, name in names.items()}
        return folders, steering

    def answer(self, base: list[Message] | None, steered: list[Message], draw: Draw) -> Answers:
        """The responses to two conversations, or to one, drawn as they come.

        Args:
            base: The conversation with the unsteered model; None to leave it out.
            steered: That with the steered one.
            draw: Takes the texts as far as they have come, the base one's first.
        """
        from mlx_steer.conditions import Condition
        from mlx_steer.serve.messages import Ask

        sides = [(Condition("base"), base)] if base is not None else []
        sides.append((self.steered(), steered))
        asks = [
            Ask(tuple(self.model.chat.conversation_ids(said)), condition, self._sampling)
            for condition, said in sides
        ]
        if self.scope == "thinking" and not self.model.chat.thinks(asks[-1].ids):
            click.echo("note: the model is not thinking, so nothing is steered", err=True)
        found = Answers([Answer() for _ in asks])
        try:
            for index, event in self._direct.stream(asks):
                found.every[index].take(event)
                draw([one.text for one in found.every])
        except KeyboardInterrupt:
            found.stopped = True
        return found


@dataclass
class Answer:
    """One response as far as it has come.

    Attributes:
        text: The answer, without the thinking before it.
        thinks: Whether there was thinking.
        begun: What was told when the prompt was read.
    """

    text: str = ""
    thinks: bool = False
    begun: Begun | None = None

    def take(self, event: Event) -> None:
        """Go on by an event."""
        from mlx_steer.serve.messages import Begun, Token

        if isinstance(event, Begun):
            self.begun = event
        elif isinstance(event, Token) and event.thinking:
            self.thinks = True
        else:
            self.text += event.text


@dataclass
class Answers:
    """The base response, if it was asked for, and the steered one.

    Attributes:
        every: They.
        stopped: Whether Ctrl-C ended them.
    """

    every: list[Answer]
    stopped: bool = False

    def told(self) -> list[str]:
        """What is to be known of them beside their texts."""
        found, begun = [], self.every[-1].begun
        if begun is not None and begun.gates:
            found.append(f"gate {'open' if begun.steered else 'shut'} ({begun.gates[0]:+.3f})")
        if not self.stopped and any(one.thinks and not one.text for one in self.every):
            found.append("note: still thinking at the last token; give more --max-tokens")
        return found


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
