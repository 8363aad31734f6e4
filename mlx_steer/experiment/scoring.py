"""What finished rows are scored by: perplexity where a table quotes it, and the price of steering.

Rows are known by their content and scores by rows: what an earlier start has scored stays, and what
is scored together follows from the stage alone, so that an interrupted run gives the same digits.
"""

from __future__ import annotations

from mlx_steer.conditions import Condition
from mlx_steer.engine.divergence import Divergence, Reference, divergences
from mlx_steer.engine.perplexity import Answer, perplexities, units
from mlx_steer.experiment.exchange import Exchange
from mlx_steer.experiment.program import Stage
from mlx_steer.experiment.rows import Rows
from mlx_steer.experiment.work import Work
from mlx_steer.model.load import Model
from mlx_steer.run.records import PriceLine, Row, Score


def score(stage: Stage, work: Work, model: Model, rows: Rows) -> None:
    """Perplexity of a stage's rows under the unsteered model, each given its own prompt."""
    wanted = {rows.key(c.name, item.id) for c in stage.conditions for item in stage.items}
    held = {s.key for s in work.run.read("scores.jsonl", Score) if s.says("perplexity")}
    heads = rows.heads()
    answers = [
        Answer(row.key, ids, row.tokens, heads.get(ids, 0))
        for row in work.run.read("rows.jsonl", Row)
        if row.key in wanted and (ids := rows.ids(row.key))
    ]
    todo = [unit for unit in units(answers) if any(a.key not in held for a in unit)]
    work.progress.stage(stage.name, len(answers), len(answers) - sum(map(len, todo)))
    made = Exchange(work, "scores.jsonl", Score)
    for scored in perplexities(model, work.team.share(todo)):
        made.add([Score(key=k, perplexity=p) for k, p in scored if k not in held])
        work.progress.advance(units=len(scored))
        made.keep_up()
    made.finish()


def price(stage: Stage, work: Work, model: Model, rows: Rows) -> None:
    """How far a stage's conditions are from its first, base, on base's own responses.

    Where a gate is shut, a row is base's: it costs nothing, and no line is written.
    """
    base, *others = stage.conditions
    rows_made = {row.key: row for row in work.run.read("rows.jsonl", Row)}
    held = {(line.base, line.row) for line in work.run.read("prices.jsonl", PriceLine)}
    # By prompt: base's key, which stands for base against itself, and that of each condition.
    keys: dict[str, dict[str, str]] = {}
    references = []
    for item in stage.items:
        own = rows.key(base.name, item.id)
        # Conditions that come to the same on a prompt share a row, and are read once.
        first = {rows.key(c.name, item.id): c.name for c in reversed(others)}
        found = {name: key for key, name in first.items() if key != own}
        row = rows_made[own]
        if row.tokens:
            keys[item.id] = {base.name: own, **found}
            under = {name: rows.ids(key) for name, key in found.items()}
            ended = row.finish_reason == "stop"
            references.append(Reference(item.id, rows.ids(own), row.tokens, ended, under))

    def known(prompt_id: str) -> bool:
        of = keys[prompt_id]
        return all((of[base.name], key) in held for key in of.values())

    if not references:  # a behavior without other prompts, or a model without a word
        return
    done = {prompt_id for prompt_id in keys if known(prompt_id)}
    each = len(stage.conditions)
    work.progress.stage(stage.name, each * len(keys), each * len(done))
    # Gates are decided: as rows, a prompt's prices are those of what acts on it.
    acting = [Condition(c.name, c.system_prompt, c.interventions) for c in others]
    made = Exchange(work, "prices.jsonl", PriceLine)
    mine = {*work.team.share(sorted(keys.keys() - done))}
    for one in divergences(model, references, acting, keys.keys() - mine):
        lines = _lines(one, keys[one.prompt_id], base.name)
        made.add([x for x in lines if (x.base, x.row) not in held])
        work.progress.advance(units=each)
        made.keep_up()
    made.finish()


def _lines(found: Divergence, keys: dict[str, str], base: str) -> list[PriceLine]:
    """A prompt's lines, base against itself first."""
    return [
        PriceLine(base=keys[base], row=keys[name], nats=value, tokens=found.tokens)
        for name, value in {base: found.floor, **found.nats}.items()
    ]
