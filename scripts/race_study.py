"""Does a race find what the full grid finds? Replays races in random orders on a finished grid.

The sweep of the config is run once as a grid, with all cells screened and none dropped; that is the
truth. Then the race's own program is carried out on it many times, each with the prompts of every
set in another order, its rows, screening and prices taken from the grid. Printed for each kind of
cell: target minus false positives, on all select prompts, of the race's choice and of the grid's,
and how many of the grid's rows the race decoded.

    python scripts/race_study.py configs/smollm2_135m_refusal_full.yaml --out runs/grid
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from measuring import Silent

from mlx_steer.behaviors import Behavior
from mlx_steer.behaviors.two_sentences import behavior_of
from mlx_steer.conditions import Condition, Gate, digest
from mlx_steer.config import ExperimentConfig, RaceConfig, load_config
from mlx_steer.engine.divergence import Reference, divergences
from mlx_steer.engine.guard import load_model
from mlx_steer.experiment.dose_prices import entry_rank
from mlx_steer.experiment.doses import DoseSearch
from mlx_steer.experiment.execute import run_experiment
from mlx_steer.experiment.leans import Screened, lean
from mlx_steer.experiment.program import Program, Stage
from mlx_steer.experiment.rows import prompt_ids
from mlx_steer.metrics.choose import Cell, cell_of, choose_cell, leaders
from mlx_steer.metrics.verdicts import Scored, judged
from mlx_steer.model.load import Model
from mlx_steer.run.directory import RunDirectory
from mlx_steer.run.reader import RunData, load_run
from mlx_steer.vectors import SteeringVector, SteeringVectorSet

KINDS = ("steering", "gated")


@dataclass(frozen=True, eq=False)
class Grid:
    """A finished grid: its rows, verdicts and screening."""

    run: RunData
    scored: Mapping[str, Scored]
    log_odds: Mapping[str, Mapping[str, float]]
    nats: Mapping[str, Mapping[str, float]]
    vectors: SteeringVectorSet

    def cells(self, stage: Stage) -> dict[str, list[Cell]]:
        """The stage's conditions by kind, by their rows on its prompts."""
        prompts = {item.id for item in stage.items}
        found: dict[str, list[Cell]] = {}
        for condition in stage.conditions:
            cell = cell_of(self.run, self.scored, condition.name, "select", prompts)
            found.setdefault(condition.kind, []).append(cell)
        return found


class Replayed:
    """A program's results, taken from a grid."""

    def __init__(self, grid: Grid, config: ExperimentConfig) -> None:
        """Of a grid, with the limits of a config."""
        self.vectors = grid.vectors
        self._grid = grid
        self._limits, self._doses = config.sweep.limits, config.sweep.doses

    def layer(self, index: int) -> int:
        """A layer, counted from 0."""
        return index % self.vectors.metadata.num_layers

    def gate(self, system_prompt: str | None) -> Gate:
        """The gate the grid was run with."""
        return self.vectors.gates[0]

    def shuffled(self, layers: Sequence[int]) -> Sequence[SteeringVector]:
        """Not asked for in a search."""
        return [self.vectors[layer] for layer in layers]

    def kept(self, screened: Stage, keep: int) -> set[str]:
        """The best cells of each kind by the stored log-odds."""
        sets = {item.id: item.set for item in screened.items}
        leans = {
            c.name: lean({k: self._grid.log_odds[c.name][k] for k in sets}, sets)
            for c in screened.conditions
        }
        limit = leans["base"].other + self._limits.false_positives
        priced = [k for k in sets if k in self._grid.nats][: self._doses.priced_prompts]

        def rank(cell: Condition) -> tuple[float, ...]:
            every = [self._grid.nats[k][cell.name] for k in priced] if cell.gates else []
            nats = statistics.mean(every) if every else None
            return entry_rank(cell, leans[cell.name], limit, nats, self._doses.price)

        kept: set[str] = set()
        for kind in KINDS:
            own = sorted((c for c in screened.conditions if c.kind == kind), key=rank)
            kept |= {c.name for c in own[:keep]}
        return kept

    def harmless(self, read: Stage) -> set[str]:
        """Not asked for: a grid's strengths are named."""
        return set()

    def found(self, gated: bool, searches: Sequence[DoseSearch]) -> None:
        """The same."""

    def ahead(self, decoded: Stage) -> set[str]:
        """The better half of each kind by the stored rows."""
        cells = self._grid.cells(decoded)
        (base,) = cells.pop("base")
        return {c.condition for own in cells.values() for c in leaders(own, base, self._limits)}


