"""Fitting gates: which prompts a behavior is meant for, read from the prompt's own hidden state.

Conditional activation steering (Lee et al. 2024): a direction at one layer separates prompts that
should be steered from those that should not; its threshold is set for a stated rate of false
openings. Layer and method are chosen by cross-validation, on prompts that neither the sweep nor the
test ever sees.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlx_steer.behaviors import Behavior, PromptItem
from mlx_steer.conditions import Gate, array_sha256
from mlx_steer.engine.capture import prompt_states
from mlx_steer.engine.jobs import too_long
from mlx_steer.engine.steered import settled_gate_score
from mlx_steer.errors import ConfigError, DataError, ModelError
from mlx_steer.extraction.directions import FOLDS, METHODS, Float64, projection
from mlx_steer.model.load import Model
from mlx_steer.stats import Rate, auc, threshold_for_fpr, wilson
from mlx_steer.vectors import GateInfo
from mlx_steer.vectors.metadata import gate_file
from mlx_steer.words import Method

GATE_METHODS: tuple[Method, ...] = (
    "mean_difference",
    "whitened_mean_difference",
    "logistic_regression",
)


@dataclass(frozen=True)
class Candidate:
    """One layer and method, cross-validated.

    Attributes:
        layer: 0-based.
        method: Of `GATE_METHODS`.
        auc: Area under the ROC curve of held-out scores, target against other and borderline.
    """

    layer: int
    method: Method
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
    method: Method
    candidates: tuple[Candidate, ...]
    false_positive_rate: float
    achieved: Rate
    opened: Rate
    prompts: dict[str, int]
    scores: dict[str, float]
    sets: dict[str, str]
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

    def record(self) -> dict[str, Any]:
        """The fit as JSON values, for gate.json."""
        tried = [
            {"layer": c.layer, "method": c.method, "auc": round(c.auc, 6)} for c in self.candidates
        ]
        return {
            "name": self.gate.name,
            "layer": self.gate.layer,
            "threshold": self.gate.threshold,
            "method": self.method,
            "auc": tried[0]["auc"],
            "candidates": tried,
            "false_positive_rate": self.false_positive_rate,
            "false_openings": {"count": self.achieved.count, "n": self.achieved.n},
            "openings": {"count": self.opened.count, "n": self.opened.n},
            "held_out_scores": self.scores,
            "sets": self.sets,
        }


def fit_gate(
    model: Model,
    behavior: Behavior,
    *,
    layers: Sequence[int] | None = None,
    methods: Sequence[Method] = GATE_METHODS,
    false_positive_rate: float = 0.05,
    system_prompt: str | None = None,
    name: str = "plain",
    seed: int = 0,
) -> GateFit:
    """Fit a gate on a behavior's `gate` prompts.

    Args:
        model: The model.
        behavior: Needs prompts of split `gate`, both target and other.
        layers: Layers to try; all by default.
        methods: Ways to make the direction.
        false_positive_rate: Of held-out other prompts, at most so many may open the gate;
            borderline prompts shape the direction, and are reported as they fall.
        system_prompt: The system prompt under which the gate will be used.
        name: Of the gate.
        seed: Of the folds.

    Raises:
        DataError: If there are fewer than 5 gate prompts of either side, or one is too long.
        ConfigError: If the name, a method or the rate cannot be used.
        ModelError: If the model has no such layer, or its hidden states overflow.
    """
    _check_settings(name, methods, false_positive_rate)
    chosen = sorted({model.layer(i) for i in layers}) if layers else list(range(model.num_layers))
    items = behavior.select(split="gate")
    labels = np.array([item.set == "target" for item in items], bool)
    benign = np.array([item.set == "other" for item in items], bool)
    if min(labels.sum(), benign.sum()) < FOLDS:
        raise DataError(
            f"the behavior {behavior.name} has {labels.sum()} target and {benign.sum()} other "
            f"prompts of split gate, and fitting a gate needs at least {FOLDS} of each"
        )
    ids = [_ids(model, behavior, item, system_prompt) for item in items]
    states = {k: v.astype(np.float64) for k, v in prompt_states(model, ids, chosen).items()}
    for layer, array in states.items():
        if not np.isfinite(array).all():
            raise ModelError(
                f"the hidden states of layer {layer} of {model.info.id} are not finite in "
                f"{str(model.dtype).removeprefix('mlx.core.')}; load it with --dtype float32"
            )
    folds = _folds(labels, seed)
    held_out = {
        (layer, method): _held_out_scores(states[layer], labels, folds, method)
        for layer in chosen
        for method in methods
    }
    candidates = sorted(
        (
            Candidate(layer, method, auc(s.tolist(), labels.tolist()))
            for (layer, method), s in held_out.items()
        ),
        key=lambda c: (-round(c.auc, 6), c.layer, methods.index(c.method)),
    )
    best = candidates[0]
    scores = held_out[best.layer, best.method]
    limit, _ = threshold_for_fpr(scores[benign].tolist(), false_positive_rate)
    # Halfway to the next score above: the gate is not to hang on one prompt's last digit. A gate is
    # open at its threshold, so it is above the limit even where no score is.
    above = scores[scores > limit]
    upper = above.min() if len(above) else limit + np.ptp(scores) / len(scores)
    threshold = float((limit + upper) / 2)
    opened = scores >= threshold
    target, other = states[best.layer][labels], states[best.layer][~labels]
    direction = METHODS[best.method](target, other)
    if not np.any(direction):
        raise DataError(
            f"the target and other prompts of split gate of {behavior.name} have the same hidden "
            "states; write prompts that differ"
        )
    unit = (direction / np.linalg.norm(direction)).astype(np.float32)
    # Scores count from the middle of the two groups, a gate's threshold from the origin.
    middle = (target.mean(axis=0) + other.mean(axis=0)) / 2
    from_origin = threshold + float(middle @ unit.astype(np.float64))
    gate = Gate(best.layer, unit, round(from_origin, 6), name)
    return GateFit(
        gate=gate,
        method=best.method,
        candidates=tuple(candidates),
        false_positive_rate=false_positive_rate,
        achieved=wilson(int((opened & benign).sum()), int(benign.sum())),
        opened=wilson(int((opened & labels).sum()), int(labels.sum())),
        prompts={
            s: sum(item.set == s for item in items) for s in ("target", "other", "borderline")
        },
        scores={
            item.id: round(float(score) - threshold, 6)
            for item, score in zip(items, scores, strict=True)
        },
        sets={item.id: item.set for item in items},
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


def _check_settings(name: str, methods: Sequence[Method], false_positive_rate: float) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", name):
        raise ConfigError(
            f"{name[:64]!r} cannot name a gate's file; use letters, digits, - and _, 64 at most"
        )
    unknown = [method for method in methods if method not in GATE_METHODS]
    if unknown or not methods:
        raise ConfigError(
            f"a gate cannot be made by {unknown[0] if unknown else 'no method'}; the methods are "
            f"{', '.join(GATE_METHODS)}"
        )
    if not 0 <= false_positive_rate < 1:
        raise ConfigError(
            f"the false positive rate must be from 0 to below 1, not {false_positive_rate:g}"
        )


def _held_out_scores(
    states: Float64, labels: np.ndarray, folds: np.ndarray, method: Method
) -> Float64:
    """Each state's projection on a direction that was made without its fold."""
    scores = np.zeros(len(states))
    for fold in range(FOLDS):
        inside, held = folds != fold, folds == fold
        score = projection(states[inside & labels], states[inside & ~labels], method)
        scores[held] = score(states[held])
    return scores


def _folds(labels: np.ndarray, seed: int) -> np.ndarray:
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
