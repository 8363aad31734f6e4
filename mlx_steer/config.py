"""Experiment files (YAML) as frozen, validated models; every default of the toolkit lives here."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal, cast, get_args

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from mlx_steer.errors import ConfigError
from mlx_steer.files import BoundedLoader
from mlx_steer.words import DtypeChoice, GateMethod, Method, Scope, TokenPosition

# Beyond any sensible factor, but small enough that nothing overflows.
Strength = Annotated[float, Field(allow_inf_nan=False, ge=-1e6, le=1e6)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0)]
Text = Annotated[str, Field(min_length=1)]

# Newline and tab are text; the rest breaks a terminal, a path or a tokenizer.
_NO_TEXT = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")

_MESSAGES = {
    "bool_type": "must be true or false",
    "finite_number": "must be a finite number",
    "float_type": "must be a number",
    "int_from_float": "must be a whole number",
    "int_type": "must be a whole number",
    "model_type": "must hold keys and values",
    "string_pattern_mismatch": "must begin with a letter or digit, and hold letters, digits, '.', "
    "'_' and '-' only, at most 100",
    "string_too_short": "must not be empty",
    "string_type": "must be text; put it in quotes",
    "tuple_type": "must be a list, in square brackets",
}


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=())


class ModelConfig(_Section):
    """Which model, and in which precision (see `load_model`)."""

    name: Text
    revision: Text | None = None
    dtype: DtypeChoice = "auto"
    quantize: Literal[4, 8] | None = None
    adapter: Text | None = None
    dequantize: bool = False
    thinking: bool = False


class JudgeModelConfig(ModelConfig):
    """A model that reads every response beside the judge of rules (see judge_model.py).

    Attributes:
        max_tokens: Of its answers, which are a word or two; more for a model that thinks first.
    """

    max_tokens: Count = 16


class ExtractConfig(_Section):
    """Where the steering vectors come from.

    Attributes:
        layers: Layers, 0-based, negative from the end; "all" for every one.
        token_position: `last` response token, or the `mean` over all of them.
        method: How the vector is made from the pairs' hidden states (see directions.py).
        vectors: A vectors folder to use instead of extracting.
    """

    layers: tuple[int, ...] | Literal["all"] = "all"
    token_position: TokenPosition = "last"
    method: Method = "mean_difference"
    vectors: Text | None = None

    @field_validator("layers", mode="before")
    @classmethod
    def _distinct(cls, value: Any) -> Any:
        return _distinct_list(value, "layers")


class Limits(_Section):
    """What a cell of the sweep may cost and still be chosen, against the base run.

    Attributes:
        false_positives: Most false positives above base, as a fraction.
        coherence_drop: How far mean coherence may lie under base.
        incoherent: Largest fraction of incoherent rows.
    """

    false_positives: Fraction = 0.10
    coherence_drop: Fraction = 0.05
    incoherent: Fraction = 0.10


class SweepConfig(_Section):
    """The search for a layer and a strength, on the select half of the prompts.

    Attributes:
        layers: Which of the vectors' layers; None for all of them.
        strengths: Factors on the raw vector.
        system_prompts: Names of the behavior's system prompts, or texts; they are compared too.
        screen: Rank the cells before anything is generated and run only so many (see
            screening.py); None runs them all.
        limits: See `Limits`.
    """

    layers: tuple[int, ...] | None = None
    strengths: tuple[Strength, ...] = (0.5, 1.0, 1.5)
    system_prompts: tuple[Text, ...] = ("detailed", "calibrated")
    screen: Count | None = None
    limits: Limits = Limits()

    @field_validator("layers", "strengths", "system_prompts", mode="before")
    @classmethod
    def _distinct(cls, value: Any, info: ValidationInfo) -> Any:
        return _distinct_list(value, str(info.field_name))


class ControlsConfig(_Section):
    """Conditions that show whether the vector's meaning matters, at the chosen layer and strength.

    Attributes:
        random: How many random directions of the vector's norm.
        negated: The vector with its sign turned.
        shuffled: The vector from pairs whose sides were swapped at random.
    """

    random: Annotated[int, Field(ge=0, le=100)] = 5
    negated: bool = True
    shuffled: bool = True


class GateConfig(_Section):
    """A gate on the prompt's hidden state, fitted on the behavior's own `gate` prompts.

    Attributes:
        layers: Layers to try; "all" for every one.
        methods: Ways to make the direction; cross-validation picks one.
        false_positive_rate: Of held-out other prompts, at most so many may open the gate.
        strengths: Factors on the raw vector for gated steering; None takes those of the sweep.
    """

    layers: tuple[int, ...] | Literal["all"] = "all"
    methods: tuple[GateMethod, ...] = (
        "mean_difference",
        "whitened_mean_difference",
        "logistic_regression",
    )
    false_positive_rate: Annotated[float, Field(gt=0, lt=1)] = 0.05
    strengths: tuple[Strength, ...] | None = None

    @field_validator("layers", "methods", "strengths", mode="before")
    @classmethod
    def _distinct(cls, value: Any, info: ValidationInfo) -> Any:
        return _distinct_list(value, str(info.field_name))


class CompareConfig(_Section):
    """The fair comparison, on the test half of the prompts.

    Attributes:
        layer: The steered layer; None for the one the sweep chose.
        strengths: Factors on the raw vector; the chosen one is added if it is not among them.
        system_prompt: A name or a text; None for the one the sweep chose.
        borderline: Whether prompts that only sound like the target are run too.
        controls: See `ControlsConfig`.
    """

    layer: int | None = None
    strengths: tuple[Strength, ...] = (0.5, 1.0, 1.5)
    system_prompt: Text | None = None
    borderline: bool = True
    controls: ControlsConfig = ControlsConfig()

    @field_validator("strengths", mode="before")
    @classmethod
    def _distinct(cls, value: Any) -> Any:
        return _distinct_list(value, "strengths")


class GenerationConfig(_Section):
    """How responses are generated.

    Attributes:
        max_tokens: Response tokens at most.
        temperature: 0 is greedy.
        seed: Of the sampling, when the temperature is above 0.
        batch_size: Rows decoded at a time; None chooses what fits in memory.
    """

    max_tokens: Count = 150
    temperature: Annotated[float, Field(ge=0, le=10)] = 0.0
    seed: Seed = 0
    batch_size: Annotated[int, Field(ge=1, le=4096)] | None = None


class StatisticsConfig(_Section):
    """Seeds and levels of the statistics.

    Attributes:
        seed: Of bootstrap resampling and of random controls.
        resamples: Bootstrap resamples.
        alpha: Level of the Holm-corrected tests.
    """

    seed: Seed = 0
    resamples: Annotated[int, Field(ge=100, le=1_000_000)] = 10_000
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.05


class ExperimentConfig(_Section):
    """One experiment: extract, sweep, choose, compare, report.

    Attributes:
        name: Of the run, and of its directory under `runs/`.
        behavior: A shipped behavior's name, or a folder of one's own.
        scope: The positions that vectors act on, in every condition that steers (see
            `Intervention`).
        gate: Fit a gate and compare gated steering too; None does without.
        judge_model: A model that judges every row once more; None does without.
        prompts_per_set: Use only the first so many prompts of each set and split.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    model: ModelConfig
    behavior: Text = "refusal"
    extract: ExtractConfig = ExtractConfig()
    sweep: SweepConfig = Field(default_factory=SweepConfig)
    compare: CompareConfig = Field(default_factory=CompareConfig)
    gate: GateConfig | None = None
    generation: GenerationConfig = GenerationConfig()
    statistics: StatisticsConfig = StatisticsConfig()
    judge_model: JudgeModelConfig | None = None
    prompts_per_set: Count | None = None
    scope: Scope = "all"

    @field_validator("scope")
    @classmethod
    def _acts(cls, value: str, info: ValidationInfo) -> str:
        model, sweep = info.data.get("model"), info.data.get("sweep")
        thinking = model is not None and model.thinking
        if value == "thinking" and model is not None and not thinking:
            raise ValueError("acts on nothing unless the model thinks; set model.thinking: true")
        if value == "answer" and thinking and sweep is not None and sweep.screen is not None:
            raise ValueError(
                "does not reach the first response token, which sweep.screen reads, while the "
                "model thinks; leave sweep.screen out"
            )
        return value

    def to_yaml(self) -> str:
        """The whole configuration with every default filled in; the same config, the same text."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def load_config(path: str | Path) -> ExperimentConfig:
    """Read an experiment file.

    Raises:
        ConfigError: If it cannot be read or says something impossible; the message names every
            wrong key, and the nearest right one.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"there is no config file {path}") from None
    except IsADirectoryError:
        raise ConfigError(f"{path} is a folder; give the experiment file in it") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text (byte {error.start}); save it so") from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"the config file {str(path)!r} cannot be read: {error}") from error
    try:
        data = yaml.load(text, Loader=_Loader)
    except Exception as error:  # the constructors of dates and numbers raise anything
        raise ConfigError(f"{path} is not valid YAML: {_yaml_problem(error)}") from error
    return parse_config(data, str(path))


