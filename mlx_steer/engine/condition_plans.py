"""A condition as plans, and the row that a job becomes once its gates are decided."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlx_steer.conditions import Condition, Intervention, gates_open
from mlx_steer.engine.batch import Row
from mlx_steer.engine.jobs import Job, Sampling
from mlx_steer.engine.operators import plan_of
from mlx_steer.engine.prefill import LayerPlans
from mlx_steer.engine.steered import settled_gate_score
from mlx_steer.model.load import Model
from mlx_steer.words import Stage


@dataclass(frozen=True, eq=False)
class ConditionPlans:
    """A condition's plans at each stage of a row."""

    prompt: LayerPlans
    thinking: LayerPlans
    answer: LayerPlans


_NO_PLANS = ConditionPlans({}, {}, {})


def plans_of(model: Model, condition: Condition) -> ConditionPlans:
    """A condition's plans where its gates are open.

    Raises:
        ModelError: If the model has no such layer.
        VectorError: If a strength or a vector does not do for its operator.
    """
    prompt, thinking = (_at_stage(model, condition, s) for s in ("prompt", "thinking"))
    parts = condition.parts_response
    return ConditionPlans(
        prompt, thinking, _at_stage(model, condition, "answer") if parts else thinking
    )


def gate_scores(
    model: Model, job: Job, states: Mapping[int, NDArray[np.float64]]
) -> tuple[float, ...]:
    """Score minus threshold of each of a job's gates.

    Args:
        model: The model.
        job: The job.
        states: By layer, counted from 0: the prompt's last hidden state, unsteered.
    """
    return tuple(
        settled_gate_score(
            model.network,
            gate,
            job.ids,
            float(states[model.layer(gate.layer)] @ gate.direction.astype(np.float64))
            - gate.threshold,
        )
        for gate in job.condition.gates
    )


def new_row(
    model: Model, job: Job, sampling: Sampling, plans: ConditionPlans, scores: tuple[float, ...]
) -> Row:
    """A job's row before its first token, under its plans if its gates let them act."""
    condition = job.condition
    steered = not scores or gates_open(scores, condition.gate_join)
    plans = plans if steered else _NO_PLANS
    row = Row(job, sampling, plans.prompt, plans.answer, scores, steered)
    if steered and condition.parts_response and model.chat.thinks(job.ids):
        row.plans, row.answer_plans = plans.thinking, plans.answer
    return row


def _at_stage(model: Model, condition: Condition, stage: Stage) -> LayerPlans:
    by_layer: dict[int, list[Intervention]] = {}
    for item in condition.interventions:
        if item.acts_on(stage):
            by_layer.setdefault(model.layer(item.layer), []).append(item)
    size, dtype = model.hidden_size, model.dtype
    return {layer: plan_of(items, size, dtype) for layer, items in sorted(by_layer.items())}
