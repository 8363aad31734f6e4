"""What is done to a row: plain data, without mlx.

A condition is a name, an optional system prompt and any number of interventions. Everything the
toolkit measures is a list of conditions over a list of prompts.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlx_steer.words import GateJoin, Kind, Operator, Scope, Stage

Float32 = NDArray[np.float32]

_STAGES: dict[Scope, tuple[Stage, ...]] = {
    "all": ("prompt", "thinking", "answer"),
    "generated": ("thinking", "answer"),
    "prompt": ("prompt",),
    "thinking": ("thinking",),
    "answer": ("answer",),
}


@dataclass(frozen=True, eq=False)
class Gate:
    """A test of the prompt's hidden state that opens or shuts a row's interventions.

    Conditional activation steering (Lee et al. 2024): open when the hidden state of `layer` at the
    last prompt token, projected on `direction`, reaches `threshold`.

    Attributes:
        layer: The decoder block whose output is read, 0-based.
        direction: Float32, shape (hidden_size,).
        threshold: In units of hidden state . direction.
        name: For reports.
    """

    layer: int
    direction: Float32
    threshold: float
    name: str = "gate"

    def key(self) -> dict[str, object]:
        """Everything that determines the gate, as JSON values."""
        return {
            "layer": self.layer,
            "direction": array_sha256(self.direction),
            "threshold": self.threshold,
        }


@dataclass(frozen=True, eq=False)
class Intervention:
    """One vector acting on the hidden state at one layer.

    Attributes:
        layer: The decoder block whose output is changed, 0-based.
        vector: Float32, shape (hidden_size,).
        strength: For `add`, the factor on the raw vector. For `ablate`, the part of the projection
            taken out (1 takes all of it; Arditi et al. 2024). For `clamp`, the value the
            projection on the unit direction is set to.
        operator: How the vector acts.
        scope: The positions it acts on: `all`, `generated` (every position that predicts a response
            token, the last prompt token included), `prompt` (those before it), `thinking` (of the
            generated ones those up to the one that predicts the end of the thinking) or `answer`
            (those from the token that ends the thinking on). A response without thinking is all
            answer.
        name: What the vector is called in reports, for example the behavior.
    """

    layer: int
    vector: Float32
    strength: float
    operator: Operator = "add"
    scope: Scope = "all"
    name: str = ""

    def key(self) -> dict[str, object]:
        """Everything that determines the intervention, as JSON values."""
        return {
            "layer": self.layer,
            "vector": array_sha256(self.vector),
            "strength": self.strength,
            "operator": self.operator,
            "scope": self.scope,
        }

    @property
    def acts(self) -> bool:
        """Whether it can change anything: adding or ablating with strength 0 does not."""
        return self.operator == "clamp" or self.strength != 0.0

    def acts_on(self, stage: Stage) -> bool:
        """Whether it changes anything at positions of this stage."""
        return self.acts and stage in _STAGES[self.scope]


@dataclass(frozen=True, eq=False)
class Condition:
    """A name, an optional system prompt, any number of interventions, and gates on them.

    Attributes:
        name: Unique within a run.
        system_prompt: Joined after the prompt's own system message, if it has one.
        interventions: Applied at their layers; at one layer, projections are taken from the
            incoming hidden state and everything is added up.
        gates: If any, the interventions act only on rows whose gates open.
        gate_join: Whether `any` or `all` of several gates must open.
        kind: What role it plays in an experiment ("base", "steering", "control", ...).
    """

    name: str
    system_prompt: str | None = None
    interventions: tuple[Intervention, ...] = ()
    gates: tuple[Gate, ...] = ()
    gate_join: GateJoin = "all"
    kind: Kind = ""

    @property
    def parts_response(self) -> bool:
        """Whether anything acts on only one of thinking and answer."""
        return any(i.acts_on("thinking") != i.acts_on("answer") for i in self.interventions)

    def key(self) -> dict[str, object]:
        """Everything that determines the condition's effect, as JSON values; not its name."""
        acting = [i.key() for i in self.interventions if i.acts]
        key: dict[str, object] = {"system_prompt": self.system_prompt, "interventions": acting}
        if self.gates and acting:
            key["gates"] = [g.key() for g in self.gates]
            key["gate_join"] = self.gate_join
        return key


def gates_open(scores: Iterable[float], join: GateJoin) -> bool:
    """Whether gates let a condition act: one is open at a score minus threshold of 0 and above."""
    joined = any if join == "any" else all
    return joined(score >= 0 for score in scores)


def array_sha256(array: Float32) -> str:
    """The sha256 of an array's little-endian float32 bytes, as hex digits."""
    return hashlib.sha256(np.ascontiguousarray(array, dtype="<f4").tobytes()).hexdigest()


def digest(value: object) -> str:
    """The sha256 of a JSON value in its canonical form, as hex digits."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()
