"""Admission: prompts prefilled, gates decided, rows made ready to decode."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mlx_steer.conditions import Condition
from mlx_steer.engine.batch import Batch, Row
from mlx_steer.engine.caches import grow_by, join
from mlx_steer.engine.condition_plans import ConditionPlans, gate_scores, new_row, plans_of
from mlx_steer.engine.forward import Forward, Ids
from mlx_steer.engine.jobs import Job, Sampling
from mlx_steer.engine.prefill import Prefill, Prefilled
from mlx_steer.engine.shared_heads import Heads
from mlx_steer.model.load import Model


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
        self._plans: WeakKeyDictionary[Condition, ConditionPlans] = WeakKeyDictionary()
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

    def _plans_of(self, condition: Condition) -> ConditionPlans:
        if condition not in self._plans:
            self._plans[condition] = plans_of(self._model, condition)
        return self._plans[condition]

    def _row(
        self,
        job: Job,
        states: dict[int, NDArray[np.float64]],
        source: int,
        sampling: Sampling | None,
    ) -> Row:
        own = {layer: every[source] for layer, every in states.items()}
        scores = gate_scores(self._model, job, own)
        plans = self._plans_of(job.condition)
        return new_row(self._model, job, sampling or self._sampling, plans, scores)

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
