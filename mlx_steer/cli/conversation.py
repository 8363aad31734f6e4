"""The conversation of `chat`: messages to both models, and commands that change what steers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlx_steer.cli.options import FACTOR, LAYER
from mlx_steer.cli.pair import Answers, Pair
from mlx_steer.errors import SteerError

if TYPE_CHECKING:
    from mlx_steer.model.chat import Message

_HELP = """\
/strength X     steer with this strength (for several vectors: one for all, or one for each)
/layer N        steer at this layer, or in this band of layers: 12-16 (the same)
/gate NAME      steer only if this gate of the vectors opens; /gate off: always
/base           leave the base model's answers out, or show them again
/again          answer the last message once more
/save NAME      write what steers to NAME.yaml, for mlx-steer serve --preset NAME.yaml
/help           this list; an empty line, Ctrl-C or Ctrl-D ends the chat"""


class Conversation:
    """A chat with one model under two conditions.

    Args:
        pair: The model.
    """

    def __init__(self, pair: Pair) -> None:
        """See the class."""
        self._pair = pair
        self._steered: list[Message] = [*pair.start]
        # None while the base model is left out.
        self._base: list[Message] | None = [*pair.start]
        self._commands: dict[str, Callable[[list[str]], str]] = {
            "strength": self._strength,
            "layer": self._layer,
            "gate": self._gate,
            "base": self._toggle,
            "again": self._again,
            "save": self._save,
            "help": lambda rest: _HELP,
        }

    def hold(self) -> None:
        """Talk until the person ends it."""
        click.echo(
            "Type a message, or /help for what can be changed; an empty line, Ctrl-C or Ctrl-D "
            "ends the chat.",
            err=True,
        )
        while True:
            try:
                line = input("> ").strip()
            except (EOFError, KeyboardInterrupt):
                click.echo(err=True)
                return
            except UnicodeDecodeError:
                click.echo("That was not UTF-8 text.", err=True)
                continue
            if not line:
                return
            if line.startswith("/") and not line.startswith("//"):
                self._command(line[1:])
            else:
                self._say(line.removeprefix("/"))

    def _say(self, text: str) -> None:
        for side in self._sides:
            side.append({"role": "user", "content": text})
        try:
            answers = self._answered()
        except SteerError:
            # Most likely the conversation is too long; what was said before it stands.
            for side in self._sides:
                side.pop()
            raise
        for side, answer in zip(self._sides, answers.every, strict=True):
            side.append({"role": "assistant", "content": answer.text.strip()})

    @property
    def _sides(self) -> list[list[Message]]:
        return [self._steered] if self._base is None else [self._base, self._steered]

    def _answered(self) -> Answers:
        from mlx_steer.cli.columns import columns, text

        drawn = text() if self._base is None else columns(["base", self._pair.label])
        with drawn as draw:
            answers = self._pair.answer(self._base, self._steered, draw)
        for line in [*answers.told(), *(["stopped"] if answers.stopped else [])]:
            click.echo(line, err=True)
        return answers

    def _command(self, line: str) -> None:
        """Do what a line says, and say what was done."""
        from mlx_steer.cli.output import safe

        name, _, rest = line.partition(" ")
        command = self._commands.get(name)
        try:
            if command is None:
                raise click.UsageError(
                    f"there is no /{name[:40]}; begin a message with // to send it"
                )
            said = command(rest.split())
        except (click.UsageError, click.BadParameter) as error:
            said = error.message if command else f"{error.message}\n{_HELP}"
        except SteerError as error:
            said = str(error)
        if said:
            click.echo("\n".join(map(safe, said.split("\n"))), err=True)

    def _state(self) -> str:
        doses = [act.dose() for act in self._pair.acting]
        known = ", ".join(f"{dose:.2f}" for dose in doses if dose is not None)
        gate = f", if gate {self._pair.gate} opens" if self._pair.gate else ""
        dose = f" (relative dose {known})" if known else ""
        return f"from the next message on: {self._pair.label}{dose}{gate}"

    def _strength(self, words: list[str]) -> str:
        if not words:
            raise click.UsageError("say which: /strength 0.8")
        self._pair.with_strengths([FACTOR.convert(word, None, None) for word in words])
        return self._state()

    def _layer(self, words: list[str]) -> str:
        known = sorted({layer for act in self._pair.acting for layer in act.vectors})
        said = f"say which: /layer {known[0]}; the vectors have {', '.join(map(str, known))}"
        if not words:
            raise click.UsageError(said)
        places = [LAYER.convert(word, None, None) for word in words]
        self._pair.with_layers(places)
        return self._state()

    def _gate(self, words: list[str]) -> str:
        known = sorted({gate.name for act in self._pair.acting for gate in act.vectors.gates})
        if len(words) != 1:
            there = f"there are: {', '.join(known)}" if known else "these vectors have none"
            raise click.UsageError(f"say which: /gate NAME, or /gate off; {there}")
        before = self._pair.gate
        self._pair.gate = None if words == ["off"] else words[0]
        try:
            self._pair.steered()
        except SteerError:
            self._pair.gate = before
            raise
        return self._state()

    def _toggle(self, words: list[str]) -> str:
        if self._base is not None:
            self._base = None
            return "the base model is left out; /base asks it again"
        self._base = [*self._steered]
        return "the base model answers too, and goes on from the steered conversation"

    def _again(self, words: list[str]) -> str:
        if not self._steered or self._steered[-1]["role"] != "assistant":
            raise click.UsageError("nothing was asked yet")
        for side in self._sides:
            side.pop()
        text = self._steered[-1]["content"]
        for side in self._sides:
            side.pop()
        self._say(text)
        return ""

    def _save(self, words: list[str]) -> str:
        from mlx_steer.serve.preset_file import PresetFile

        if len(words) != 1:
            raise click.UsageError("say under which name: /save calm")
        file = Path(words[0]).with_suffix(".yaml")
        vectors, steering = self._pair.saved()
        PresetFile.model_validate({"vectors": vectors, "steering": steering}).write(file)
        start = " (the system prompt is not part of it)" if self._pair.start else ""
        return (
            f"saved{start}; to serve it: mlx-steer serve --model "
            f"{self._pair.model.info.id} --preset {file}"
        )
