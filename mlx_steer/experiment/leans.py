"""How strongly conditions lean to the behavior before anything is decoded (engine/screening.py).

Each stage is read once and kept in the run directory, for as long as what it was read from is the
same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from mlx_steer.conditions import digest
from mlx_steer.engine.screening import opening_tokens
from mlx_steer.experiment.program import Stage
from mlx_steer.experiment.rows import Rows, prompt_ids
from mlx_steer.experiment.work import Work
from mlx_steer.model.load import Model
from mlx_steer.run.base_record import Record
from mlx_steer.run.screened import Lean
from mlx_steer.words import PromptSet


class Screened(Record):
    """Every log-odds of a stage, by condition and prompt, and what it was made from."""

    made_from: str
    log_odds: dict[str, dict[str, float]]


class Leans:
    """The leans of a run's stages that are only read.

    Args:
        work: The experiment.
        model: The model.
    """

    def __init__(self, work: Work, model: Model) -> None:
        """See the class."""
        self._work = work
        self._model = model
        self._log_odds: dict[str, dict[str, dict[str, float]]] = {}

    def read(self, stage: Stage, rows: Rows) -> None:
        """Read the log-odds of a stage, or take those that an earlier start has left."""
        shown, _ = opening_tokens(self._model, self._work.behavior)
        key = digest(
            {
                "model": self._model.identity,
                "shown": shown,
                "conditions": {c.name: c.key() for c in stage.conditions},
                "prompts": {p.id: prompt_ids(self._model, p, None) for p in stage.items},
            }
        )
        file = _file(stage)
        held = self._work.run.read_record(file, Screened)
        if held is None or held.made_from != key:
            held = Screened(made_from=key, log_odds=rows.screen(stage, shown))
            self._work.run.write_record(file, held)
        self._log_odds[stage.name] = held.log_odds

    def of(self, stage: Stage) -> dict[str, Lean]:
        """The lean of each condition of a stage that has been read, by name."""
        sets: dict[str, PromptSet] = {item.id: item.set for item in stage.items}
        return {name: lean(odds, sets) for name, odds in self._log_odds[stage.name].items()}


def lean(log_odds: Mapping[str, float], sets: Mapping[str, PromptSet]) -> Lean:
    """How strongly a condition leans to the behavior before anything is decoded.

    Args:
        log_odds: Of openings that show the behavior, by prompt id (see `screening.screen`).
        sets: Each prompt's set.
    """
    found: dict[str, float] = {}
    for name in ("target", "other"):
        values = [value for prompt_id, value in log_odds.items() if sets[prompt_id] == name]
        chances = [1 / (1 + math.exp(-value)) for value in values]
        found[name] = round(math.fsum(chances) / len(values), 4)
        found[f"{name}_log_odds"] = round(math.fsum(values) / len(values), 3)
    return Lean.model_validate(found)


def screening_rank(lean: Lean, limit: float, strength: float) -> tuple[float, ...]:
    """Sorts cells before decoding as the choice sorts them afterwards, the best first.

    Cells within the limit on other prompts come first, by their lean on target prompts; then the
    others, by the difference. Log-odds alone would put the strongest steering first, which babbles.

    Args:
        lean: What `lean` gave.
        limit: The highest lean on other prompts of a cell that can be chosen.
        strength: The cell's; of equals, the smaller comes first.
    """
    within = within_limit(lean, limit)
    gain = lean.target if within else lean.target - lean.other
    return (not within, -gain, abs(strength))


def within_limit(lean: Lean, limit: float) -> bool:
    """Whether a lean on other prompts is at most the limit."""
    return lean.other <= limit + 1e-9


def _file(stage: Stage) -> str:
    return ".screened.json" if stage.name == "screen" else f".{stage.name.replace(' ', '_')}.json"