def parse_config(data: object, where: str) -> ExperimentConfig:
    """Validate the contents of an experiment file.

    Args:
        data: What YAML gave.
        where: The file, for messages.

    Raises:
        ConfigError: See `load_config`.
    """
    if not isinstance(data, dict):
        raise ConfigError(f"{where} must hold keys and values, such as 'name: my-experiment'")
    try:
        return ExperimentConfig.model_validate(_plain(data))
    except ValidationError as error:
        details = [e for e in error.errors(include_url=False) if not _other_branch(e)]
        problems = "; ".join(_problem(e) for e in details[:10])
        raise ConfigError(f"{where}: {problems}") from error
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error


class _Loader(BoundedLoader):
    """YAML without aliases, which can nest a billion values in ten lines, and no key twice."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = cast(Any, self).peek_event()
            problem = f"the alias *{event.anchor} is not read, write it out"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen = set()
        for key, _ in node.value:
            if key.value.__hash__ and key.value in seen:
                problem = f"the key {_shown(key.value)} stands twice"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            seen.add(key.value if key.value.__hash__ else id(key))
        return super().construct_mapping(node, deep)


def _yaml_problem(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None)
    if mark is None or problem is None:
        return " ".join(str(error).split())[:300]
    return f"{problem} (line {mark.line + 1}, column {mark.column + 1})"


def _plain(value: Any) -> Any:
    """Lists as the tuples that frozen models hold; raises ValueError for text that is none."""
    if isinstance(value, dict):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return tuple(_plain(v) for v in value)
    if isinstance(value, str) and (bad := _NO_TEXT.search(value)):
        raise ValueError(f"the text {_shown(value)} has the character {bad[0]!r}; take it out")
    return value


def _distinct_list(value: Any, what: str) -> Any:
    if isinstance(value, list | tuple):
        if not value and what in ("strengths", "layers", "methods"):
            raise ValueError(f"{what} must not be empty")
        # As they stand in the names of conditions.
        names = Counter(f"{v:g}" if isinstance(v, float) else str(v) for v in value)
        twice = [name for name, count in names.items() if count > 1]
        if twice:
            raise ValueError(f"{', '.join(twice)} stands twice")
    return value


def _other_branch(error: Any) -> bool:
    """Whether this is what a union's other choice said: `layers` is "all" or a list."""
    branch = [str(p) for p in error["loc"] if "[" in str(p)]
    is_text = isinstance(error["input"], str)
    if not branch:
        return False
    if branch[0].startswith("literal["):
        return not is_text
    return is_text and error["type"] == "tuple_type"


