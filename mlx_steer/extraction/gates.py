"""Fitting gates: which prompts a behavior is meant for, read from the prompt's own hidden state.

Conditional activation steering (Lee et al. 2024): a direction at one layer separates prompts that
should be steered from those that should not; its threshold is set for a stated rate of false
openings. Layer and method are chosen by cross-validation, on prompts that neither the sweep nor the
test ever sees.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from mlx_steer.behaviors import Behavior, PromptItem
from mlx_steer.conditions import Gate, array_sha256
from mlx_steer.config import GateConfig
from mlx_steer.engine.capture import prompt_states
from mlx_steer.engine.jobs import too_long
from mlx_steer.engine.steered import settled_gate_score
from mlx_steer.errors import ConfigError, DataError, ModelError
from mlx_steer.extraction.directions import FOLDS, METHODS, Float64, projection
from mlx_steer.model.load import Model
from mlx_steer.stats import Rate, auc, threshold_for_fpr, wilson
from mlx_steer.vectors import GateInfo
from mlx_steer.vectors.metadata import gate_file
from mlx_steer.words import GateMethod, PromptSet

Booleans = NDArray[np.bool_]
Integers = NDArray[np.int_]


@dataclass(frozen=True)
class Candidate:
    """One layer and method, cross-validated.

    Attributes:
        layer: 0-based.
        method: How its direction is made.
        auc: Area under the ROC curve of held-out scores, target against other and borderline.
    """

    layer: int
    method: GateMethod
    auc: float


@dataclass(frozen=True, eq=False)
class GateFit:
    """A gate and how it was found.

    Attributes:
        gate: The gate; its direction has length 1.
        method: How its direction was made.
        candidates: Every layer and method tried, best first.
        false_positive_rate: Asked for.
        achieved: Held-out rate of false openings at the threshold, with its interval.
        opened: Held-out rate of target prompts that open it.
        prompts: Number of fitting prompts by set.
        scores: Held-out score minus threshold of each fitting prompt.
        sets: The set of each fitting prompt.
        system_prompt: What it was fitted under.
    """

    gate: Gate
    method: GateMethod
    candidates: tuple[Candidate, ...]
    false_positive_rate: float
    achieved: Rate
    opened: Rate
    prompts: dict[str, int]
    scores: dict[str, float]
    sets: dict[str, PromptSet]
    system_prompt: str | None

    @property
    def info(self) -> GateInfo:
        """What the vectors folder says of the gate."""
        text = self.system_prompt
        return GateInfo(
            name=self.gate.name,
            file=gate_file(self.gate.name),
            sha256=array_sha256(self.gate.direction),  # of the file once it is saved
            layer=self.gate.layer,
            threshold=self.gate.threshold,
            method=self.method,
            auc=round(self.candidates[0].auc, 6),
            false_positive_rate=self.false_positive_rate,
            prompts=self.prompts,
            system_prompt_sha256=hashlib.sha256(text.encode()).hexdigest() if text else None,
        )


def fit_gate(
    model: Model,
    behavior: Behavior,
    settings: GateConfig,
    *,
    system_prompt: str | None = None,
    name: str = "plain",
    seed: int = 0,
) -> GateFit:
    """Fit a gate on a behavior's `gate` prompts.

    Args:
        model: The model.
        behavior: Needs prompts of split `gate`, both target and other.
        settings: Layers and methods to try, and how many held-out other prompts may open the gate;
            borderline prompts shape the direction, and are reported as they fall.
        system_prompt: The system prompt under which the gate will be used.
        name: Of the gate.
        seed: Of the folds.

    Raises:
        DataError: If there are fewer than 5 gate prompts of either side, or one is too long.
        ConfigError: If the name cannot be that of a file.
        ModelError: If the model has no such layer, or its hidden states overflow.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", name):
        raise ConfigError(
            f"{name[:64]!r} cannot name a gate's file; use letters, digits, - and _, 64 at most"
        )
    prompts = _Prompts.of(behavior)
    states = _states(model, behavior, prompts, settings.layers, system_prompt)
    folds = spread_folds(prompts.target, seed)
    held_out = {
        (layer, method): _held_out_scores(array, prompts.target, folds, method)
        for layer, array in states.items()
        for method in settings.methods
    }
    candidates = _ranked(held_out, prompts.target, settings.methods)
    best = candidates[0]
    scores = held_out[best.layer, best.method]
    threshold = _threshold(scores, prompts.other, settings.false_positive_rate)
    opened = scores >= threshold
    return GateFit(
        gate=_gate(best, states[best.layer], prompts, threshold, name),
        method=best.method,
        candidates=candidates,
        false_positive_rate=settings.false_positive_rate,
        achieved=_share(opened, prompts.other),
        opened=_share(opened, prompts.target),
        prompts=prompts.counts,
        scores=prompts.by_id([round(float(score) - threshold, 6) for score in scores]),
        sets=prompts.by_id([item.set for item in prompts.items]),
        system_prompt=system_prompt,
    )


def gate_scores(model: Model, gate: Gate, prompts: Sequence[Sequence[int]]) -> list[float]:
    """Score minus threshold of each prompt (token ids); the gate is open at 0 and above."""
    states = prompt_states(model, prompts, [gate.layer])[gate.layer].astype(np.float64)
    scores = states @ gate.direction.astype(np.float64) - gate.threshold
    return [
        settled_gate_score(model.network, gate, ids, float(s))
        for ids, s in zip(prompts, scores, strict=True)
    ]


