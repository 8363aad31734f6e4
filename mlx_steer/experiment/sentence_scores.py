"""A behavior of two sentences in a run: the pairs the model writes, and the judge that it is.

The answers under either sentence are rows like all others, on prompts of the split `extract`; every
response's log-ratio goes to scores.jsonl within the stage that made it. The threshold stands with
the behavior's record, so that verdicts are derived without a model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import fsum
from typing import NamedTuple

from mlx_steer.behaviors import Behavior, PromptItem
from mlx_steer.behaviors.two_sentences import POSITIVE
from mlx_steer.conditions import digest
from mlx_steer.engine.forced import forced
from mlx_steer.engine.jobs import Job
from mlx_steer.experiment.condition_sets import BASE
from mlx_steer.experiment.exchange import Exchange
from mlx_steer.experiment.leans import Screened
from mlx_steer.experiment.program import Stage, answers
from mlx_steer.experiment.rows import Rows
from mlx_steer.experiment.work import Work
from mlx_steer.extraction.sentence_judge import SentenceJudge
from mlx_steer.extraction.written_pairs import SIDES, Replies, Written, written
from mlx_steer.model.load import Model
from mlx_steer.run.records import BehaviorRecord, Row, Score
from mlx_steer.run.sentences import Estimate, ForcedCell, ForcedScreening, SentencesRecord
from mlx_steer.sentences import JUDGED_TOKENS

# Of the best cell's gain in likelihood of the positive answers, what a cell must reach to be ranked
# by how well it tells the two sides apart.
ENOUGH = 0.75


# As of other behaviors' screenings; here by condition and side.
_SCREENED = ".screened.json"


class Forced(NamedTuple):
    """Mean log-probability per token of the model's own answers under either sentence."""

    positive: float
    negative: float


