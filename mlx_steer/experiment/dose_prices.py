"""What doses cost before their rows are decoded: KL(base || steered) over base's own responses.

Read once and kept in the run directory, for as long as what it was read from is the same.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

from mlx_steer.conditions import Condition, digest
from mlx_steer.engine.divergence import Reference, divergences
from mlx_steer.engine.jobs import Sampling
from mlx_steer.experiment.condition_sets import BASE
from mlx_steer.experiment.leans import screening_rank
from mlx_steer.experiment.program import Stage
from mlx_steer.experiment.rows import prompt_ids, row_key
from mlx_steer.experiment.work import Work
from mlx_steer.model.load import Model
from mlx_steer.run.base_record import Record
from mlx_steer.run.records import Row
from mlx_steer.run.screened import Lean


class Priced(Record):
    """Nats a token of every condition of a stage, and what they were read from."""

    made_from: str
    nats: dict[str, float]


def priced_rank(lean: Lean, nats: float, most: float, strength: float) -> tuple[float, ...]:
    """Sorts gated cells before anything is decoded, those that are to be tried first.

    Cells whose price is at most `most` come first, by their lean on target prompts; then the
    others, the cheapest first. By the lean alone the strongest steering came first, which babbles.

    Args:
        lean: See leans.py.
        nats: What the cell costs on target prompts, a token.
        most: The same unit; see `DosesConfig.price`.
        strength: The cell's; of equals, the smaller comes first.
    """
    within = nats <= most
    return (not within, -lean.target if within else nats, abs(strength))


def entry_rank(
    cell: Condition, lean: Lean, limit: float, nats: float | None, most: float
) -> tuple[float, ...]:
    """Sorts the cells of one kind: by their price where it was read, else by their lean.

    Args:
        cell: Steers.
        lean: Its lean.
        limit: See `screening_rank`.
        nats: Its price on target prompts, a token, if it is gated and was read.
        most: See `priced_rank`.
    """
    strength = cell.interventions[0].strength
    if nats is None:
        return screening_rank(lean, limit, strength)
    return priced_rank(lean, nats, most, strength)


def dose_prices(stage: Stage, work: Work, model: Model) -> dict[str, float]:
    """The price of each steered condition of a stage, in nats a token, by its name.

    Args:
        stage: Base first; base's rows on its prompts are made.
        work: The experiment.
        model: The model.
    """
    generation = work.config.generation
    sampling = Sampling(generation.max_tokens, generation.temperature, generation.seed)
    ids = {item.id: prompt_ids(model, item, None) for item in stage.items}
    keys = {n: row_key(model, own, BASE, sampling) for n, own in ids.items()}
    _, *steered = stage.conditions
    made_from = digest({"rows": keys, "conditions": {c.name: c.key() for c in steered}})
    file = f".{stage.name.replace(' ', '_')}.json"
    held = work.run.read_record(file, Priced)
    if held is not None and held.made_from == made_from:
        return held.nats
    rows = {row.key: row for row in work.run.read("rows.jsonl", Row)}
    references = [
        Reference(name, own, row.tokens, row.finish_reason == "stop")
        for name, own in ids.items()
        if (row := rows[keys[name]]).tokens
    ]
    work.progress.stage(stage.name, len(references) * len(stage.conditions), 0)
    mine = {one.prompt_id for one in work.team.share(references)}
    read: dict[str, Mapping[str, float]] = {}
    for one in divergences(model, references, steered, ids.keys() - mine):
        read[one.prompt_id] = one.nats
        work.progress.advance(units=len(stage.conditions))
    for theirs in work.team.gathered(json.dumps(read).encode()):
        read |= json.loads(theirs)
    each = {c.name: [nats[c.name] for nats in read.values()] for c in steered}
    means = {name: math.fsum(nats) / max(1, len(nats)) for name, nats in each.items()}
    rounded = {name: float(f"{mean:.6g}") for name, mean in means.items()}
    work.run.write_record(file, Priced(made_from=made_from, nats=rounded))
    return rounded
