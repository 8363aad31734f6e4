"""Admission: prompts prefilled, gates decided, rows made ready to decode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mlx_steer.conditions import Condition, Intervention, gates_open
from mlx_steer.engine.batch import Batch, Row
from mlx_steer.engine.caches import grow_by, join
from mlx_steer.engine.forward import Forward, Ids
from mlx_steer.engine.heads import Heads
from mlx_steer.engine.jobs import Job, Sampling
from mlx_steer.engine.prefill import LayerPlans, Prefill, Prefilled
from mlx_steer.engine.row_plan import plan_of
from mlx_steer.engine.steered import settled_gate_score
from mlx_steer.model.load import Model
from mlx_steer.words import Stage


@dataclass(frozen=True, eq=False)
class _ConditionPlans:
    """A condition's plans at each stage of a row."""

    prompt: LayerPlans
    thinking: LayerPlans
    answer: LayerPlans


_NO_PLANS = _ConditionPlans({}, {}, {})


class Admission:
    """Turns waves of jobs into batches that are ready to decode.

    Args:
        model: The model.
        forward: Its network.
        sampling: How tokens are chosen, where `admit` is not told otherwise; the caches grow by
            its `max_tokens` at a time.
        jobs: Jobs to come, whose prompts' common beginnings are run once. Others may be admitted
            too, and share nothing.
    """

    def __init__(
        self, model: Model, forward: Forward, sampling: Sampling, jobs: Sequence[Job] = ()
    ) -> None:
        """See the class."""
        self._model = model
        self._sampling = sampling
        self._prefill = Prefill(forward)
        self._plans: WeakKeyDictionary[Condition, _ConditionPlans] = WeakKeyDictionary()
        known = [self._plans_of(job.condition).prompt for job in jobs]
        self._heads = Heads(self._prefill, jobs, known)
        self._last: tuple[Any, Prefilled] | None = None

    def admit(self, wave: Sequence[Job], sampling: Sampling | None = None) -> Batch:
        """Prefill a wave of jobs, decide its gates, and make its rows ready to decode."""
        head = self._heads.of(wave[0].ids)
        prompts = sorted({job.ids for job in wave})
        source = {ids: i for i, ids in enumerate(prompts)}
        lowest = {min(p) for job in wave if (p := self._plans_of(job.condition).prompt)}
        base = self._base(prompts, head, lowest)
        gate_layers = {self._model.layer(g.layer) for j in wave for g in j.condition.gates}
        states = self._last_states(base, prompts, gate_layers)
        rows = [self._row(job, states, source[job.ids], sampling) for job in wave]

        # Rows that are first steered at the same layer are replayed together.
        rows.sort(key=lambda r: min(r.prompt_plans, default=-1))
        parts: list[list[Any]] = []
        for first in sorted({min(r.prompt_plans, default=-1) for r in rows}):
            group = [r for r in rows if min(r.prompt_plans, default=-1) == first]
            sources = [source[r.job.ids] for r in group]
            if first < 0:
                parts.append(base.rows(sources))
                continue
            start = self._heads.planned(head, [r.prompt_plans for r in group])
            rest = [r.job.ids[len(head) : -1] for r in group]
            plans = [r.prompt_plans for r in group]
            parts.append(self._prefill.replay(base, sources, plans, start, rest).caches)
        caches = join(parts)
        grow_by(caches, max(row.sampling.max_tokens for row in rows))
        return Batch(rows, caches, mx.array([r.job.ids[-1] for r in rows]))

    def _plans_of(self, condition: Condition) -> _ConditionPlans:
        if condition not in self._plans:
            prompt, thinking = (self._stage_plans(condition, s) for s in ("prompt", "thinking"))
            parts = condition.parts_response
            answer = self._stage_plans(condition, "answer") if parts else thinking
            self._plans[condition] = _ConditionPlans(prompt, thinking, answer)
        return self._plans[condition]

    def _stage_plans(self, condition: Condition, stage: Stage) -> LayerPlans:
        by_layer: dict[int, list[Intervention]] = {}
        for item in condition.interventions:
            if item.acts_on(stage):
                by_layer.setdefault(self._model.layer(item.layer), []).append(item)
        size, dtype = self._model.hidden_size, self._model.dtype
        return {layer: plan_of(items, size, dtype) for layer, items in sorted(by_layer.items())}

    def _row(
        self,
        job: Job,
        states: dict[int, NDArray[np.float64]],
        source: int,
        sampling: Sampling | None,
    ) -> Row:
        condition = job.condition
        scores = tuple(
            settled_gate_score(
                self._model.network,
                g,
                job.ids,
                float(states[self._model.layer(g.layer)][source] @ g.direction.astype(np.float64))
                - g.threshold,
            )
            for g in condition.gates
        )
        steered = not scores or gates_open(scores, condition.gate_join)
        plans = self._plans_of(condition) if steered else _NO_PLANS
        row = Row(job, sampling or self._sampling, plans.prompt, plans.answer, scores, steered)
        if steered and condition.parts_response and self._model.chat.thinks(job.ids):
            row.plans, row.answer_plans = plans.thinking, plans.answer
        return row

    def _base(self, prompts: list[tuple[int, ...]], head: Ids, keep: set[int]) -> Prefilled:
        key = (tuple(prompts), frozenset(keep))
        # A prompt with more conditions than the batch has rows comes in several waves.
        if self._last is None or self._last[0] != key:
            start = self._heads.base(head).rows([0] * len(prompts)) if head else None
            rest = [p[len(head) : -1] for p in prompts]
            self._last = (key, self._prefill.run(rest, keep, start=start))
        return self._last[1]

    def _last_states(
        self, base: Prefilled, prompts: Sequence[Ids], layers: set[int]
    ) -> dict[int, NDArray[np.float64]]:
        """Unsteered states of each prompt's last token, for gates: (prompts, hidden_size)."""
        if not layers:
            return {}
        copies = base.rows(range(len(prompts)))
        done = self._prefill.run([p[-1:] for p in prompts], layers, start=copies, top=-1)
        return {
            k: np.array(v[:, 0].astype(mx.float32)).astype(np.float64)
            for k, v in done.hidden.items()
        }
