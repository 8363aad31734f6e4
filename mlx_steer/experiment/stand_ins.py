"""What a plan tells a program in place of results: stand-ins, and whatever takes most."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from mlx_steer.bands import layers_of
from mlx_steer.behaviors import Behavior
from mlx_steer.conditions import Condition, Gate, digest
from mlx_steer.config import ExperimentConfig
from mlx_steer.errors import ConfigError
from mlx_steer.experiment.condition_sets import resolve_system_prompt
from mlx_steer.experiment.doses import DoseSearch
from mlx_steer.experiment.model_facts import ModelFacts
from mlx_steer.experiment.program import Stage, Vectors
from mlx_steer.metrics.choose import better_half
from mlx_steer.run.records import Choice
from mlx_steer.vectors import SteeringVector, load_vectors
from mlx_steer.words import Kind

# A strength that nobody names.
_SOME = 0.123

# Of stand-ins for vectors that are not extracted yet; as many as keep random ones apart.
_SIZE = 16


class StandIns:
    """A program's `Results` before anything is run.

    Args:
        config: The experiment.
        behavior: What is steered.
        model: What is known of the model.

    Raises:
        ConfigError: If the config's layers cannot be known yet.
        ModelError: If the model does not have them.
        VectorError: If the config names a vectors folder that is not usable.
    """

    def __init__(self, config: ExperimentConfig, behavior: Behavior, model: ModelFacts) -> None:
        """See the class."""
        self._config = config
        self._behavior = behavior
        self._model = model
        self.vectors = self._vectors()

    def layer(self, index: int) -> int:
        """A layer of the model, as far as that is known."""
        return self._model.layer(index)

    def gate(self, system_prompt: str | None) -> Gate:
        """A stand-in: which prompts open it is not known."""
        return Gate(0, stand_in(0).array, 0.0)

    def shuffled(self, layers: Sequence[int]) -> Sequence[SteeringVector]:
        """Stand-ins."""
        return [stand_in(layer, seed=1) for layer in layers]

    def kept(self, screened: Stage, keep: int) -> frozenset[str]:
        """Of each kind of cell so many, and those that take most.

        Which ones are the best is not known yet. The lowest layers take most, and so do gated cells
        that share no row with a steered one.
        """
        cells = [c for c in screened.conditions if c.interventions]
        return _most_work(cells, lambda kind: keep)

    def harmless(self, read: Stage) -> frozenset[str]:
        """None: so a search for doses reads most."""
        return frozenset()

    def found(self, gated: bool, searches: Sequence[DoseSearch]) -> None:
        """Nothing is recorded."""

    def ahead(self, decoded: Stage) -> frozenset[str]:
        """Of each kind the half that takes most."""
        cells = [c for c in decoded.conditions if c.kind != "base"]
        counts = Counter(c.kind for c in cells)
        return _most_work(cells, lambda kind: better_half(counts[kind]))

    def choice(self) -> Choice:
        """What the search may choose that takes most.

        The lowest layer, above which most layers lie; a strength that the comparison does not have,
        if there is one; and the longest system prompt.
        """
        sweep, asked = self._config.sweep, self._config.compare.strengths
        named = (_SOME,) if sweep.strengths == "auto" else sweep.strengths
        swept = [s for s in named if s != 0]
        new = [s for s in swept if s not in asked]
        places = sweep.layers or tuple(self.vectors)
        names = self._behavior.system_prompts
        longest = max(
            sweep.system_prompts,
            key=lambda name: len(resolve_system_prompt(names, name).text),
            default=None,
        )
        return Choice(
            layer=min(places, key=lambda one: min(map(self.layer, layers_of(one)))),
            strength=(new or swept)[0],
            system_prompt=longest,
        )

    def _vectors(self) -> Vectors:
        """The vectors the config names, or stand-ins at the layers it wants."""
        config, count = self._config.extract, self._model.num_layers
        if config.vectors is not None:
            return load_vectors(config.vectors)
        if config.layers != "all":
            layers = sorted({self.layer(i) for i in config.layers})
        elif count is not None:
            layers = list(range(count))
        else:
            raise ConfigError(
                f"how many layers {self._model.name} has is unknown until it is downloaded; "
                "name extract.layers to plan before that"
            )
        return {layer: stand_in(layer) for layer in layers}


def _most_work(cells: Sequence[Condition], keep: Callable[[Kind], int]) -> frozenset[str]:
    """Names of so many cells of each kind, those that take most."""
    kept: set[str] = set()
    effects: set[str] = set()
    for kind in dict.fromkeys(c.kind for c in cells):
        own = [c for c in cells if c.kind == kind]
        own.sort(
            key=lambda c: (
                effect_of(c) in effects,
                min(i.layer for i in c.interventions)
                if c.interventions
                else -len(c.system_prompt or ""),
            )
        )
        kept |= {c.name for c in own[: keep(kind)]}
        effects |= {effect_of(c) for c in own[: keep(kind)]}
    return frozenset(kept)


def stand_in(layer: int, seed: int = 0) -> SteeringVector:
    """A vector of random numbers, other ones than those that random controls are drawn from."""
    rng = np.random.default_rng([_SIZE, seed, layer, 1])
    array = rng.standard_normal(_SIZE).astype(np.float32)
    return SteeringVector(layer, array, 1.0)


def effect_of(condition: Condition) -> str:
    """What a condition does where its gate opens, as a hash; base is what does nothing."""
    return digest([i.key() for i in condition.interventions if i.acts])