def _problem(error: Any) -> str:
    place = ".".join(str(p) for p in error["loc"] if "[" not in str(p))
    if error["type"] == "extra_forbidden":
        *section, key = error["loc"]
        return f"unknown key {_shown(place)}{_hint(str(key), section)}"
    if error["type"] == "missing":
        return f"{place!r} is missing"
    message = _MESSAGES.get(error["type"]) or error["msg"].removeprefix("Value error, ")
    message = message.replace("Input should be", "must be")
    if any("literal[" in str(p) for p in error["loc"]):
        message += " or a list"
    return f"{place or 'the file'}: {message} (got {_shown(error['input'])})"


def _hint(key: str, section: list[Any]) -> str:
    known = _keys(section)
    near = difflib.get_close_matches(key[:100], known, n=1, cutoff=0.5)
    homes = [f"{name}.{key}" for name in ExperimentConfig.model_fields if key in _keys([name])]
    if near or homes:
        best = near or homes if section else homes or near
        return f", did you mean {best[0]!r}?"
    return f"; it may be: {', '.join(known)}"


def _shown(value: object) -> str:
    text = repr(list(value) if isinstance(value, tuple) else value)
    return text if len(text) <= 60 else text[:57] + "..."


def _keys(section: list[Any]) -> list[str]:
    model: Any = ExperimentConfig
    for name in section:
        kind = model.model_fields[name].annotation
        # A section that may be left out is a union with None.
        model = next((k for k in (kind, *get_args(kind)) if hasattr(k, "model_fields")), None)
        if model is None:
            return []
    return list(model.model_fields)
