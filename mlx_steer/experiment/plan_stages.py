"""An experiment's stages, counted with the very functions that make its conditions."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from mlx_steer.behaviors import Behavior, ContrastPair, PromptItem
from mlx_steer.conditions import Condition, Gate, digest
from mlx_steer.config import ExperimentConfig
from mlx_steer.errors import ConfigError
from mlx_steer.experiment import condition_sets as design
from mlx_steer.experiment.model_facts import ModelFacts
from mlx_steer.vectors import (
    DatasetInfo,
    ModelInfo,
    SteeringVector,
    SteeringVectorSet,
    VectorMetadata,
    load_vectors,
)

# Of stand-ins for vectors that are not extracted yet; as many as keep random ones apart.
_SIZE = 16


@dataclass(frozen=True)
class Stage:
    """One part of an experiment.

    Attributes:
        name: extract, gate, screen, sweep, compare, controls or score.
        conditions: How many; 0 where nothing is steered.
        replayed: The most that first act at the same layer under the same system prompt.
        prompts: How many prompts, or contrast pairs.
        rows: Responses that are generated (at most, with gates), scored or read.
        longest_prompt: Tokens of the longest prompt, system prompt included.
        prompt_tokens: Of all rows, as if each read its own prompt.
        response_tokens: Of all rows, at most.
        read: Tokens that really pass through the whole network in prefill: shared prompts once,
            and of a steered prompt only the layers above the vector.
        decoded: Tokens that are made one by one.
    """

    name: str
    conditions: int
    replayed: int
    prompts: int
    rows: int
    longest_prompt: int
    prompt_tokens: int
    response_tokens: int
    read: int
    decoded: int


class Counter:
    """Counts the stages of one experiment.

    Args:
        config: The experiment.
        behavior: What is steered.
        model: What is known of the model.

    Raises:
        ConfigError: If the config's layers cannot be known yet, or do not exist.
        VectorError: If the config names a vectors folder that is not usable.
    """

    def __init__(self, config: ExperimentConfig, behavior: Behavior, model: ModelFacts) -> None:
        """See the class."""
        self.config = config
        self.behavior = behavior
        self.model = model
        self.num_layers = model.shape.layers if model.shape else None
        self.vectors = self._vectors()
        # Rows that earlier stages make: (prompt, system prompt, effect).
        self._made: set[tuple[str, str, str]] = set()
        self._lengths: dict[tuple[str, str | None], int] = {}

    def stages(self, *, sweep: bool = True, compare: bool = True) -> list[Stage]:
        """The stages of a run, in order; a run may leave the sweep or the comparison out."""
        found = [self._extract()] if self.config.extract.vectors is None else []
        if self.config.gate is not None:
            found.append(self._gate())
        if sweep:
            conditions, items = self.sweep(), self.items("select", "target", "other")
            if self.config.sweep.screen is not None:
                found.append(self._screen(conditions, items))
                conditions = self._kept(conditions, self.config.sweep.screen)
            found.append(self._rows("sweep", conditions, items))
        if compare:
            conditions, controls = self.compare(), self.controls()
            borderline = ("borderline",) if self.config.compare.borderline else ()
            items = self.items("test", "target", "other", *borderline)
            found.append(self._rows("compare", conditions, items))
            items = self.items("test", "target", "other")
            found += [self._rows("controls", controls, items)] if controls else []
        return [*found, self._score([s for s in found if s.decoded])]

    def sweep(self) -> list[Condition]:
        """The conditions of the sweep."""
        config = self.config.sweep
        layers = [self._steered(i) for i in config.layers or self.vectors]
        prompts = [self._prompt(name) for name in config.system_prompts]
        scope = self.config.scope
        made = design.sweep(self.vectors, layers, config.strengths, prompts, scope)
        if self.config.gate is not None:
            strengths = self.config.gate.strengths or config.strengths
            gate = self._stand_in_gate()
            made += design.gated_sweep(self.vectors, layers, strengths, gate, scope)
        return made

    def _kept(self, conditions: Sequence[Condition], keep: int) -> list[Condition]:
        """A sweep after its screening: of each kind of cell so many, and those that take most.

        Which ones it keeps is not known yet. The lowest layers take most, and so do gated cells
        that share no row with a steered one.
        """
        kept: set[int] = set()
        effects: set[str] = set()
        for kind in dict.fromkeys(c.kind for c in conditions if c.interventions):
            cells = [c for c in conditions if c.interventions and c.kind == kind]
            cells.sort(key=lambda c: (_effect(c) in effects, c.interventions[0].layer))
            kept |= {id(c) for c in cells[:keep]}
            effects |= {_effect(c) for c in cells[:keep]}
        return [c for c in conditions if not c.interventions or id(c) in kept]

    def compare(self) -> list[Condition]:
        """The conditions of the comparison, at most: the sweep may choose a further strength."""
        config, chosen = self.config.compare, self._chosen_strength()
        strengths = sorted({*config.strengths, chosen} - {0.0})
        names = [config.system_prompt] if config.system_prompt else self.config.sweep.system_prompts
        # Which of the system prompts is compared is not known yet: the longest takes most.
        prompt = max(map(self._prompt, names), key=lambda p: len(p[1]), default=None)
        vector = self.vectors[self._compared_layer()]
        name, scope = self.behavior.name, self.config.scope
        made = design.comparison(vector, strengths, name, prompt, scope)
        if self.config.gate is not None:
            gate = self._stand_in_gate()
            more = sorted({*(self.config.gate.strengths or config.strengths), chosen} - {0.0})
            its = (prompt, gate) if prompt else None
            made += design.gated_comparison(vector, more, name, gate, its, scope)
        return made

    def controls(self) -> list[Condition]:
        """The control conditions."""
        config, layer = self.config.compare.controls, self._compared_layer()
        return design.controls(
            self.vectors[layer],
            self._chosen_strength() or 1.0,
            random=config.random,
            negated=config.negated,
            shuffled=_stand_in(layer, seed=1) if config.shuffled else None,
            seed=self.config.statistics.seed,
            scope=self.config.scope,
        )

    def layer(self, index: int) -> int:
        """A layer counted from 0, checked against the model if that is known."""
        count = self.num_layers
        if count is None:
            if index < 0:
                raise ConfigError(
                    f"which layer {index} is, is unknown until {self.model.name} is downloaded; "
                    "count layers from 0 to plan before that"
                )
            return index
        if not -count <= index < count:
            raise ConfigError(
                f"{self.model.name} has layers 0 to {count - 1}, and no layer {index}"
            )
        return index % count

    def items(self, split: str, *sets: str) -> list[PromptItem]:
        """The prompts of some sets that a stage uses."""
        chosen: list[PromptItem] = []
        for name in sets:
            items = [p for p in self.behavior.prompts if (p.set, p.split) == (name, split)]
            chosen += items[: self.config.prompts_per_set]
        return chosen

    def _vectors(self) -> SteeringVectorSet:
        """The vectors the config names, or stand-ins at the layers it wants."""
        config = self.config.extract
        if config.vectors is not None:
            return load_vectors(config.vectors)
        if config.layers == "all":
            if self.num_layers is None:
                raise ConfigError(
                    f"how many layers {self.model.name} has is unknown until it is downloaded; "
                    "name extract.layers to plan before that"
                )
            layers = list(range(self.num_layers))
        else:
            layers = sorted({self.layer(i) for i in config.layers})
        metadata = VectorMetadata(
            behavior=self.behavior.name,
            method="stand-in",
            token_position="last",
            hidden_size=_SIZE,
            num_layers=self.num_layers or layers[-1] + 1,
            model=ModelInfo(
                id=self.model.name,
                revision=None,
                model_type="unknown",
                quantization=None,
                fingerprint="none",
            ),
            chat_template_sha256=None,
            dataset=DatasetInfo(
                name=self.behavior.name,
                sha256=self.behavior.sha256,
                pairs=len(self.behavior.pairs),
            ),
            seed=None,
        )
        return SteeringVectorSet([_stand_in(layer) for layer in layers], metadata)

    def _compared_layer(self) -> int:
        own = self.config.compare.layer
        if own is not None:
            return self._steered(own)
        # The lowest is the most work: more layers lie above it.
        return min(self._steered(i) for i in self.config.sweep.layers or self.vectors)

    def _steered(self, index: int) -> int:
        """A layer that has a vector, counted from 0."""
        layer = self.layer(index)
        if layer not in self.vectors:
            raise ConfigError(
                f"layer {layer} is to be steered but has no vector; there are vectors for layers "
                f"{', '.join(map(str, self.vectors))}"
            )
        return layer

    def _chosen_strength(self) -> float:
        """A strength the sweep may choose, one that the comparison does not have if there is."""
        swept = [s for s in self.config.sweep.strengths if s != 0]
        new = [s for s in swept if s not in self.config.compare.strengths]
        return (new or swept or [0.0])[0]

    def _prompt(self, name_or_text: str) -> tuple[str, str]:
        return design.resolve_system_prompt(self.behavior.system_prompts, name_or_text)

    def _stand_in_gate(self) -> Gate:
        return Gate(0, _stand_in(0).array.astype(np.float32), 0.0)

    def _above(self, layer: int) -> float:
        """The part of the layers above one; half if it is unknown."""
        return 0.5 if self.num_layers is None else 1 - (layer + 1) / self.num_layers

    def _extract(self) -> Stage:
        pairs = self.behavior.pairs
        prompts = [self.model.prompt_tokens(p.prompt, p.system, p.tools) for p in pairs]
        responses = [self._both_responses(p) for p in pairs]
        per_pass = sum(prompts) + sum(responses)
        parts = 1 - self._above(max(self.vectors))
        if self.config.compare.controls.shuffled:
            parts += 1 - self._above(self._compared_layer())
        return Stage(
            name="extract",
            conditions=0,
            replayed=0,
            prompts=len(pairs),
            rows=2 * len(pairs),
            longest_prompt=max(prompts, default=0),
            prompt_tokens=2 * sum(prompts),
            response_tokens=sum(responses),
            read=round(parts * per_pass),
            decoded=0,
        )

    def _both_responses(self, pair: ContrastPair) -> int:
        return sum(map(self.model.response_tokens, (pair.positive, pair.negative)))

    def _gate(self) -> Stage:
        """Fitting, plain and under the compared system prompt, and reading each prompt."""
        fitting = [p for p in self.behavior.prompts if p.split == "gate"]
        used = [p for p in self.behavior.prompts if p.split in ("select", "test")]
        systems = {c.system_prompt for c in self.compare() if c.gates}
        lengths = [self._prompt_tokens(p, s) for s in systems for p in [*fitting, *used]]
        return Stage(
            name="gate",
            conditions=0,
            replayed=0,
            prompts=len(fitting),
            rows=len(lengths),
            longest_prompt=max(lengths, default=0),
            prompt_tokens=sum(lengths),
            response_tokens=0,
            read=sum(lengths),
            decoded=0,
        )

    def _screen(self, conditions: Sequence[Condition], items: Sequence[PromptItem]) -> Stage:
        """Every cell of a sweep read on every prompt, and base; nothing is decoded."""
        cells = [c for c in conditions if c.interventions]
        lowest = Tally(c.interventions[0].layer for c in cells)
        lengths = [self._prompt_tokens(item, "") for item in items]
        # A prompt is read once, and above its layer once more for every cell.
        parts = 1 + sum(self._above(layer) * count for layer, count in lowest.items())
        return Stage(
            name="screen",
            conditions=1 + len(cells),
            replayed=max(lowest.values(), default=0),
            prompts=len(items),
            rows=(1 + len(cells)) * len(items),
            longest_prompt=max(lengths, default=0),
            prompt_tokens=(1 + len(cells)) * sum(lengths),
            response_tokens=0,
            read=round(parts * sum(lengths)),
            decoded=0,
        )

    def _rows(
        self, name: str, conditions: Sequence[Condition], items: Sequence[PromptItem]
    ) -> Stage:
        read, lengths = 0.0, list[int]()
        # Prompts are kept within one call of the engine, not from stage to stage.
        known: set[tuple[str, str]] = set()
        lowest: Tally[tuple[str, int]] = Tally()
        for condition in conditions:
            system = condition.system_prompt or ""
            acting = [i for i in condition.interventions if i.acts]
            # A gated row is the steered one or the base one, and shares it where that is made.
            effect = _effect(condition)
            lowest.update([(system, min(i.layer for i in acting))] if acting else [])
            for item in items:
                if (item.id, system, effect) in self._made:
                    continue
                self._made.add((item.id, system, effect))
                lengths.append(self._prompt_tokens(item, system))
                if (item.id, system) not in known:
                    known.add((item.id, system))
                    read += lengths[-1]
                if acting:
                    read += lengths[-1] * self._above(min(i.layer for i in acting))
        rows = len(lengths)
        decoded = rows * self.config.generation.max_tokens
        return Stage(
            name=name,
            conditions=len(conditions),
            replayed=max(lowest.values(), default=0),
            prompts=len(items),
            rows=rows,
            longest_prompt=max(lengths, default=0),
            prompt_tokens=sum(lengths),
            response_tokens=decoded,
            read=round(read),
            decoded=decoded,
        )

    def _score(self, stages: Iterable[Stage]) -> Stage:
        made = list(stages)
        asked = {(item, system) for item, system, _ in self._made}
        by_id = {item.id: item for item in self.behavior.prompts}
        prompts = [self._prompt_tokens(by_id[name], system) for name, system in asked]
        responses = sum(s.response_tokens for s in made)
        return Stage(
            name="score",
            conditions=0,
            replayed=0,
            prompts=len(prompts),
            rows=sum(s.rows for s in made),
            longest_prompt=max(prompts, default=0),
            prompt_tokens=sum(s.prompt_tokens for s in made),
            response_tokens=responses,
            read=sum(prompts) + responses,
            decoded=0,
        )

    def _prompt_tokens(self, item: PromptItem, system_prompt: str | None) -> int:
        system = item.system_under(system_prompt)
        key = (item.id, system)
        if key not in self._lengths:
            self._lengths[key] = self.model.prompt_tokens(item.prompt, system, item.tools)
        return self._lengths[key]


def _effect(condition: Condition) -> str:
    return digest([i.key() for i in condition.interventions if i.acts])


def _stand_in(layer: int, seed: int = 0) -> SteeringVector:
    # Other numbers than those that random controls are drawn from.
    rng = np.random.default_rng([_SIZE, seed, layer, 1])
    array = rng.standard_normal(_SIZE).astype(np.float32)
    return SteeringVector(layer, array, 1.0)
