"""An experiment as a value: its stages, each a list of conditions and prompts.

A run carries the stages out, a plan counts them. Both tell the program what has come of the stages
so far: a run what it has made and measured, a plan stand-ins and the worst choice. Plain data,
without mlx.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Protocol

from mlx_steer.bands import LayerOrBand, layers_of
from mlx_steer.behaviors import Behavior, PromptItem
from mlx_steer.behaviors.two_sentences import NEGATIVE, POSITIVE, pair_id
from mlx_steer.conditions import Condition, Gate
from mlx_steer.config import PRICED_PROMPTS, SCORED_PROMPTS, ExperimentConfig, GenerationConfig
from mlx_steer.errors import ConfigError
from mlx_steer.experiment.condition_sets import (
    BASE,
    SystemPrompt,
    at_strengths,
    cell_name,
    controls,
    prompted,
    resolve_system_prompt,
)
from mlx_steer.experiment.doses import DoseSearch
from mlx_steer.run.records import Choice, GatedChoice
from mlx_steer.search_config import Strengths
from mlx_steer.sentences import ANSWERS_TEMPERATURE, FACT_TOKENS
from mlx_steer.vectors import SteeringVector
from mlx_steer.words import PromptSet, Split


@dataclass(frozen=True)
class Stage:
    """Conditions x prompts.

    Attributes:
        name: What is on at the time, in a word or two: it stands in progress, plans and logs.
        conditions: Their names are unique within an experiment.
        items: The prompts.
        generation: How, where it is not as the config's other responses.
        decoded: Whether responses are generated; else prompts are only read (see
            engine/screening.py), or rows that are there are scored (see scoring.py).
        decides: Whether what comes next depends on its rows.
        priced: Whether base's responses to them are read too (see engine/divergence.py).
    """

    name: str
    conditions: tuple[Condition, ...]
    items: tuple[PromptItem, ...]
    decoded: bool = True
    decides: bool = False
    priced: bool = False
    generation: GenerationConfig | None = None


class Vectors(Protocol):
    """Steering vectors by layer."""

    def __getitem__(self, layer: int, /) -> SteeringVector:
        """The vector of a layer that has one."""

    def __iter__(self) -> Iterator[int]:
        """The layers that have one."""

    def __contains__(self, layer: object, /) -> bool:
        """Whether a layer has one."""


class Results(Protocol):
    """What is known once the stages so far have been carried out."""

    @property
    def vectors(self) -> Vectors:
        """The steering vectors."""

    def layer(self, index: int) -> int:
        """A layer of the model, counted from 0; negative numbers count from the end."""

    def gate(self, system_prompt: str | None) -> Gate:
        """The gate that is used under a system prompt."""

    def shuffled(self, layers: Sequence[int]) -> Sequence[SteeringVector]:
        """The vectors of contrast pairs whose sides were swapped at random."""

    def kept(self, screened: Stage, keep: int) -> Collection[str]:
        """The names of the best `keep` cells of each kind in a stage that was only read."""

    def harmless(self, read: Stage) -> Collection[str]:
        """The names of the cells within the limit, in a stage that was only read for doses."""

    def found(self, gated: bool, searches: Sequence[DoseSearch]) -> None:
        """The searches for doses that have ended, of plain or of gated steering."""

    def ahead(self, decoded: Stage) -> Collection[str]:
        """The names of the better half of each kind, by their rows on a stage's prompts."""