_Value = TypeVar("_Value")


@dataclass(frozen=True, eq=False)
class _Prompts:
    """A behavior's fitting prompts, and which of them are of set target and of set other."""

    behavior: str
    items: tuple[PromptItem, ...]
    target: Booleans
    other: Booleans

    @staticmethod
    def of(behavior: Behavior) -> _Prompts:
        items = behavior.select(split="gate")
        target = np.array([item.set == "target" for item in items], bool)
        other = np.array([item.set == "other" for item in items], bool)
        if min(target.sum(), other.sum()) < FOLDS:
            raise DataError(
                f"the behavior {behavior.name} has {target.sum()} target and {other.sum()} other "
                f"prompts of split gate, and fitting a gate needs at least {FOLDS} of each"
            )
        return _Prompts(behavior.name, items, target, other)

    @property
    def counts(self) -> dict[str, int]:
        sets = [item.set for item in self.items]
        return {name: sets.count(name) for name in get_args(PromptSet)}

    def by_id(self, values: Sequence[_Value]) -> dict[str, _Value]:
        return {item.id: value for item, value in zip(self.items, values, strict=True)}


def _states(
    model: Model,
    behavior: Behavior,
    prompts: _Prompts,
    layers: Sequence[int] | Literal["all"],
    system_prompt: str | None,
) -> dict[int, Float64]:
    """Each prompt's hidden state at its last token, by layer in ascending order."""
    every = range(model.num_layers)
    chosen = list(every) if layers == "all" else sorted({model.layer(int(i)) for i in layers})
    ids = [_ids(model, behavior, item, system_prompt) for item in prompts.items]
    states = {k: v.astype(np.float64) for k, v in prompt_states(model, ids, chosen).items()}
    for layer, array in states.items():
        if not np.isfinite(array).all():
            raise ModelError(
                f"the hidden states of layer {layer} of {model.info.id} are not finite in "
                f"{str(model.dtype).removeprefix('mlx.core.')}; load it with --dtype float32"
            )
    return states


def _ranked(
    held_out: Mapping[tuple[int, GateMethod], Float64],
    target: Booleans,
    methods: Sequence[GateMethod],
) -> tuple[Candidate, ...]:
    """Best first; of equals the lowest layer and the first method."""
    found = [
        Candidate(layer, method, auc(scores.tolist(), target.tolist()))
        for (layer, method), scores in held_out.items()
    ]
    found.sort(key=lambda one: (-round(one.auc, 6), one.layer, methods.index(one.method)))
    return tuple(found)


def _threshold(scores: Float64, other: Booleans, false_positive_rate: float) -> float:
    """The held-out score from which a gate is open."""
    limit, _ = threshold_for_fpr(scores[other].tolist(), false_positive_rate)
    # Halfway to the next score above: the gate is not to hang on one prompt's last digit. A gate is
    # open at its threshold, so it is above the limit even where no score is.
    above = scores[scores > limit]
    upper = above.min() if len(above) else limit + np.ptp(scores) / len(scores)
    return float((limit + upper) / 2)


def _gate(best: Candidate, states: Float64, prompts: _Prompts, threshold: float, name: str) -> Gate:
    """The gate whose direction is made of all prompts."""
    target, other = states[prompts.target], states[~prompts.target]
    direction = METHODS[best.method](target, other)
    # Equal prompts that stand in different batches differ in their states' last digits.
    if np.linalg.norm(direction) <= 1e-5 * np.linalg.norm(states, axis=-1).mean():
        raise DataError(
            f"the target and other prompts of split gate of {prompts.behavior} have the same "
            "hidden states; write prompts that differ"
        )
    unit = (direction / np.linalg.norm(direction)).astype(np.float32)
    # Scores count from the middle of the two groups, a gate's threshold from the origin.
    middle = (target.mean(axis=0) + other.mean(axis=0)) / 2
    from_origin = threshold + float(middle @ unit.astype(np.float64))
    return Gate(best.layer, unit, round(from_origin, 6), name)


def _share(opened: Booleans, among: Booleans) -> Rate:
    return wilson(int((opened & among).sum()), int(among.sum()))


def _held_out_scores(
    states: Float64, labels: Booleans, folds: Integers, method: GateMethod
) -> Float64:
    """Each state's projection on a direction that was made without its fold."""
    scores = np.zeros(len(states))
    for fold in range(FOLDS):
        inside, held = folds != fold, folds == fold
        score = projection(states[inside & labels], states[inside & ~labels], method)
        scores[held] = score(states[held])
    return scores


def spread_folds(labels: Booleans, seed: int) -> Integers:
    """A fold for each prompt, both classes spread evenly."""
    rng = np.random.default_rng(seed)
    folds = np.zeros(len(labels), int)
    for label in (True, False):
        members = np.flatnonzero(labels == label)
        folds[rng.permutation(members)] = np.arange(len(members)) % FOLDS
    return folds


def _ids(
    model: Model, behavior: Behavior, item: PromptItem, system_prompt: str | None
) -> list[int]:
    ids = model.chat.prompt_ids(item.prompt, item.system_under(system_prompt), item.tools)
    if reason := too_long(model, f"the prompt {item.id} of {behavior.name}", len(ids)):
        raise DataError(reason)
    return ids
