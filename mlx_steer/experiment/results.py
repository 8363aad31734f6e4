"""What a run's stages give: vectors, gates, the cells a screening keeps, and the choice.

Each is made once and kept in the run directory, for as long as what it was made from is the same.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress

from mlx_steer.bands import band_of
from mlx_steer.conditions import Condition, Gate, digest
from mlx_steer.errors import ConfigError, VectorError
from mlx_steer.experiment.condition_sets import BASE, prompted, resolve_system_prompt
from mlx_steer.experiment.dose_prices import dose_prices, entry_rank
from mlx_steer.experiment.doses import DoseSearch
from mlx_steer.experiment.leans import Leans, within_limit
from mlx_steer.experiment.mirror import packed, unpack
from mlx_steer.experiment.program import Stage
from mlx_steer.experiment.rows import Rows
from mlx_steer.experiment.sentence_scores import SentenceScores
from mlx_steer.experiment.work import Work
from mlx_steer.extraction.gates import GateFit, fit_gate
from mlx_steer.extraction.pairs import pair_states
from mlx_steer.metrics.choose import (
    Cell,
    cell_of,
    choose_cell,
    choose_system_prompt,
    held_to,
    leaders,
)
from mlx_steer.metrics.verdicts import judged
from mlx_steer.model.load import Model
from mlx_steer.run.merge import MADE_FROM, MadeFrom
from mlx_steer.run.reader import load_run
from mlx_steer.run.records import (
    Choice,
    Count,
    GateCandidate,
    GateRecord,
    Gates,
    Separation,
)
from mlx_steer.run.screened import Doses, FoundDose, Lean, ScreenedCell, Screening
from mlx_steer.vectors import SteeringVector, SteeringVectorSet, load_vectors


class RunResults:
    """A program's `Results` as a run makes them; extracts the vectors at once.

    Args:
        work: The experiment.
        model: The model.
        sentences: Of a behavior of two sentences, with the pairs written.
    """

    def __init__(self, work: Work, model: Model, sentences: SentenceScores | None = None) -> None:
        """See the class."""
        self._sentences = sentences
        self._work = work
        self._model = model
        self._gates: dict[str | None, GateFit] = {}
        self._leans = Leans(work, model)
        self._prices: dict[str, float] = {}
        self._doses = Doses()
        self._forced: dict[str, dict[str, float]] = {}
        self.vectors = self._given() or self._extracted("vectors", self._layers())

    def layer(self, index: int) -> int:
        """A layer of the model, counted from 0."""
        return self._model.layer(index)

    # --- vectors ---

    def shuffled(self, layers: Sequence[int]) -> Sequence[SteeringVector]:
        """The vectors of contrast pairs whose sides were swapped at random."""
        seed = self._work.config.statistics.seed
        found = self._extracted("vectors_shuffled", layers, seed)
        return [found[layer] for layer in layers]

    def _given(self) -> SteeringVectorSet | None:
        """The vectors that the config names, in the run's folder."""
        run, folder = self._work.run, self._work.config.extract.vectors
        if folder is None:
            return None
        found = load_vectors(folder)
        shape = (self._model.hidden_size, self._model.num_layers, self._model.info.id)
        for warning in found.check_fits(*shape):
            self._work.progress.note(warning)
        run.write_record(MADE_FROM, MadeFrom({}))
        found.save(run.folder / "vectors")
        return found

    def _layers(self) -> list[int]:
        asked = self._work.config.extract.layers
        every = range(self._model.num_layers) if asked == "all" else asked
        return sorted({self._model.layer(i) for i in every})

    def _extracted(
        self, name: str, layers: Sequence[int], shuffle_seed: int | None = None
    ) -> SteeringVectorSet:
        """Vectors in a folder of the run: those that are there if nothing has changed, or new."""
        run, config = self._work.run, self._work.config.extract
        folder = run.folder / name
        key = self._made_from(layers, shuffle_seed)
        held = run.read_record(MADE_FROM, MadeFrom)
        made_from = dict(held.root) if held else {}
        noted = made_from.pop(name, None)
        with suppress(VectorError):
            found = load_vectors(folder)
            if noted == (key, _content(found)):
                if found.gates:  # they are fitted anew, to the present settings
                    metadata = found.metadata.model_copy(update={"gates": []})
                    found = SteeringVectorSet(found.vectors, metadata, pairs=found.pairs)
                    found.save(folder)
                return found
        run.write_record(MADE_FROM, MadeFrom(made_from))
        if self._work.team.rank > 0:
            unpack(self._work.team.told(), run.folder)
            return load_vectors(folder)
        states = pair_states(
            self._model,
            self._work.behavior,
            layers,
            token_position=config.token_position,
            shuffle_seed=shuffle_seed,
        )
        made = states.vectors(config.method)
        written = self._sentences.written if self._sentences else None
        if written is not None and shuffle_seed is None:
            made = made.with_pairs(written.info, written.file)
        if shuffle_seed is None:
            auc: dict[int, float | None] = {
                k: round(v, 6) for k, v in states.separation(config.method).items()
            }
            run.write_record("separation.json", Separation(auc))
        made.save(folder)
        # Last: vectors whose key is written are whole, and so is what goes with them.
        run.write_record(MADE_FROM, MadeFrom({**made_from, name: (key, _content(made))}))
        self._work.team.told(packed(run.folder, [name, MADE_FROM, "separation.json"]))
        return made

    def _made_from(self, layers: Sequence[int], shuffle_seed: int | None) -> str:
        config, model = self._work.config.extract, self._model
        return digest(
            {
                "model": [model.identity, model.info.model_dump()],
                "chat_template": model.chat.sha256,
                "dataset": self._work.behavior.sha256,
                "layers": list(layers),
                "method": config.method,
                "token_position": config.token_position,
                "seed": shuffle_seed,
            }
        )

    # --- gates ---

    def gate(self, system_prompt: str | None) -> Gate:
        """The gate fitted under a system prompt; fitted and saved with the vectors once."""
        config = self._work.config.gate
        if config is None:
            raise ConfigError("there is no gate to fit: the config has no section gate")
        if system_prompt not in self._gates:
            fit = fit_gate(
                self._model,
                self._work.behavior,
                config,
                system_prompt=system_prompt,
                name="plain" if system_prompt is None else _short_hash(system_prompt),
            )
            self._gates[system_prompt] = fit
            self.vectors = self.vectors.with_gate(fit.gate, fit.info)
            self.vectors.save(self._work.run.folder / "vectors")
        return self._gates[system_prompt].gate

    def write_gates(self) -> None:
        """Record how each gate was found."""
        if self._gates:
            names = {text: name for name, text in self._work.behavior.system_prompts.items()}
            gates = [_gate_record(f, names.get(t or "", t)) for t, f in self._gates.items()]
            self._work.run.write_record("gate.json", Gates(gates=tuple(gates)))

    # --- the screening and the search for doses ---

    def screen(self, stage: Stage, rows: Rows) -> None:
        """Read a stage of which nothing is decoded, or take what an earlier start has left."""
        if self._sentences is not None:
            self._forced = self._sentences.read(stage)
        elif stage.priced:
            self._prices = dose_prices(stage, self._work, self._model)
        else:
            self._leans.read(stage, rows)

    def kept(self, screened: Stage, keep: int) -> frozenset[str]:
        """The names of the best `keep` cells of each kind; all are recorded with their rank."""
        if self._sentences is not None:
            return self._sentences.kept(screened, self._forced, keep)
        leans = self._leans.of(screened)
        base, limit = leans[BASE.name], self._limit(leans)
        most = self._work.config.sweep.doses.price
        cells = [c for c in screened.conditions if c.interventions]

        def price_of(cell: Condition) -> float | None:  # plain cells of this name may have one
            return self._prices.get(cell.name) if cell.gates else None

        def rank(cell: Condition) -> tuple[float, ...]:
            return entry_rank(cell, leans[cell.name], limit, price_of(cell), most)

        records: list[ScreenedCell] = []
        for kind in dict.fromkeys(c.kind for c in cells):
            ranked = sorted((c for c in cells if c.kind == kind), key=rank)
            records += [
                ScreenedCell(
                    condition=cell.name,
                    kind=kind,
                    layer=band_of([i.layer for i in cell.interventions]),
                    strength=cell.interventions[0].strength,
                    kept=place < keep,
                    nats=price_of(cell),
                    **dict(leans[cell.name]),
                )
                for place, cell in enumerate(ranked)
            ]
        found = Screening(base=base, limit=limit, cells=tuple(records))
        self._work.run.write_record("screening.json", found)
        return frozenset(record.condition for record in records if record.kept)

    def harmless(self, read: Stage) -> frozenset[str]:
        """The names of the cells within the limit, in a stage that was only read for doses."""
        if read.priced:
            most = self._work.config.sweep.doses.price
            return frozenset(name for name, nats in self._prices.items() if nats <= most)
        leans = self._leans.of(read)
        limit = self._limit(leans)
        return frozenset(name for name, one in leans.items() if within_limit(one, limit))

    def found(self, gated: bool, searches: Sequence[DoseSearch]) -> None:
        """Record the doses that were found."""
        doses = tuple(
            FoundDose(
                layer=one.place,
                strength=one.strength(one.within),
                relative_dose=round(one.within, 4),
                beyond=round(one.beyond, 4) if math.isfinite(one.beyond) else None,
            )
            for one in searches
        )
        self._doses = self._doses.model_copy(update={"gated" if gated else "plain": doses})
        self._work.run.write_record("doses.json", self._doses)

    def _limit(self, leans: Mapping[str, Lean]) -> float:
        """The highest lean on other prompts of a cell that can be chosen."""
        return leans[BASE.name].other + self._work.config.sweep.limits.false_positives

    # --- the race ---

    def ahead(self, decoded: Stage) -> frozenset[str]:
        """The names of the better half of each kind, by their rows on a stage's prompts."""
        limits, run = self._work.config.sweep.limits, load_run(self._work.run.folder)
        scored, prompts = judged(run), {item.id for item in decoded.items}
        cells: dict[str, list[Cell]] = {}
        for condition in decoded.conditions:
            # Not by rows of later rounds, which an earlier start may have left.
            cell = cell_of(run, scored, condition.name, "select", prompts)
            cells.setdefault(condition.kind, []).append(cell)
        (base,) = cells.pop("base")
        return frozenset(
            cell.condition for own in cells.values() for cell in leaders(own, base, limits)
        )

    # --- the choice ---

    def choose(self) -> Choice:
        """The best of the cells that were decoded on the select half, recorded."""
        config = self._work.config.sweep
        run = load_run(self._work.run.folder)
        scored = judged(run)
        base = held_to(run, scored, cell_of(run, scored, BASE.name, "select"), "select")
        of_kind: dict[str, list[Cell]] = {}
        for condition in run.conditions:
            cell = cell_of(run, scored, condition, "select")
            of_kind.setdefault(condition.kind, []).append(cell)
        choice = _cell(*choose_cell(of_kind["steering"], base, config.limits))
        choice["system_prompt"] = None
        if "prompt" in of_kind:
            winner, _ = choose_system_prompt(of_kind["prompt"], base, config.limits)
            prompts = self._work.behavior.system_prompts
            asked = {
                prompted(resolve_system_prompt(prompts, name)).name: name
                for name in config.system_prompts
            }
            choice["system_prompt"] = asked[winner.condition]
        if "gated" in of_kind:
            choice["gated"] = _cell(*choose_cell(of_kind["gated"], base, config.limits))
        made = Choice.model_validate(choice)
        self._work.run.write_record("choice.json", made)
        return made


def _cell(cell: Cell, met_limits: bool) -> dict[str, object]:
    return {"layer": cell.layer, "strength": cell.strength, "met_limits": met_limits}


def _content(vectors: SteeringVectorSet) -> str:
    return digest({str(k): v.sha256 for k, v in vectors.metadata.layers.items()})


def _short_hash(text: str) -> str:
    return "prompt_" + hashlib.sha256(text.encode()).hexdigest()[:8]


def _gate_record(fit: GateFit, system_prompt: str | None) -> GateRecord:
    """What gate.json says of a fit; `system_prompt` is its name where it has one."""
    tried = [
        GateCandidate(layer=c.layer, method=c.method, auc=round(c.auc, 6)) for c in fit.candidates
    ]
    return GateRecord(
        name=fit.gate.name,
        layer=fit.gate.layer,
        threshold=fit.gate.threshold,
        method=fit.method,
        auc=tried[0].auc,
        candidates=tuple(tried),
        false_positive_rate=fit.false_positive_rate,
        false_openings=Count(count=fit.achieved.count, n=fit.achieved.n),
        openings=Count(count=fit.opened.count, n=fit.opened.n),
        held_out_scores=fit.scores,
        sets=fit.sets,
        system_prompt=system_prompt,
    )
