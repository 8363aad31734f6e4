"""Experiment files (YAML) as frozen, validated models; every default of the toolkit lives here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import (
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from mlx_steer.bands import LayerOrBand
from mlx_steer.errors import ConfigError
from mlx_steer.files import check_text, problems, read_yaml, shown
from mlx_steer.search_config import (
    STRENGTHS,
    Count,
    Section,
    Strength,
    Strengths,
    Text,
    distinct_list,
)
from mlx_steer.search_config import Limits as Limits
from mlx_steer.search_config import RaceConfig as RaceConfig
from mlx_steer.search_config import SweepConfig as SweepConfig
from mlx_steer.sentences import TwoSentences
from mlx_steer.words import (
    DtypeChoice,
    Extent,
    GateMethod,
    Method,
    Scope,
    Shard,
    TokenPosition,
)

FALSE_POSITIVE_RATE = 0.05
"""Of held-out prompts that should not be steered, at most so many may open a gate."""

MAX_TOKENS = 150
"""Response tokens at most."""

BATCH_SIZE = 64
"""Rows decoded at a time: they take some seven times less time than one by one (two CPU cores);
more double the memory, and what an interruption loses."""

RESAMPLES = 10_000
"""Bootstrap resamples."""

ALPHA = 0.05
"""Level of the Holm-corrected tests."""

SCORED_PROMPTS = 20
"""Test prompts of each set, target and other, whose responses are scored for perplexity under a
condition whose perplexity a table quotes."""

PRICED_PROMPTS = 40
"""Other prompts of the test half on which the price of steering is measured."""

Seed = Annotated[int, Field(ge=0)]

_AnySection = TypeVar("_AnySection", bound=Section)


class ModelConfig(Section):
    """Which model, and in which precision (see `load_model`)."""

    name: Text
    revision: Text | None = None
    dtype: DtypeChoice = "auto"
    quantize: Literal[4, 8] | None = None
    adapter: Text | None = None
    dequantize: bool = False
    thinking: bool = False
    shard: Shard | None = None


class JudgeModelConfig(ModelConfig):
    """A model that reads every response beside the judge of rules (see judge_model.py).

    Attributes:
        max_tokens: Of its answers, which are a word or two; more for a model that thinks first.
    """

    max_tokens: Count = 16


class ExtractConfig(Section):
    """Where the steering vectors come from.

    Attributes:
        layers: Layers, 0-based, negative from the end; "all" for every one.
        token_position: `last` response token, or the `mean` over all of them.
        method: How the vector is made from the pairs' hidden states (see directions.py).
        vectors: A vectors folder to use instead of extracting.
        answers: Of two sentences: how many answers to each question the model writes under either;
            several are sampled, a single one is greedy.
        answer_tokens: Their length at most.
    """

    layers: tuple[int, ...] | Literal["all"] = "all"
    token_position: TokenPosition = "last"
    method: Method = "mean_difference"
    vectors: Text | None = None
    answers: Annotated[int, Field(ge=1, le=100)] = 1
    answer_tokens: Count = 48

    @field_validator("layers", mode="before")
    @classmethod
    def _distinct(cls, value: Any) -> Any:
        return distinct_list(value, "layers")


class ControlsConfig(Section):
    """Conditions that show whether the vector's meaning matters, at the chosen layer and strength.

    Attributes:
        random: How many random directions of the vector's norm.
        negated: The vector with its sign turned.
        shuffled: The vector from pairs whose sides were swapped at random.
    """

    random: Annotated[int, Field(ge=0, le=100)] = 5
    negated: bool = True
    shuffled: bool = True


class GateConfig(Section):
    """A gate on the prompt's hidden state, fitted on the behavior's own `gate` prompts.

    Attributes:
        layers: Layers to try; "all" for every one.
        methods: Ways to make the direction; cross-validation picks one.
        false_positive_rate: Of held-out other prompts, at most so many may open the gate.
        strengths: Factors on the raw vector for gated steering, or "auto"; None takes those of the
            sweep.
    """

    layers: tuple[int, ...] | Literal["all"] = "all"
    methods: tuple[GateMethod, ...] = get_args(GateMethod)
    false_positive_rate: Annotated[float, Field(ge=0, lt=1)] = FALSE_POSITIVE_RATE
    strengths: Strengths | None = None

    @field_validator("layers", "methods", "strengths", mode="before")
    @classmethod
    def _distinct(cls, value: Any, info: ValidationInfo) -> Any:
        return distinct_list(value, str(info.field_name))


class CompareConfig(Section):
    """The fair comparison, on the test half of the prompts.

    Attributes:
        extent: `full`, or what the `answer` needs: the chosen strengths alone, prompt and vector
            together without borderline prompts, and controls on target prompts only.
        layer: The steered layer or band; None for the one the sweep chose.
        strengths: For the full extent: factors on the raw vector; the chosen one is added if it is
            not among them.
        system_prompt: A name or a text; None for the one the sweep chose.
        borderline: Whether prompts that only sound like the target are run too.
        controls: See `ControlsConfig`.
    """

    extent: Extent = "full"
    layer: LayerOrBand | None = None
    strengths: tuple[Strength, ...] = STRENGTHS
    system_prompt: Text | None = None
    borderline: bool = True
    controls: ControlsConfig = ControlsConfig()

    @field_validator("strengths", mode="before")
    @classmethod
    def _distinct(cls, value: Any) -> Any:
        return distinct_list(value, "strengths")


class GenerationConfig(Section):
    """How responses are generated.

    Attributes:
        max_tokens: Response tokens at most.
        temperature: 0 is greedy.
        seed: Of the sampling, when the temperature is above 0.
        batch_size: Rows decoded at a time; None chooses what fits in memory.
    """

    max_tokens: Count = MAX_TOKENS
    temperature: Annotated[float, Field(ge=0, le=10)] = 0.0
    seed: Seed = 0
    batch_size: Annotated[int, Field(ge=1, le=4096)] | None = None


class StatisticsConfig(Section):
    """Seeds and levels of the statistics.

    Attributes:
        seed: Of bootstrap resampling and of random controls.
        resamples: Bootstrap resamples.
        alpha: Level of the Holm-corrected tests.
    """

    seed: Seed = 0
    resamples: Annotated[int, Field(ge=100, le=1_000_000)] = RESAMPLES
    alpha: Annotated[float, Field(gt=0, lt=1)] = ALPHA


class ExperimentConfig(Section):
    """One experiment: extract, sweep, choose, compare, report.

    Attributes:
        name: Of the run, and of its directory under `runs/`.
        behavior: A shipped behavior's name, a folder of one's own, or two opposed sentences.
        scope: The positions that vectors act on, in every condition that steers (see
            `Intervention`).
        gate: Fit a gate and compare gated steering too; None does without.
        judge_model: A model that judges every row once more; None does without.
        prompts_per_set: Use only the first so many prompts of each set and split.
    """

    name: str
    model: ModelConfig
    behavior: Text | TwoSentences = "refusal"
    extract: ExtractConfig = ExtractConfig()
    sweep: SweepConfig = Field(default_factory=SweepConfig)
    compare: CompareConfig = Field(default_factory=CompareConfig)
    gate: GateConfig | None = None
    generation: GenerationConfig = GenerationConfig()
    statistics: StatisticsConfig = StatisticsConfig()
    judge_model: JudgeModelConfig | None = None
    prompts_per_set: Count | None = None
    scope: Scope = "all"

    @field_validator("name")
    @classmethod
    def _names_a_folder(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", value):
            raise ValueError(
                "must begin with a letter or digit, and hold letters, digits, '.', '_' and '-' "
                f"only, at most 100 (got {shown(value)})"
            )
        return value

    @field_validator("scope")
    @classmethod
    def _acts(cls, value: str, info: ValidationInfo) -> str:
        model, sweep = info.data.get("model"), info.data.get("sweep")
        thinking = model is not None and model.thinking
        if value == "thinking" and model is not None and not thinking:
            raise ValueError("acts on nothing unless the model thinks; set model.thinking: true")
        if value == "answer" and thinking and sweep is not None and sweep.screens:
            cure = "leave sweep.screen out"
            if sweep.strategy == "race":
                cure = "take sweep.strategy: grid"
            elif sweep.strengths == "auto":
                cure = "name sweep.strengths"
            raise ValueError(
                "does not reach the first response token, which the screening reads, while the "
                f"model thinks; {cure}"
            )
        return value

    @model_validator(mode="before")
    @classmethod
    def _suits_two_sentences(cls, data: Any) -> Any:
        """What a file says nothing of, where the behavior is two sentences."""
        if not isinstance(data, dict) or not isinstance(data.get("behavior"), dict):
            return data
        usual: dict[str, dict[str, object]] = {
            "extract": {"token_position": "mean"},
            "sweep": {"system_prompts": ("positive",)},
        }
        for name, values in usual.items():
            if isinstance(said := data.get(name, {}), dict):
                data = {**data, name: {**values, **said}}
        return data

    def to_yaml(self) -> str:
        """The whole configuration with every default filled in; the same config, the same text."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def load_config(path: str | Path) -> ExperimentConfig:
    """Read an experiment file.

    Raises:
        ConfigError: If it cannot be read or says something impossible; the message names every
            wrong key, and the nearest right one.
    """
    return parse_config(read_yaml(Path(path), ConfigError), str(path))


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
    return parse_section(ExperimentConfig, data, where)


def parse_section(
    section: type[_AnySection], data: Mapping[str, object], where: str
) -> _AnySection:
    """Validate a section by itself, such as what options say.

    Args:
        section: Such as `GateConfig`.
        data: Its keys and values; the rest are defaults.
        where: For messages.

    Raises:
        ConfigError: If it says something impossible.
    """
    try:
        return section.model_validate(_plain(data))
    except ValidationError as error:
        found = problems(error, section)
        raise ConfigError(f"{where}: {'; '.join(found[:10])}") from error
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error


def _plain(value: Any) -> Any:
    """Lists as the tuples that frozen models hold; raises ValueError for text that is none."""
    if isinstance(value, dict):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return tuple(_plain(v) for v in value)
    if isinstance(value, str):
        try:
            return check_text(value)
        except ValueError as error:
            raise ValueError(f"the text {shown(value)} {error}") from None
    return value
