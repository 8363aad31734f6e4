"""What an intervention does to hidden states, and when a gate lets it: pure functions on tensors.

Knows nothing about layers, models or tokens.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Operator = Literal["add", "ablate", "clamp"]
Scope = Literal["all", "generated", "prompt"]


@dataclass(frozen=True, eq=False)
class Steer:
    """One intervention on the output of one decoder block.

    Attributes:
        layer: the block, 0-based.
        vector: shape (hidden_size,); for ``ablate`` and ``clamp`` only its direction counts.
        strength: the factor on the vector for ``add``; the value the projection is set to, in
            units of the hidden state, for ``clamp``. ``ablate`` has none: leave it 1.
        scope: the positions it acts on. ``generated``: every position that predicts a response
            token, the last prompt token included (positions >= prompt_length - 1). ``prompt``:
            those before it. ``all``: both.
        prompt_length: the prompt's number of tokens; None takes all the ids that
            ``Decoder.forward`` or ``Decoder.greedy`` is given for the prompt.
        operator: see ``apply``.
    """

    layer: int
    vector: NDArray[np.floating]
    strength: float = 1.0
    scope: Scope = "all"
    prompt_length: int | None = None
    operator: Operator = "add"

    def __post_init__(self) -> None:
        """Refuse what would otherwise be silently ignored."""
        if self.operator not in ("add", "ablate", "clamp"):
            raise ValueError(f"Unknown operator {self.operator!r}.")
        if self.scope not in ("all", "generated", "prompt"):
            raise ValueError(f"Unknown scope {self.scope!r}.")
        if self.prompt_length is not None and self.prompt_length < 1:
            raise ValueError(f"A prompt has at least one token, not {self.prompt_length}.")
        if self.operator == "ablate" and self.strength != 1.0:
            raise ValueError("ablate takes no strength; leave it 1.")
        if self.operator != "add" and not np.any(self.vector):
            raise ValueError(f"{self.operator} needs a direction; this vector is zero.")


@dataclass(frozen=True, eq=False)
class Gate:
    """A test of the prompt that opens or shuts a row's interventions.

    It reads the hidden state h of the last prompt token at ``layer`` in an unsteered forward
    pass, and is open when h . direction + bias >= threshold. The direction is used as it is, not
    normalised. After conditional activation steering (Lee et al. 2024, arXiv:2409.05907), with a
    plain dot product for their cosine.
    """

    layer: int
    direction: NDArray[np.floating]
    threshold: float
    bias: float = 0.0

    def score(self, hidden: Tensor) -> float:
        """Return h . direction + bias in float64, for ``hidden`` of shape (hidden_size,)."""
        direction = torch.tensor(np.asarray(self.direction, dtype=np.float64))
        return float(hidden.double() @ direction) + self.bias

    def is_open(self, hidden: Tensor) -> bool:
        """Say whether interventions apply to a prompt whose last token has this hidden state."""
        return self.score(hidden) >= self.threshold


def apply(steer: Steer, hidden: Tensor) -> Tensor:
    """Return ``hidden`` of shape (batch, length, hidden_size) with ``steer`` applied in scope.

    With u the unit direction of the vector, at every position in scope:

    - ``add``: h + strength * vector (Rimsky et al. 2023, arXiv:2312.06681)
    - ``ablate``: h - (h . u) u, at this layer's output alone (Arditi et al. 2024,
      arXiv:2406.11717, do so at every layer)
    - ``clamp``: h + (strength - h . u) u, so that the projection on u becomes the strength
    """
    length, size = hidden.shape[1:]
    if steer.vector.shape != (size,):
        raise ValueError(f"A vector of shape {steer.vector.shape} cannot steer {size} units.")
    vector = torch.tensor(np.asarray(steer.vector, dtype=np.float64))
    if steer.operator == "add":
        change = (steer.strength * vector).to(hidden.dtype)
    else:
        unit = (vector / vector.norm()).to(hidden.dtype)
        wanted = steer.strength if steer.operator == "clamp" else 0.0
        change = (wanted - (hidden @ unit)[..., None]) * unit
    return torch.where(positions_in_scope(steer, length)[:, None], hidden + change, hidden)


def positions_in_scope(steer: Steer, length: int) -> Tensor:
    """Return the bool mask, shape (length,), of the positions that ``steer`` acts on."""
    prompt_length = length if steer.prompt_length is None else steer.prompt_length
    predicts_response = torch.arange(length) >= prompt_length - 1
    if steer.scope == "generated":
        return predicts_response
    if steer.scope == "prompt":
        return ~predicts_response
    return torch.ones(length, dtype=torch.bool)
