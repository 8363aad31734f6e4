"""The experiment that two sentences get where nothing else is said: minutes on a small model."""

from __future__ import annotations

from mlx_steer.config import ExperimentConfig, ModelConfig, parse_config
from mlx_steer.errors import ConfigError
from mlx_steer.experiment.model_facts import find_model
from mlx_steer.sentences import TwoSentences

# Of a model's depth; what a style is made of lies in the middle.
_DEPTHS = (0.27, 0.33, 0.4, 0.47, 0.53)


def two_sentence_experiment(said: TwoSentences, model: str) -> ExperimentConfig:
    """A race over a few middle layers, the answer to one question, and a report.

    Args:
        said: The two sentences.
        model: A hub id, a folder, a .gguf file, or the built-in model; downloaded if it must be.
    """
    return parse_config(
        {
            "name": said.name,
            "model": {"name": model},
            "behavior": said.model_dump(exclude_none=True),
            **usual_sections(middle_layers(model)),
        },
        "the command line",
    )


def usual_sections(layers: tuple[int, ...]) -> dict[str, object]:
    """Everything of such an experiment but its name, model and behavior."""
    return {
        "extract": {"layers": layers, "token_position": "mean", "answer_tokens": 40},
        "sweep": {
            "strategy": "race",
            "strengths": (0.75, 1.0, 1.5, 2.0),
            "system_prompts": ("positive",),
            "race": {"cells": 6, "rounds": 3, "screened_prompts": 6},
        },
        "compare": {
            "extent": "answer",
            "controls": {"random": 2, "negated": False, "shuffled": False},
        },
        "generation": {"max_tokens": 40},
    }


def middle_layers(model: str) -> tuple[int, ...]:
    """Five layers from a quarter to a half of a model's depth.

    Raises:
        ConfigError: If the model's depth cannot be known.
        ModelError: If there is no such model.
    """
    count = find_model(ModelConfig(name=model)).num_layers
    if count is None:
        from mlx_steer.model.hub import locate

        count = find_model(ModelConfig(name=str(locate(model, None).folder))).num_layers
    if count is None:
        raise ConfigError(
            f"how many layers {model} has is unknown; write a config that names extract.layers"
        )
    return tuple(sorted({round(depth * count) for depth in _DEPTHS}))
