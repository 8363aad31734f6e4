"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import click

from mlx_steer.words import DtypeChoice, Shard, TokenPosition

if TYPE_CHECKING:
    from mlx_steer.sentences import TwoSentences

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

# The names of directions.METHODS, which is not imported here: it would bring numpy into --help.
_METHODS = {
    "mean_difference": "Rimsky et al. 2024",
    "whitened_mean_difference": "Fisher's discriminant, covariance after Ledoit and Wolf 2004",
    "logistic_regression": "a linear probe; Li et al. 2023",
    "pca": "of the pairs' differences; Zou et al. 2023",
}

_MOST_LAYERS = 10_000
_LARGEST = 1e6
_MOST_PARTS = 10_000


class FromConfig:
    """A default of the experiment file's, looked up when it is needed: pydantic takes its time.

    Args:
        section: The name of a section's class in config.py.
        key: Of the section.
    """

    def __init__(self, section: str, key: str) -> None:
        """See the class."""
        self._section, self._key = section, key

    def __call__(self) -> Any:
        """The default, as click asks for it."""
        from mlx_steer import config

        fields = getattr(config, self._section).model_fields
        return fields[self._key].get_default(call_default_factory=True)

    def __str__(self) -> str:
        """The default as a user writes it."""
        value = self()
        return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


class Numbers(click.ParamType[Any]):
    """A list such as 12,14,16 or 0.5,1.0, or one word; layers may also be ranges (8-20)."""

    def __init__(self, kind: type[int] | type[float], word: str | None = None) -> None:
        """`int` for layers, `float` for strengths; the word that may stand instead."""
        self.kind, self.word = kind, word
        self.name = "layers" if kind is int else "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The list as a tuple, or the word."""
        if not isinstance(value, str) or value == self.word:
            return value
        numbers: list[float] = []
        for part in value.split(","):
            low, dash, high = part.strip().partition("-")
            try:
                if self.kind is int and dash and low:
                    numbers += self._range(int(low), int(high), param, ctx)
                else:
                    numbers.append(self.kind(part))
            except ValueError:
                example = "12,14,16" if self.kind is int else "0.5,1.0"
                self.fail(
                    f"{part.strip()!r} is not a number; write for example {example}", param, ctx
                )
        return tuple(numbers)

    def _range(
        self, low: int, high: int, param: click.Parameter | None, ctx: click.Context | None
    ) -> range:
        if low > high:
            self.fail(f"the range {low}-{high} counts down; write {high}-{low}", param, ctx)
        if high > _MOST_LAYERS:
            self.fail(f"no model has the layers {low}-{high}", param, ctx)
        return range(low, high + 1)


class Layer(click.ParamType[Any]):
    """A layer, or a band of layers such as 12-16 that are steered together."""

    name = "layer"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The layer's number, or the band as text."""
        from mlx_steer.bands import read_layer

        try:
            return value if isinstance(value, int) else read_layer(value)
        except ValueError:
            self.fail(
                f"{value!r} is no layer; write for example 12, or 12-16 for a band", param, ctx
            )


class Factor(click.ParamType[float]):
    """A finite number of a size that makes sense."""

    name = "number"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """The number."""
        try:
            number = float(value)
        except ValueError:
            self.fail(f"{value!r} is not a number; write for example 1.5", param, ctx)
        if not abs(number) <= _LARGEST:
            self.fail(f"{value!r} is not a finite number of at most {_LARGEST:,.0f}", param, ctx)
        return number


class PartOf(click.ParamType[tuple[int, int]]):
    """One of several parts, such as 3/8."""

    name = "part"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        """Its number, counted from 1, and how many there are."""
        number, _, count = str(value).partition("/")
        if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
            self.fail(f"{value!r} is no part; write for example 3/8, from 1/8 to 8/8", param, ctx)
        if int(count) > _MOST_PARTS:
            self.fail(f"{value!r} is one of more than {_MOST_PARTS:,} parts", param, ctx)
        return int(number), int(count)


class Text(click.ParamType[str]):
    """Text that a tokenizer can read: the terminal may give bytes that are none."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The text."""
        try:
            str(value).encode()
        except UnicodeEncodeError:
            self.fail(f"{value!r} is not UTF-8 text", param, ctx)
        return str(value)


LAYER = Layer()
LAYERS = Numbers(int, "all")
NUMBERS = Numbers(float)
FACTOR = Factor()
TEXT = Text()


