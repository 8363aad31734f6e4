"""The experiment that answers whether steering works: one a behavior, the same for any model.

What `mlx-steer assess` runs; an experiment file says the same and more.
"""

from __future__ import annotations

from collections.abc import Sequence

from mlx_steer.behaviors import load_behavior
from mlx_steer.config import ExperimentConfig, parse_config
from mlx_steer.experiment.model_facts import find_model

MAX_TOKENS = 48
"""Of a response: whether it refuses, or doubts, is said by then."""

# Neighbouring layers steer alike: more of them cost time and find little.
_LAYERS = 5


def assessment(
    model: dict[str, object],
    behavior: str,
    *,
    layers: Sequence[int] | None = None,
    max_tokens: int = MAX_TOKENS,
    prompts_per_set: int | None = None,
    batch_size: int | None = None,
) -> ExperimentConfig:
    """A race over the middle layers, behind a gate too where the behavior has prompts for one.

    Args:
        model: The contents of the config's `model` section.
        behavior: A shipped behavior's name, or a folder.
        layers: Those to try; by default some five, spread over the middle half of the model's.
        max_tokens: Of a response.
        prompts_per_set: See `ExperimentConfig`.
        batch_size: See `GenerationConfig`.

    Raises:
        ConfigError: If an option says something impossible.
        DataError: If the behavior is not usable.
        ModelError: If the model's files are damaged.
    """
    found = load_behavior(behavior)
    values = {
        "name": found.name,
        "model": model,
        "behavior": behavior,
        "extract": {"layers": layers or "all", "token_position": "mean"},
        "sweep": {
            "strategy": "race",
            "strengths": "auto",
            "system_prompts": list(found.system_prompts),
        },
        "compare": {"extent": "answer", "controls": {"random": 2, "negated": False}},
        "gate": {} if found.select(split="gate") else None,
        "generation": {"max_tokens": max_tokens, "batch_size": batch_size},
        "prompts_per_set": prompts_per_set,
    }
    config = parse_config(values, "the command line")
    count = None if layers else find_model(config.model).num_layers
    if count is None:
        return config
    step = max(1, count // 2 // _LAYERS)
    middle = tuple(range(count // 4, max(count // 4 + 1, 3 * count // 4), step))
    extract = config.extract.model_copy(update={"layers": middle})
    return config.model_copy(update={"extract": extract})
