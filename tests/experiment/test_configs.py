"""The ready experiment files: they load, and say nothing their model or behavior does not have."""

from pathlib import Path

import pytest

from mlx_steer.behaviors import Behavior, load_behavior
from mlx_steer.config import ExperimentConfig, load_config, parse_config
from mlx_steer.errors import ConfigError
from mlx_steer.experiment import condition_sets as design
from mlx_steer.model.published import published_model
from mlx_steer.model.shape import Shape
from mlx_steer.words import PromptSet, Split

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))

# The number of decoder blocks, as each model's own config.json gives it; what is known of the model
# before a download (published_models.json) says the same.
LAYERS = {
    "smollm2-135m": 30,
    "mistralai/Mistral-7B-Instruct-v0.1": 32,
    "mistralai/Mistral-7B-Instruct-v0.2": 32,
    "mistralai/Mistral-7B-Instruct-v0.3": 32,
    "mistralai/Mistral-Nemo-Instruct-2407": 40,
    "mistralai/Ministral-8B-Instruct-2410": 36,
    "mistralai/Mixtral-8x7B-Instruct-v0.1": 32,
    "meta-llama/Llama-3.1-8B-Instruct": 32,
    "Qwen/Qwen2.5-7B-Instruct": 28,
    "Qwen/Qwen3-8B": 36,
    "Qwen/Qwen3-30B-A3B": 48,
    "google/gemma-2-9b-it": 42,
    "google/gemma-3-4b-it": 34,
    "google/gemma-3-12b-it": 48,
    "microsoft/Phi-3-mini-4k-instruct": 32,
    "microsoft/Phi-4-mini-instruct": 32,
    "microsoft/phi-4": 40,
    "meta-llama/Llama-3.2-3B-Instruct": 28,
    "mistralai/Ministral-3-8B-Instruct-2512-BF16": 34,
    "Qwen/Qwen3-4B-Instruct-2507": 36,
    "Qwen/Qwen3.5-9B": 32,
    "Qwen/Qwen3-Next-80B-A3B-Instruct": 48,
    "google/gemma-3n-E4B-it": 35,
    "google/gemma-4-E4B-it": 42,
    "LiquidAI/LFM2-2.6B": 30,
    "HuggingFaceTB/SmolLM3-3B": 36,
    "zai-org/GLM-4-9B-0414": 40,
    "allenai/Olmo-3-7B-Instruct": 32,
    "openai/gpt-oss-20b": 24,
}
SPLITS: tuple[Split, ...] = ("select", "test")
SETS: tuple[PromptSet, ...] = ("target", "other")


@pytest.fixture(params=CONFIGS, ids=lambda path: path.stem)
def path(request: pytest.FixtureRequest) -> Path:
    found: Path = request.param
    return found


@pytest.fixture
def config(path: Path) -> ExperimentConfig:
    return load_config(path)


@pytest.fixture
def behavior(config: ExperimentConfig) -> Behavior:
    return load_behavior(config.behavior)


def test_there_is_a_config_for_every_model_and_a_demo_of_every_behavior() -> None:
    configs = [load_config(path) for path in CONFIGS]
    assert {config.model.name for config in configs} == LAYERS.keys()
    demos = {config.behavior for config in configs if config.model.name == "smollm2-135m"}
    assert demos == {"refusal", "uncertainty", "tool_restraint", "hierarchy"}


def test_a_config_is_named_after_its_file_and_says_what_it_is_about(
    path: Path, config: ExperimentConfig
) -> None:
    assert config.name == path.stem
    assert config.name.removesuffix("_full").endswith(f"_{config.behavior}")
    assert path.read_text().startswith("# ")


def test_layers_are_the_models_and_lie_about_its_middle(config: ExperimentConfig) -> None:
    depth = LAYERS[config.model.name]
    layers = config.extract.layers
    assert layers != "all" and list(layers) == sorted(set(layers))
    assert all(0.3 * depth <= layer <= 0.7 * depth for layer in layers)
    assert 4 <= len(layers) <= 6
    assert set(config.sweep.layers or ()) <= set(layers)


def test_the_behavior_has_the_prompts_and_system_prompts_that_are_used(
    config: ExperimentConfig, behavior: Behavior
) -> None:
    for name in config.sweep.system_prompts:
        assert design.resolve_system_prompt(behavior.system_prompts, name)[0] == name
    for split in SPLITS:
        for prompt_set in SETS:
            assert len(behavior.select(prompt_set, split)) >= 20
    if config.gate is not None:
        assert all(len(behavior.select(name, "gate")) >= 20 for name in SETS)


def test_hub_models_are_originals_converted_here(config: ExperimentConfig) -> None:
    own = config.model
    if own.name == "smollm2-135m":
        assert own.quantize is None and own.dtype == "auto"
    else:
        assert own.name.count("/") == 1 and not own.name.startswith("mlx-community/")
        known = published_model(own.name)
        assert known is not None
        # What is published in 4 bits is taken so.
        assert own.quantize == (None if known.quantized else 4)


def test_what_is_known_of_a_model_is_enough_to_plan_it(config: ExperimentConfig) -> None:
    known = published_model(config.model.name)
    if config.model.name == "smollm2-135m":
        assert known is None
        return
    assert known is not None
    shape = Shape.of(known.config)
    assert shape.layers == LAYERS[config.model.name]
    # Counted from the network; the shape's own sum leaves out what few families have.
    given = known.weights() / 2 if not known.quantized else shape.parameters
    assert 0.6 < shape.parameters / given < 1.01
    if not known.quantized:
        assert 0.27 < known.weights(4) / known.weights() < 0.29
        assert known.weights(4, wide=True) / known.weights(4) == pytest.approx(5 / 4.5, rel=0.01)


def test_strengths_go_up_from_a_weak_one(config: ExperimentConfig) -> None:
    for strengths in (config.sweep.strengths, config.compare.strengths):
        assert list(strengths) == sorted(strengths)
        assert 0 < strengths[0] <= 0.5 and len(strengths) >= 3


def _scoped(scope: str, thinking: bool, screen: int | None = None) -> ExperimentConfig:
    model = {"name": "x", "thinking": thinking}
    data = {"name": "x", "model": model, "sweep": {"screen": screen}, "scope": scope}
    return parse_config(data, "the test")


def test_a_scope_that_acts_on_nothing_that_is_looked_at_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'scope': acts on nothing .* model\.thinking: true"):
        _scoped("thinking", thinking=False)
    with pytest.raises(ConfigError, match=r"'scope': .* leave sweep\.screen out"):
        _scoped("answer", thinking=True, screen=4)
    with pytest.raises(ConfigError, match="'scope': must be 'all', 'generated'"):
        _scoped("thoughts", thinking=True)
    assert _scoped("thinking", thinking=True, screen=4).scope == "thinking"
    assert _scoped("answer", thinking=True).scope == "answer"
    assert _scoped("answer", thinking=False, screen=4).scope == "answer"
