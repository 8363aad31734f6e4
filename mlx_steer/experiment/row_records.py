"""What a run's files say of prompts, conditions and rows: plain dictionaries for JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from mlx_steer.behaviors import Behavior, PromptItem
from mlx_steer.conditions import Condition, Intervention, digest
from mlx_steer.engine.jobs import Completion, Job, Sampling
from mlx_steer.errors import GenerationError
from mlx_steer.model.load import Model
from mlx_steer.vectors import SteeringVectorSet

# Part of every row's key: raise it when the same inputs come to mean other rows.
ROW_FORMAT = 1


def row_key(model: Model, ids: tuple[int, ...], condition: Condition, sampling: Sampling) -> str:
    """The hash of everything that determines a row, as 32 hex digits.

    The system prompt counts through the token ids; names of conditions do not count at all.
    """
    effect = {k: v for k, v in condition.key().items() if k != "system_prompt"}
    if condition.parts_response:
        # The same ids may be answered with thinking and without, where a template ignores the wish.
        effect["thinks"] = model.chat.thinks(ids)
    return digest(
        {
            "format": ROW_FORMAT,
            "model": model.identity,
            "ids": list(ids),
            "effect": effect,
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "seed": sampling.seed if sampling.temperature > 0 else None,
        }
    )[:32]


def row_record(done: Completion, job: Job, item: PromptItem) -> dict[str, Any]:
    """One line of rows.jsonl.

    Raises:
        GenerationError: If the hidden state overflowed, so that the response means nothing.
    """
    if done.margin is not None and not math.isfinite(done.margin):
        raise GenerationError(
            f"under the condition {job.condition.name!r} the model's numbers overflow (prompt "
            f"{item.id}); take a smaller strength, or another dtype"
        )
    return {
        "key": done.key,
        "condition": job.condition.name,
        "prompt_id": item.id,
        "prompt": item.prompt,
        "set": item.set,
        "split": item.split,
        "prompt_tokens": len(job.ids),
        "tokens": list(done.tokens),
        "text": done.text,
        "finish_reason": done.finish_reason,
        "margin": done.margin,
        "gates": list(done.gates),
        "steered": done.steered,
    }


def prompt_record(item: PromptItem) -> dict[str, Any]:
    """One line of prompts.jsonl."""
    record: dict[str, Any] = {
        "id": item.id,
        "set": item.set,
        "split": item.split,
        "category": item.category,
        "prompt": item.prompt,
    }
    if item.system is not None:
        record["system"] = item.system
    if item.tools:
        record["tools"] = list(item.tools)
    if item.check is not None:
        record["check"] = dict(item.check)
    return record


def behavior_record(behavior: Behavior) -> dict[str, Any]:
    """behavior.json: the words and prompts a report needs."""
    return {
        "name": behavior.name,
        "title": behavior.title,
        "description": behavior.description,
        "judge": behavior.judge,
        "verdicts": dict(behavior.verdicts),
        "sets": dict(behavior.sets),
        "system_prompts": dict(behavior.system_prompts),
    }


def condition_record(
    condition: Condition, vectors: SteeringVectorSet, names: Mapping[str, str]
) -> dict[str, Any]:
    """One entry of conditions.json, its rows still empty.

    Args:
        condition: The condition.
        vectors: Give the mean hidden-state norms that relative doses refer to.
        names: Short names of system prompts, by their text.
    """
    text = condition.system_prompt
    return {
        "name": condition.name,
        "kind": condition.kind,
        "system_prompt": names.get(text, text) if text else None,
        "system_text": text,
        "interventions": [_intervention_record(i, vectors) for i in condition.interventions],
        "gates": [
            {"name": g.name, "layer": g.layer, "threshold": g.threshold} for g in condition.gates
        ],
        "gate_join": condition.gate_join,
        # Score minus threshold of each gate and prompt; the gate is open at 0 and above.
        "gate_scores": {},
        "rows": {},
    }


def _intervention_record(item: Intervention, vectors: SteeringVectorSet) -> dict[str, Any]:
    norm = float(np.linalg.norm(item.vector.astype(np.float64)))
    hidden_norm = vectors[item.layer].hidden_norm
    return {
        "layer": item.layer,
        "strength": item.strength,
        "operator": item.operator,
        "scope": item.scope,
        "vector": item.name,
        "norm": _six_digits(norm),
        "relative_dose": _six_digits(item.strength * norm / hidden_norm) if hidden_norm else None,
    }


def _six_digits(value: float) -> float:
    return float(f"{value:.6g}")