def model_options(command: Decorated) -> Decorated:
    """--model and what belongs to it."""
    for option in reversed(
        [
            click.option(
                "--model",
                "-m",
                required=True,
                metavar="MODEL",
                help="A hub id (org/name[@revision]), a folder, a .gguf file, or smollm2-135m.",
            ),
            click.option("--revision", help="A branch, tag or commit of the hub."),
            click.option(
                "--dtype",
                type=click.Choice(get_args(DtypeChoice)),
                metavar="DTYPE",
                default=FromConfig("ModelConfig", "dtype"),
                show_default=True,
                help="auto, float32, bfloat16 or float16: the dtype of the weights and of the "
                "hidden state.",
            ),
            click.option(
                "--quantize",
                type=click.Choice(["4", "8"]),
                help="Convert original weights to so many bits, once.",
            ),
            click.option(
                "--adapter", metavar="FOLDER", help="A folder with a LoRA adapter made by mlx-lm."
            ),
            click.option(
                "--dequantize", is_flag=True, help="Expand quantised weights (faster on Linux)."
            ),
            click.option("--thinking", is_flag=True, help="Let the model think first (Qwen3)."),
            click.option(
                "--shard",
                type=click.Choice(get_args(Shard)),
                help="Spread the weights over the ranks that mlx.launch started.",
            ),
        ]
    ):
        command = option(command)
    return command


def model_settings(options: dict[str, Any]) -> dict[str, Any]:
    """Take the model's options out of a command's, as the config's `model` section."""
    if options["model"] is not None and not options["model"].strip():
        raise click.UsageError("--model is empty; give a hub id, a folder or smollm2-135m")
    names = ("revision", "dtype", "quantize", "adapter", "dequantize", "thinking", "shard")
    settings = {"name": options.pop("model"), **{name: options.pop(name) for name in names}}
    if settings["quantize"] is not None:
        settings["quantize"] = int(settings["quantize"])
    return settings


def generation_options(command: Decorated) -> Decorated:
    """--max-tokens, --temperature, --seed."""
    for option in (
        click.option(
            "--seed",
            type=click.IntRange(min=0),
            metavar="N",
            default=FromConfig("GenerationConfig", "seed"),
            show_default=True,
            help="Of the sampling.",
        ),
        click.option(
            "--temperature",
            type=FACTOR,
            default=FromConfig("GenerationConfig", "temperature"),
            show_default=True,
            help="0 takes the best token.",
        ),
        click.option(
            "--max-tokens",
            type=click.IntRange(min=1),
            metavar="N",
            default=FromConfig("GenerationConfig", "max_tokens"),
            show_default=True,
            help="Response tokens at most.",
        ),
    ):
        command = option(command)
    return command


def extraction_options(command: Decorated) -> Decorated:
    """--token-position and --method; None where the user left the choice to the toolkit."""
    for option in (
        click.option(
            "--method",
            type=click.Choice([*_METHODS]),
            metavar="METHOD",
            help="How vectors are made of the pairs' hidden states: "
            + "; ".join(f"{name} ({source})" for name, source in _METHODS.items())
            + ".  [default: mean_difference]",
        ),
        click.option(
            "--token-position",
            type=click.Choice(get_args(TokenPosition)),
            help="The last response token, or the mean over all of them.  [default: last]",
        ),
    ):
        command = option(command)
    return command


def extraction_settings(options: dict[str, Any]) -> dict[str, Any]:
    """Take these options out of a command's; only what the user gave."""
    given = {name: options.pop(name) for name in ("token_position", "method")}
    return {name: value for name, value in given.items() if value is not None}


behavior_option = click.option(
    "--behavior",
    "-b",
    default=FromConfig("ExperimentConfig", "behavior"),
    show_default=True,
    help="A shipped behavior, or a folder of your own.",
)


def sentence_options(command: Decorated) -> Decorated:
    """--positive, --negative, --name."""
    for option in (
        click.option(
            "--name",
            metavar="NAME",
            help="Of two sentences: a short name; alone, one of the shelf.",
        ),
        click.option(
            "--negative", metavar="SENTENCE", type=TEXT, help="What the vector leads away from."
        ),
        click.option(
            "--positive",
            metavar="SENTENCE",
            type=TEXT,
            help="What the vector leads to, in place of a behavior: a system prompt such as "
            '"You are a pirate...".',
        ),
    ):
        command = option(command)
    return command


def sentences_given(options: dict[str, Any]) -> TwoSentences | None:
    """Take these options out of a command's; None without.

    Raises:
        click.UsageError: If one of the two sentences is missing.
        ConfigError: If they make no behavior.
    """
    given = {name: options.pop(name, None) for name in ("positive", "negative", "name")}
    said = {name: value for name, value in given.items() if value is not None}
    if not said:
        return None
    if said.keys() == {"name"}:
        from mlx_steer.behaviors.two_sentences import from_shelf, shelf

        if (known := from_shelf(said["name"])) is None:
            names = ", ".join(one.name for one in shelf())
            raise click.UsageError(
                f"--name {said['name']!r} needs --positive and --negative; the shelf has {names}"
            )
        return known
    if not {"positive", "negative"} <= said.keys():
        raise click.UsageError("--positive and --negative belong together; give both sentences")
    from mlx_steer.config import parse_section
    from mlx_steer.sentences import TwoSentences

    return parse_section(TwoSentences, said, "the two sentences")


quiet_option = click.option("--quiet", "-q", is_flag=True, help="Print results only.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