@dataclass(frozen=True)
class Program:
    """One experiment.

    Attributes:
        config: What is asked for.
        behavior: What is steered.
        results: What has come of it so far.
    """

    config: ExperimentConfig
    behavior: Behavior
    results: Results

    def search(self) -> Iterator[Stage]:
        """The stages on the select half, which the choice of a cell is made from.

        The full grid, those of its cells that a screening leaves, or a race. Each way to search
        yields stages and asks `results` what came of them.

        Raises:
            ConfigError: If there is nothing to steer, or a layer without a vector.
        """
        if self.config.sweep.strategy == "race":
            yield from self._race()
            return
        conditions = yield from self._grid()
        items = self.items("select", "target", "other")
        keep = self.config.sweep.screen
        if keep is not None:
            conditions = yield from self._screened(conditions, items, keep)
        yield Stage("sweep", tuple(conditions), items, decides=True)

    def _race(self) -> Iterator[Stage]:
        """A screening, then rounds on more and more prompts, each with the better half of before.

        Rows are reused: a round decodes its cells on the prompts that the rounds before had not.
        """
        race = self.config.sweep.race
        every = [self.items("select", name) for name in ("target", "other")]
        conditions = yield from self._grid()
        conditions = yield from self._screened(conditions, self._screened_items(), race.cells)
        for number in range(1, race.rounds + 1):
            part = 2 ** (race.rounds - number)
            # Every round has the prompts of those before, whose rows are there.
            items = tuple(item for items in every for item in items[: -(-len(items) // part)])
            stage = Stage(f"race {number}", tuple(conditions), items, decides=True)
            yield stage
            if number < race.rounds:
                ahead = {*self.results.ahead(stage)}
                prompts = [c.name for c in conditions if c.kind == "prompt"]
                # One that ran alone has most rows and is chosen, and no cells are held to it.
                if len(prompts) == 1 and self.behavior.sentences is None:
                    ahead -= {*prompts}
                conditions = [c for c in conditions if c.kind == "base" or c.name in ahead]

    def _screened(
        self, conditions: list[Condition], items: tuple[PromptItem, ...], keep: int
    ) -> Generator[Stage, None, list[Condition]]:
        """Without the cells that a screening finds to be beaten."""
        cells = [c for c in conditions if c.interventions]
        gated = [replace(c, gates=()) for c in cells if c.gates]
        if gated and not self._found_by_price and self.behavior.sentences is None:
            own = self._priced_items()
            yield Stage("base", (BASE,), own, decides=True)
            yield Stage("screen gated", (BASE, *gated), own, decoded=False, priced=True)
        screened = Stage("screen", (BASE, *cells), items, decoded=False)
        yield screened
        kept = self.results.kept(screened, keep)
        return [c for c in conditions if not c.interventions or c.name in kept]

    def compare(self, chosen: Choice | None) -> Iterator[Stage]:
        """The fair comparison and its controls, on the test half.

        Args:
            chosen: What the search has chosen; None if there was none.

        Raises:
            ConfigError: If neither config nor search names a layer, the layer has no vector, or
                there is no strength to steer at.
        """
        choice = self.compared(chosen)
        full = self.config.compare.extent == "full"
        conditions = self._comparison(choice)
        more: tuple[PromptSet, ...] = ("borderline",) if self.config.compare.borderline else ()
        items = self.items("test", "target", "other", *more)
        if full:
            yield Stage("compare", tuple(conditions), items)
        else:
            alone = [c for c in conditions if not (c.system_prompt and c.interventions)]
            both = [c for c in conditions if c.kind == "prompt+steering"]
            yield Stage("compare", tuple(alone), items)
            if both:
                yield Stage("both", tuple(both), self.items("test", "target", "other"))
        made = self._controls(choice)
        if made:
            against: tuple[PromptSet, ...] = ("target", "other") if full else ("target",)
            yield Stage("controls", tuple(made), self.items("test", *against))
        yield from self._facts(choice)

    def _facts(self, choice: Choice) -> Iterator[Stage]:
        """Short factual questions, where a behavior has some, to base and the chosen cell."""
        items = self.items("facts", "target")
        if items:
            vectors, strengths = self.vectors(choice.layer), [choice.strength]
            cell = at_strengths(vectors, strengths, self.behavior.name, scope=self.config.scope)
            short = self.config.generation.model_copy(update={"max_tokens": FACT_TOKENS})
            yield Stage("facts", (BASE, *cell), items, generation=short)

    def quoted(self, chosen: Choice | None) -> Stage:
        """The rows of a comparison whose perplexity a table quotes.

        Those of the chosen conditions, base and the prompt, on the first prompts of the test half.
        """
        items = [self.items("test", name)[:SCORED_PROMPTS] for name in ("target", "other")]
        conditions = self._settled(self.compared(chosen))
        return Stage("score", tuple(conditions), tuple(p for own in items for p in own), False)

    def priced(self, chosen: Choice | None) -> Stage:
        """The conditions whose price is measured, base first, and the other prompts for it."""
        conditions = [
            c
            for c in self._settled(self.compared(chosen))
            if not (c.system_prompt and c.interventions)
        ]
        return Stage(
            "price", tuple(conditions), self.items("test", "other")[:PRICED_PROMPTS], False
        )

    def compared(self, chosen: Choice | None) -> Choice:
        """What is compared: the config's own layer and system prompt, or else those chosen.

        Without a search the controls are at strength 1, or at the middle one.
        """
        config = self.config.compare
        if chosen is None:
            strengths = sorted({*config.strengths} - {0.0})
            if config.layer is None:
                raise ConfigError(
                    "say which layer to steer (--layer), or run the sweep, which finds one"
                )
            if not strengths:
                raise ConfigError("compare.strengths has no strength other than 0, the base run")
            usual = 1.0 if 1.0 in strengths else strengths[len(strengths) // 2]
            chosen = Choice(layer=config.layer, strength=usual)
        own = {"layer": config.layer, "system_prompt": config.system_prompt}
        return chosen.model_copy(update={k: v for k, v in own.items() if v is not None})

    def items(self, split: Split, *sets: PromptSet) -> tuple[PromptItem, ...]:
        """The prompts of a split that are used, set by set."""
        most = self.config.prompts_per_set
        return tuple(item for name in sets for item in self.behavior.select(name, split)[:most])

    def system_prompt(self, name_or_text: str) -> SystemPrompt:
        """A system prompt of the behavior's, or a text of one's own."""
        return resolve_system_prompt(self.behavior.system_prompts, name_or_text)

    def vectors(self, place: LayerOrBand) -> tuple[SteeringVector, ...]:
        """The vectors of a layer or a band that the config or the search names."""
        vectors = self.results.vectors
        layers = [self.results.layer(index) for index in layers_of(place)]
        for layer in layers:
            if layer not in vectors:
                raise ConfigError(
                    f"layer {layer} is to be steered but has no vector; there are vectors for "
                    f"layers {', '.join(map(str, vectors))}"
                )
        return tuple(vectors[layer] for layer in layers)

    def _grid(self) -> Generator[Stage, None, list[Condition]]:
        """Base, the system prompts to choose from, and every layer at every strength."""
        sweep, scope = self.config.sweep, self.config.scope
        places = [self.vectors(one) for one in sweep.layers or self.results.vectors]
        prompts = [prompted(self.system_prompt(name)) for name in sweep.system_prompts]
        name = self.behavior.name
        plain = yield from self._strengths(places, sweep.strengths)
        cells = [
            c
            for v, own in zip(places, plain, strict=True)
            for c in at_strengths(v, own, name, scope=scope)
        ]
        if not cells:
            raise ConfigError("sweep.strengths has no strength other than 0, which is the base run")
        if self.config.gate is not None:
            gate, asked = self.results.gate(None), self.config.gate.strengths or sweep.strengths
            gated = yield from self._strengths(places, asked, gated=True)
            cells += [
                c
                for v, own in zip(places, gated, strict=True)
                for c in at_strengths(v, own, name, gate=gate, scope=scope)
            ]
        return [BASE, *prompts, *cells]

    def _screened_items(self) -> tuple[PromptItem, ...]:
        """The first prompts of either set, which are read before anything is decoded."""
        both = (self.items("select", name) for name in ("target", "other"))
        most = self.config.sweep.race.screened_prompts
        return tuple(item for own in both for item in own[:most])

    def _priced_items(self) -> tuple[PromptItem, ...]:
        """Target prompts, for all that open a gate."""
        return self.items("select", "target")[: self.config.sweep.doses.priced_prompts]

    @property
    def _found_by_price(self) -> bool:
        """Whether gated cells stand where their price is known to be within the limit."""
        sweep, gate = self.config.sweep, self.config.gate
        return gate is not None and (gate.strengths or sweep.strengths) == "auto"

    def _strengths(
        self, places: Sequence[Sequence[SteeringVector]], asked: Strengths, gated: bool = False
    ) -> Generator[Stage, None, list[Sequence[float]]]:
        """The strengths to try at each place: those that are named, or what its limit allows.

        Gated steering leaves other prompts alone, so that its limit is what it costs on those that
        open the gate, for which the target prompts stand.
        """
        if asked != "auto":
            return [asked] * len(places)
        sweep = self.config.sweep
        items = self._priced_items() if gated else self._screened_items()
        if gated:
            yield Stage("base", (BASE,), items, decides=True)
        start = DoseSearch.by_halving if gated else DoseSearch.up_the_ladder
        searches = [start(vectors) for vectors in places]
        for number in count(1):
            name, scope = self.behavior.name, self.config.scope
            cells = [
                c for s in searches for c in at_strengths(s.vectors, s.asked(), name, scope=scope)
            ]
            if not cells:
                break
            what = f"{'gated ' if gated else ''}doses {number}"
            stage = Stage(what, (BASE, *cells), items, decoded=False, priced=gated)
            yield stage
            harmless = self.results.harmless(stage)
            for search in searches:
                search.told([x for x in search.asked() if cell_name(search.place, x) in harmless])
        self.results.found(gated, searches)
        return [search.placed(sweep.doses.parts) for search in searches]

    def _comparison(self, choice: Choice) -> list[Condition]:
        """Base, the prompt, steering at each strength, and both; then the same behind a gate."""
        compare, scope, name = self.config.compare, self.config.scope, self.behavior.name
        full = compare.extent == "full"
        more = compare.strengths if full else ()
        vectors, strengths = self.vectors(choice.layer), _with(more, choice.strength)
        prompt = self.system_prompt(choice.system_prompt) if choice.system_prompt else None
        made = [BASE, *([prompted(prompt)] if prompt else [])]
        under = (None, prompt) if prompt else (None,)
        for one in under:
            made += at_strengths(vectors, strengths, name, one, scope=scope)
        if self.config.gate is not None:
            cell = choice.gated or GatedChoice(layer=choice.layer, strength=choice.strength)
            vectors = self.vectors(cell.layer)
            asked = self.config.gate.strengths
            named = compare.strengths if asked is None or asked == "auto" else asked
            more = named if full else ()
            strengths = _with(more, cell.strength)
            # Under a system prompt a gate of its own has to be fitted.
            for one in under if full else (None,):
                gate = self.results.gate(one.text if one else None)
                made += at_strengths(vectors, strengths, name, one, gate, scope)
        return made

    def _settled(self, choice: Choice) -> list[Condition]:
        """Of the comparison, what was settled before it: base, the prompt and the chosen cells."""
        gated = choice.gated.strength if choice.gated else choice.strength
        return [
            c
            for c in self._comparison(choice)
            if not c.interventions
            or c.interventions[0].strength == (gated if c.gates else choice.strength)
        ]

    def _controls(self, choice: Choice) -> list[Condition]:
        vectors, wanted = self.vectors(choice.layer), self.config.compare.controls
        return controls(
            vectors,
            choice.strength,
            wanted,
            self.results.shuffled([v.layer for v in vectors]) if wanted.shuffled else (),
            self.config.statistics.seed,
            self.config.scope,
        )


def answers(config: ExperimentConfig, behavior: Behavior) -> Iterator[Stage]:
    """Of a behavior of two sentences: questions under either, from whose answers pairs are made.

    One stage for each answer to a question; prompts are named as the pairs are.
    """
    said, seed = config.extract, config.generation.seed
    names = (POSITIVE, NEGATIVE)
    sides = [prompted(resolve_system_prompt(behavior.system_prompts, name)) for name in names]
    questions = behavior.select("target", "extract")[: config.prompts_per_set]
    for number in range(said.answers):
        yield Stage(
            "answers" if number == 0 else f"answers {number + 1}",
            tuple(sides),
            tuple(replace(item, id=pair_id(item.id, number)) for item in questions),
            generation=GenerationConfig(
                max_tokens=said.answer_tokens,
                temperature=0.0 if said.answers == 1 else ANSWERS_TEMPERATURE,
                seed=seed + number,
            ),
        )


def _with(strengths: tuple[float, ...], chosen: float) -> list[float]:
    return sorted({*strengths, chosen})