class SentenceScores:
    """Log-ratios of a run's rows.

    Args:
        work: The experiment, of a behavior of two sentences.
        model: The model.
        rows: Its rows.
    """

    def __init__(self, work: Work, model: Model, rows: Rows) -> None:
        """See the class."""
        assert work.behavior.sentences is not None
        self._work = work
        self._model = model
        self._rows = rows
        judged = [item for item in work.behavior.prompts if item.split != "facts"]
        self._judge = SentenceJudge(model, work.behavior.sentences, judged)
        # Rows that earlier stages made: what is read together follows from the stages alone.
        self._earlier: set[str] = set()
        self.written: Written | None = None

    def score(self, stage: Stage) -> None:
        """Log-ratios of all rows of a stage that was made; what is there stays."""
        items = {item.id: item for item in stage.items if item.split != "facts"}
        keys = {
            self._rows.key(c.name, item_id): item_id for c in stage.conditions for item_id in items
        }
        fresh = {key: name for key, name in keys.items() if key not in self._earlier}
        self._earlier |= keys.keys()
        run, told = self._work.run, self._work.progress
        # Of several judges' lines on a row the last one counts.
        by = {s.key: s.sentences for s in run.read("scores.jsonl", Score) if s.says("log_ratio")}
        held = {key for key in fresh if by.get(key) == self._judge.id}
        told.stage(f"{stage.name}: judge", len(fresh), len(held))
        texts = {row.key: row.text for row in run.read("rows.jsonl", Row) if row.key in fresh}
        asked = [(key, items[name], texts[key]) for key, name in fresh.items()]
        made = Exchange(self._work, "scores.jsonl", Score)
        for part in self._judge.ratios(asked, held, self._work.team):
            lines = [
                Score(key=key, sentences=self._judge.id, log_ratio=ratio.value, masked=ratio.masked)
                for key, ratio in part
                if key not in held
            ]
            made.add(lines)
            told.advance(units=len(lines))
            made.keep_up()
        made.finish()

    def write(self) -> Behavior:
        """The behavior with the pairs that the model wrote; records the judge with it.

        Raises:
            DataError: See `written_pairs.written`.
        """
        work = self._work
        found: dict[str, dict[str, str]] = {}
        items: dict[str, PromptItem] = {}
        for stage in answers(work.config, work.behavior):
            self._rows.make(stage)
            self.score(stage)
            for item in stage.items:
                items[item.id] = item
                found[item.id] = {
                    side: self._rows.key(c.name, item.id)
                    for side, c in zip(SIDES, stage.conditions, strict=True)
                }
        texts = {row.key: row.text for row in work.run.read("rows.jsonl", Row)}
        scores = {s.key: s for s in work.run.read("scores.jsonl", Score) if s.says("log_ratio")}
        replies = []
        for name, keys in found.items():
            first, second = (keys[side] for side in SIDES)
            one, other = scores[first], scores[second]
            question = replace(items[name], id=name.partition(".")[0])
            both, ratios = (texts[first], texts[second]), (one.log_ratio, other.log_ratio)
            replies.append(Replies(name, question, both, ratios, (one.masked, other.masked)))
        assert work.behavior.sentences is not None
        config, seed = work.config.extract, work.config.generation.seed
        made = written(replies, work.behavior.sentences, config, seed, self._model.info.id)
        self._record(made)
        self.written = made
        return made.behavior(work.behavior)

    def read(self, stage: Stage) -> dict[str, dict[str, float]]:
        """What `screen` gives, or an earlier start of the run has left."""
        assert self.written is not None
        made_from = digest(
            {
                "judge": self._judge.id,
                "pairs": self.written.info.sha256,
                "conditions": {c.name: c.key() for c in stage.conditions},
                "count": len(stage.items),
            }
        )
        held = self._work.run.read_record(_SCREENED, Screened)
        if held is None or held.made_from != made_from:
            held = Screened(made_from=made_from, log_odds=self.screen(stage))
            self._work.run.write_record(_SCREENED, held)
        return held.log_odds

    def screen(self, stage: Stage) -> dict[str, dict[str, float]]:
        """How likely the model's own prompted answers are under each condition, unprompted.

        Args:
            stage: Conditions. As many questions are read as it has prompts, those of the pairs.

        Returns:
            By condition and side: the mean log-probability per token.
        """
        assert self.written is not None
        pairs = self.written.pairs[: len(stage.items)]
        conditions, chat = stage.conditions, self._model.chat
        responses: dict[str, tuple[int, ...]] = {}
        jobs: list[Job] = []
        for pair in pairs:
            ids = tuple(chat.answer_ids(pair.prompt))
            for place, condition in enumerate(conditions):
                for side, text in zip(SIDES, (pair.positive, pair.negative), strict=True):
                    key = f"{place} {side} {pair.id}"
                    responses[key] = tuple(chat.response_ids(text))[:JUDGED_TOKENS]
                    jobs.append(Job(key, ids, condition))
        told = self._work.progress
        told.stage(stage.name, len(jobs), 0)
        read: dict[str, float] = {}

        def give(rows: int) -> None:
            left = [job for job in jobs if job.key not in read]
            read.update(forced(self._model, left, responses, rows, lambda n: told.advance(units=n)))

        self._work.batch.retried(give)

        def mean(place: int, side: str) -> float:
            return round(fsum(read[f"{place} {side} {p.id}"] for p in pairs) / len(pairs), 4)

        return {
            c.name: {side: mean(place, side) for side in SIDES}
            for place, c in enumerate(conditions)
        }

    def kept(
        self, screened: Stage, found: Mapping[str, Mapping[str, float]], keep: int
    ) -> frozenset[str]:
        """The names of the best `keep` cells of each kind; all are recorded with their rank."""
        base = Forced(**found[BASE.name])
        cells = [c for c in screened.conditions if c.interventions]
        best = max(found[c.name][POSITIVE] for c in cells)
        least = base.positive + ENOUGH * max(0.0, best - base.positive)
        records: list[ForcedCell] = []
        for kind in dict.fromkeys(c.kind for c in cells):
            ranked = sorted(
                (c for c in cells if c.kind == kind),
                key=lambda c: forced_rank(
                    Forced(**found[c.name]), least, c.interventions[0].strength
                ),
            )
            records += [
                ForcedCell(
                    condition=cell.name, kind=kind, kept=place < keep, **dict(found[cell.name])
                )
                for place, cell in enumerate(ranked)
            ]
        made = ForcedScreening(**base._asdict(), cells=tuple(records))
        self._work.run.write_record("screening.json", made)
        return frozenset(record.condition for record in records if record.kept)

    def _record(self, made: Written) -> None:
        """The behavior's record with the judge."""
        said, found = self._work.behavior.sentences, made.calibration
        assert said is not None
        record = BehaviorRecord.model_validate(self._work.behavior)
        judge = SentencesRecord(
            positive=said.positive,
            negative=said.negative,
            rules=said.rules,
            judge=self._judge.id,
            tokens=JUDGED_TOKENS,
            threshold=found.threshold,
            half_way=round(made.half_way, 4),
            auc=Estimate.model_validate(found.auc),
            masked_auc=None if made.masked_auc is None else round(made.masked_auc, 4),
            error=Estimate.model_validate(found.error),
            questions=found.questions,
            pairs=len(made.pairs),
            dropped=made.dropped,
        )
        record = record.model_copy(update={"sentences": judge})
        self._work.run.write_record("behavior.json", record)


def forced_rank(cell: Forced, least: float, strength: float) -> tuple[float, ...]:
    """Sorts cells by how they make the prompted answers likely, the best first.

    Cells that make the positive answers likely enough come first, by the log-ratio of positive to
    negative answers; then the others, by how likely the positive ones are: the strongest steering
    tells the two sides apart best of all, and babbles.

    Args:
        cell: Of the cell.
        least: The log-probability of the positive answers that is enough.
        strength: The cell's; of equals, the smaller comes first.
    """
    within = cell.positive >= least
    gain = cell.positive - cell.negative if within else cell.positive
    return (not within, -gain, abs(strength))