def main() -> None:
    """Run the grid if it is not there, and replay races."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="run directory of the grid")
    parser.add_argument("--orders", type=int, default=20)
    parser.add_argument("--cells", type=int, nargs="+", default=[RaceConfig().cells])
    parser.add_argument("--rounds", type=int, nargs="+", default=[RaceConfig().rounds])
    parser.add_argument("--prompts", type=int, help="select prompts of each set that race")
    arguments = parser.parse_args()
    config = load_config(arguments.config)
    every = config.sweep.model_copy(update={"strategy": "grid", "screen": 10_000})
    config = config.model_copy(update={"sweep": every})
    with RunDirectory.open(arguments.out) as run:
        run_experiment(config, run, Silent(), compare=False)
        screened = run.read_record(".screened.json", Screened)
    data = load_run(arguments.out)
    assert screened is not None and data.vectors is not None
    behavior = behavior_of(config.behavior)
    grid = Grid(data, judged(data), screened.log_odds, {}, data.vectors)
    config = config.model_copy(update={"sweep": every.model_copy(update={"screen": None})})
    [full] = Program(config, behavior, Replayed(grid, config)).search()
    made_from = digest([sorted(data.rows), {c.name: c.key() for c in full.conditions}])
    kept = arguments.out / f".study_prices_{made_from[:16]}.json"
    if not kept.exists():
        settings = config.model.model_dump()
        kept.write_text(
            json.dumps(prices(grid, full, load_model(settings.pop("name"), **settings)))
        )
    grid = replace(grid, nats=json.loads(kept.read_text()))
    for cells in arguments.cells:
        for rounds in arguments.rounds:
            race = RaceConfig(cells=cells, rounds=rounds)
            replay(grid, full, config, race, behavior, arguments)


def prices(grid: Grid, full: Stage, model: Model) -> dict[str, dict[str, float]]:
    """What each gated cell costs where its gate is open, by target prompt."""
    cells = [replace(c, gates=()) for c in full.conditions if c.kind == "gated"]
    rows = grid.run.condition("base").rows
    references = [
        Reference(p.id, prompt_ids(model, p, None), row.tokens, row.finish_reason == "stop")
        for p in full.items
        if p.set == "target" and (row := grid.run.rows[rows[p.id]]).tokens
    ]
    return {one.prompt_id: dict(one.nats) for one in divergences(model, references, cells)}


def replay(
    grid: Grid,
    full: Stage,
    config: ExperimentConfig,
    race: RaceConfig,
    behavior: Behavior,
    arguments: argparse.Namespace,
) -> None:
    """Races in many orders of the prompts, against the grid's choice."""
    limits = config.sweep.limits
    cells = grid.cells(full)
    truth = {c.condition: c for own in cells.values() for c in own}
    best = {kind: choose_cell(cells[kind], truth["base"], limits)[0] for kind in KINDS}
    rows = {row for c in grid.run.conditions for row in c.rows.values()}
    sweep = config.sweep.model_copy(update={"strategy": "race", "race": race})
    racing = config.model_copy(update={"sweep": sweep, "prompts_per_set": arguments.prompts})
    lost: dict[str, list[float]] = {kind: [] for kind in KINDS}
    optimism: dict[str, list[float]] = {kind: [] for kind in KINDS}
    decoded: list[int] = []
    for seed in range(arguments.orders):
        order = np.random.default_rng(seed).permutation(len(behavior.prompts))
        shuffled = replace(behavior, prompts=tuple(behavior.prompts[i] for i in order))
        stages = [
            s for s in Program(racing, shuffled, Replayed(grid, racing)).search() if s.decoded
        ]
        keys = {
            grid.run.condition(c.name).rows[item.id]
            for stage in stages
            for c in stage.conditions
            for item in stage.items
        }
        decoded.append(len(keys))
        last = grid.cells(stages[-1])
        for kind in KINDS:
            chosen = choose_cell(last[kind], last["base"][0], limits)[0]
            lost[kind].append(_gap(best[kind]) - _gap(truth[chosen.condition]))
            optimism[kind].append(_gap(chosen) - _gap(truth[chosen.condition]))
    print(
        f"{race.cells} cells, {race.rounds} rounds, {arguments.orders} orders: "
        f"{statistics.mean(decoded):.0f} of {len(rows)} rows "
        f"({100 * statistics.mean(decoded) / len(rows):.0f} %)"
    )
    for kind in KINDS:
        print(
            f"  {kind}: the grid chooses {best[kind].condition} ({100 * _gap(best[kind]):+.0f}); "
            f"the race's choice lies {100 * statistics.mean(lost[kind]):.1f} points lower on "
            f"average (at most {100 * max(lost[kind]):.1f}); as the race saw it, it was "
            f"{100 * statistics.mean(optimism[kind]):+.1f} points better than it is"
        )


def _gap(cell: Cell) -> float:
    return cell.target.value - cell.false_positive.value


if __name__ == "__main__":
    main()
