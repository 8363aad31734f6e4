"""The stages of an experiment: vectors, gates, sweep, comparison; each a list of conditions."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import RootModel

from mlx_steer.behaviors import Behavior, PromptItem
from mlx_steer.conditions import Condition, Gate, digest
from mlx_steer.config import ExperimentConfig
from mlx_steer.engine.screening import opening_tokens
from mlx_steer.errors import ConfigError, VectorError
from mlx_steer.experiment import condition_sets as design
from mlx_steer.experiment.out_of_memory import BatchSize
from mlx_steer.experiment.progress import Progress
from mlx_steer.experiment.rows import Rows, prompt_ids
from mlx_steer.extraction.gates import GateFit, fit_gate
from mlx_steer.extraction.pairs import pair_states
from mlx_steer.metrics import cell_of, choose_cell, choose_system_prompt, judged
from mlx_steer.model.load import Model
from mlx_steer.run.directory import RunDirectory
from mlx_steer.run.reader import load_run
from mlx_steer.run.records import (
    Choice,
    GatedChoice,
    GateRecord,
    Gates,
    Lean,
    Record,
    ScreenedCell,
    Screening,
    Separation,
)
from mlx_steer.vectors import SteeringVectorSet, load_vectors

# What the run's vectors were extracted from, as hashes by folder: changed settings make new ones.
_MADE_FROM = ".extracted.json"
# Every log-odds of the screening, and a hash of what it was made from.
_SCREENED = ".screened.json"


class _MadeFrom(RootModel[dict[str, tuple[str, str]]]):
    """By folder of vectors: hashes of what they were made from, and of themselves."""


class _Screened(Record):
    made_from: str
    log_odds: dict[str, dict[str, float]]


class Stages:
    """One config's stages in one run directory, to be called in order.

    Args:
        config: The experiment.
        run: Its directory, locked.
        progress: Told what is going on.
        behavior: What is steered.
        model: What it is steered in.
        batch: Rows decoded at a time.
    """

    rows: Rows
    vectors: SteeringVectorSet

    def __init__(
        self,
        config: ExperimentConfig,
        run: RunDirectory,
        progress: Progress,
        behavior: Behavior,
        model: Model,
        batch: BatchSize,
    ) -> None:
        """See the class."""
        self.config = config
        self.run = run
        self.progress = progress
        self.behavior = behavior
        self.model = model
        self.batch = batch
        self._gates: dict[str | None, GateFit] = {}

    def extract(self) -> None:
        """Extract the vectors, or take those the config names or an earlier start has left."""
        config = self.config.extract
        if config.vectors is not None:
            self.vectors = load_vectors(config.vectors)
            shape = (self.model.hidden_size, self.model.num_layers, self.model.info.id)
            for warning in self.vectors.check_fits(*shape):
                self.progress.note(warning)
            self.run.write_record(_MADE_FROM, _MadeFrom({}))
            self.vectors.save(self.run.folder / "vectors")
        else:
            every = range(self.model.num_layers) if config.layers == "all" else config.layers
            self.vectors = self._extracted("vectors", sorted({self.model.layer(i) for i in every}))
        # Not only when their stage comes: that may be hours later.
        asked = [*(self.config.sweep.layers or ()), *_given(self.config.compare.layer)]
        self._check_layers([self.model.layer(i) for i in asked])
        self.rows = Rows(
            self.run,
            self.progress,
            self.behavior,
            self.model,
            self.vectors,
            self.config.generation,
            self.batch,
        )

    def sweep(self) -> Choice:
        """Run every cell on the select half, choose one, and record the choice."""
        config = self.config.sweep
        layers = [self.model.layer(i) for i in config.layers or self.vectors]
        self._check_layers(layers)
        prompts = [self.system_prompt(name) for name in config.system_prompts]
        scope = self.config.scope
        conditions = design.sweep(self.vectors, layers, config.strengths, prompts, scope)
        if not any(c.kind == "steering" for c in conditions):
            raise ConfigError("sweep.strengths has no strength other than 0, which is the base run")
        if self.config.gate is not None:
            strengths = self.config.gate.strengths or config.strengths
            gate = self.gate(None)
            conditions += design.gated_sweep(self.vectors, layers, strengths, gate, scope)
        items = self._items("select", "target", "other")
        if config.screen is not None:
            conditions = self._screened(conditions, items, config.screen)
        self.rows.make("sweep", conditions, items)
        choice = self._choose(conditions, dict(zip(prompts, config.system_prompts, strict=True)))
        self.run.write_record("choice.json", choice)
        return choice

    def compare(self, choice: Choice | None) -> None:
        """Run the fair comparison and its controls on the test half.

        Args:
            choice: The sweep's, if there was one.
        """
        config = self.config.compare
        given = choice.layer if config.layer is None and choice else config.layer or 0
        layer, strength = self.model.layer(given), choice.strength if choice else None
        self._check_layers([layer])
        strengths = sorted({*config.strengths, strength or 0.0} - {0.0})
        if not strengths:
            raise ConfigError("compare.strengths has no strength other than 0, the base run")
        chosen = strength or (1.0 if 1.0 in strengths else strengths[len(strengths) // 2])
        named = config.system_prompt or (choice.system_prompt if choice else None)
        prompt = self.system_prompt(named) if named else None
        vector = self.vectors[layer]
        name, scope = self.behavior.name, self.config.scope
        conditions = design.comparison(vector, strengths, name, prompt, scope)
        if self.config.gate is not None:
            gated = (choice.gated if choice else None) or GatedChoice(layer=layer, strength=chosen)
            more = self.config.gate.strengths or config.strengths
            conditions += design.gated_comparison(
                self.vectors[gated.layer],
                sorted({*more, gated.strength} - {0.0}),
                name,
                self.gate(None),
                (prompt, self.gate(prompt[1])) if prompt else None,
                scope,
            )
        borderline = ("borderline",) if config.borderline else ()
        self.rows.make("compare", conditions, self._items("test", "target", "other", *borderline))
        controls = self._controls(layer, chosen)
        if controls:
            self.rows.make("controls", controls, self._items("test", "target", "other"))
        self.write_gates()

    def gate(self, system_prompt: str | None) -> Gate:
        """The gate fitted under a system prompt; fitted and saved with the vectors once."""
        config = self.config.gate
        assert config is not None
        if system_prompt not in self._gates:
            self._gates[system_prompt] = fit_gate(
                self.model,
                self.behavior,
                config,
                system_prompt=system_prompt,
                name="plain" if system_prompt is None else _short_hash(system_prompt),
            )
            fit = self._gates[system_prompt]
            self.vectors = self.vectors.with_gate(fit.gate, fit.info)
            self.vectors.save(self.run.folder / "vectors")
        return self._gates[system_prompt].gate

    def write_gates(self) -> None:
        """Record how each gate was found."""
        if self._gates:
            names = {text: name for name, text in self.behavior.system_prompts.items()}
            fits = tuple(
                GateRecord.model_validate(
                    {**fit.record(), "system_prompt": names.get(text or "", text)}
                )
                for text, fit in self._gates.items()
            )
            self.run.write_record("gate.json", Gates(gates=fits))

    def system_prompt(self, name_or_text: str) -> tuple[str, str]:
        """A system prompt's short name and its text."""
        return design.resolve_system_prompt(self.behavior.system_prompts, name_or_text)

    def _screened(
        self, conditions: Sequence[Condition], items: Sequence[PromptItem], keep: int
    ) -> list[Condition]:
        """Without the cells that are not among the best `keep` of their kind."""
        cells = [c for c in conditions if c.interventions]
        found = self._log_odds([design.BASE, *cells], items)
        sets = {item.id: item.set for item in items}
        base = lean(found[design.BASE.name], sets)
        limit = base.other + self.config.sweep.limits.false_positives
        records: list[ScreenedCell] = []
        for kind in dict.fromkeys(c.kind for c in cells):
            leans = {c.name: lean(found[c.name], sets) for c in cells if c.kind == kind}
            by_name = {c.name: c.interventions[0] for c in cells if c.kind == kind}
            order = sorted(
                leans, key=lambda n: screening_rank(leans[n], limit, by_name[n].strength)
            )
            records += [
                ScreenedCell(
                    condition=name,
                    kind=kind,
                    layer=by_name[name].layer,
                    strength=by_name[name].strength,
                    kept=place < keep,
                    **dict(leans[name]),
                )
                for place, name in enumerate(order)
            ]
        found_ = Screening(base=base, limit=limit, cells=tuple(records))
        self.run.write_record("screening.json", found_)
        kept = {record.condition for record in records if record.kept}
        return [c for c in conditions if not c.interventions or c.name in kept]

    def _log_odds(
        self, conditions: Sequence[Condition], items: Sequence[PromptItem]
    ) -> dict[str, dict[str, float]]:
        """Log-odds by condition and prompt id: what an earlier start has left, or new ones."""
        shown, _ = opening_tokens(self.model, self.behavior)
        key = digest(
            {
                "model": self.model.identity,
                "shown": shown,
                "conditions": {c.name: c.key() for c in conditions},
                "prompts": {p.id: prompt_ids(self.model, p, None) for p in items},
            }
        )
        held = self.run.read_record(_SCREENED, _Screened)
        if held and held.made_from == key:
            return held.log_odds
        found = self.rows.screen(conditions, items, shown)
        self.run.write_record(_SCREENED, _Screened(made_from=key, log_odds=found))
        return found

    def _choose(self, conditions: Sequence[Condition], given: dict[tuple[str, str], str]) -> Choice:
        limits = self.config.sweep.limits
        run = load_run(self.run.folder)
        scored = judged(run)
        cells = {c.name: cell_of(run, scored, c.name, "select") for c in conditions}
        base = cells[design.BASE.name]
        of_kind = {
            kind: [cells[c.name] for c in conditions if c.kind == kind]
            for kind in ("steering", "gated", "prompt")
        }
        best, met = choose_cell(of_kind["steering"], base, limits)
        choice: dict[str, Any] = {
            "layer": best.layer,
            "strength": best.strength,
            "system_prompt": None,
            "met_limits": met,
        }
        if of_kind["prompt"]:
            winner, _ = choose_system_prompt(of_kind["prompt"], base, limits)
            choice["system_prompt"] = next(
                name
                for prompt, name in given.items()
                if design.prompted(prompt).name == winner.condition
            )
        if of_kind["gated"]:
            best, met = choose_cell(of_kind["gated"], base, limits)
            choice["gated"] = {"layer": best.layer, "strength": best.strength, "met_limits": met}
        return Choice.model_validate(choice)

    def _controls(self, layer: int, strength: float) -> list[Condition]:
        config, seed = self.config.compare.controls, self.config.statistics.seed
        shuffled = (
            self._extracted("vectors_shuffled", [layer], seed)[layer] if config.shuffled else None
        )
        return design.controls(
            self.vectors[layer],
            strength,
            random=config.random,
            negated=config.negated,
            shuffled=shuffled,
            seed=seed,
            scope=self.config.scope,
        )

    def _extracted(
        self, name: str, layers: Sequence[int], shuffle_seed: int | None = None
    ) -> SteeringVectorSet:
        """Vectors in a folder of the run: those that are there if nothing has changed, or new."""
        folder, config = self.run.folder / name, self.config.extract
        key = digest(
            {
                "model": [self.model.identity, self.model.info.model_dump()],
                "chat_template": self.model.chat.sha256,
                "dataset": self.behavior.sha256,
                "layers": list(layers),
                "method": config.method,
                "token_position": config.token_position,
                "seed": shuffle_seed,
            }
        )
        held = self.run.read_record(_MADE_FROM, _MadeFrom)
        made_from = dict(held.root) if held else {}
        noted = made_from.pop(name, None)
        with suppress(VectorError):
            found = load_vectors(folder)
            if noted == (key, _content(found)):
                return self._without_gates(found, folder)
        self.run.write_record(_MADE_FROM, _MadeFrom(made_from))
        states = pair_states(
            self.model,
            self.behavior,
            layers,
            token_position=config.token_position,
            shuffle_seed=shuffle_seed,
        )
        made = states.vectors(config.method)
        if shuffle_seed is None:
            auc: dict[int, float | None] = {
                k: round(v, 6) for k, v in states.separation(config.method).items()
            }
            self.run.write_record("separation.json", Separation(auc))
        made.save(folder)
        # Last: vectors whose key is written are whole, and so is what goes with them.
        made_from[name] = (key, _content(made))
        self.run.write_record(_MADE_FROM, _MadeFrom(made_from))
        return made

    def _without_gates(self, found: SteeringVectorSet, folder: Path) -> SteeringVectorSet:
        """Vectors as they were extracted; gates are fitted anew, to the present settings."""
        if found.gates:
            metadata = found.metadata.model_copy(update={"gates": []})
            found = SteeringVectorSet(found.vectors, metadata)
            found.save(folder)
        return found

    def _items(self, split: str, *sets: str) -> list[PromptItem]:
        chosen: list[PromptItem] = []
        for name in sets:
            items = [p for p in self.behavior.prompts if (p.set, p.split) == (name, split)]
            chosen += items[: self.config.prompts_per_set]
        return chosen

    def _check_layers(self, layers: Sequence[int]) -> None:
        missing = [layer for layer in layers if layer not in self.vectors]
        if missing:
            raise ConfigError(
                f"layer {missing[0]} is to be steered but has no vector; there are vectors for "
                f"layers {', '.join(map(str, self.vectors))}"
            )


def lean(log_odds: Mapping[str, float], sets: Mapping[str, str]) -> Lean:
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
    within = lean.other <= limit + 1e-9
    gain = lean.target if within else lean.target - lean.other
    return (not within, -gain, abs(strength))


def _given(layer: int | None) -> list[int]:
    return [] if layer is None else [layer]


def _content(vectors: SteeringVectorSet) -> str:
    return digest({str(k): v.sha256 for k, v in vectors.metadata.layers.items()})


def _short_hash(text: str) -> str:
    return "prompt_" + hashlib.sha256(text.encode()).hexdigest()[:8]
