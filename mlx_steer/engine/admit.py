"""Admission: prompts prefilled, gates decided, rows made ready to decode."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mlx_steer.conditions import Condition, Intervention, gates_open
from mlx_steer.engine.decode import Batch, Row
from mlx_steer.engine.jobs import Job
from mlx_steer.engine.limits import PREFILL_TOKENS, SHORTEST_HEAD
from mlx_steer.engine.planned_cache import PlannedCache
from mlx_steer.engine.prefill import (
    Ids,
    LayerPlans,
    Prefill,
    Prefilled,
    common_head,
    grow_by,
    join,
    stack_plans,
    take_rows,
)
from mlx_steer.engine.row_plan import Plan, plan_of
from mlx_steer.engine.steered import settled_gate_score
from mlx_steer.engine.steering import Site
from mlx_steer.model.load import Model
from mlx_steer.words import Stage

_NO_PLANS: dict[Stage, LayerPlans] = {"prompt": {}, "thinking": {}, "answer": {}}


class Admission:
    """Turns waves of jobs into batches that are ready to decode.

    Args:
        model: The model.
        sites: The sites of all its blocks.
        jobs: All jobs to come: they decide which layers carry plans and which heads are shared.
        max_tokens: What will be decoded at most: the caches grow by so much at a time.
    """

    def __init__(
        self, model: Model, sites: Sequence[Site], jobs: Sequence[Job], max_tokens: int
    ) -> None:
        """See the class."""
        self._model = model
        self._max_tokens = max_tokens
        self._prefill = Prefill(model.network, sites)
        self._plans = {id(job.condition): self._make_plans(job.condition) for job in jobs}
        # Every row carries a plan at every layer that any row steers while decoding.
        self._layers = sorted(
            {k for p in self._plans.values() for k in (*p["thinking"], *p["answer"])}
        )
        self._head_of = _shared_heads(jobs)
        self._heads: dict[Ids, Prefilled] = {}
        # By head and lowest planned layer: the plans, and caches with a row for each of them.
        self._head_plans: dict[tuple[Ids, int], dict[int, LayerPlans]] = {}
        for job in jobs:
            if plans := self._plans[id(job.condition)]["prompt"]:
                key = self._head_of[job.ids], min(plans)
                self._head_plans.setdefault(key, {})[id(plans)] = plans
        self._planned_heads: dict[tuple[Ids, int], list[Any]] = {}
        self._last: tuple[Any, Prefilled] | None = None

    def admit(self, wave: Sequence[Job]) -> Batch:
        """Prefill a wave of jobs, decide its gates, and make its rows ready to decode."""
        head = self._head_of[wave[0].ids]
        prompts = sorted({job.ids for job in wave})
        source = {ids: i for i, ids in enumerate(prompts)}
        lowest = {min(p) for job in wave if (p := self._plans[id(job.condition)]["prompt"])}
        base = self._base(prompts, head, lowest)
        gate_layers = {self._model.layer(g.layer) for j in wave for g in j.condition.gates}
        states = self._last_states(base, prompts, gate_layers)
        rows = [self._row(job, states, source[job.ids]) for job in wave]

        # Rows that are first steered at the same layer are replayed together.
        rows.sort(key=lambda r: min(r.prompt_plans, default=-1))
        parts: list[list[Any]] = []
        for first in sorted({min(r.prompt_plans, default=-1) for r in rows}):
            group = [r for r in rows if min(r.prompt_plans, default=-1) == first]
            sources = [source[r.job.ids] for r in group]
            if first < 0:
                parts.append(base.rows(sources))
                continue
            start = self._planned_rows(head, [r.prompt_plans for r in group])
            rest = [r.job.ids[len(head) : -1] for r in group]
            plans = [r.prompt_plans for r in group]
            parts.append(self._prefill.replay(base, sources, plans, start, rest).caches)
        caches = join(parts)
        grow_by(caches, self._max_tokens)
        for layer in self._layers:
            plan = stack_plans([r.plans for r in rows], layer, self._no_plan)
            caches[layer] = PlannedCache(caches[layer], plan)
        return Batch(rows, caches, mx.array([r.job.ids[-1] for r in rows]))

    @property
    def _no_plan(self) -> Plan:
        return Plan(mx.zeros((1, 1, self._model.hidden_size), self._model.dtype))

    def _make_plans(self, condition: Condition) -> dict[Stage, LayerPlans]:
        prompt, thinking = (self._stage_plans(condition, s) for s in ("prompt", "thinking"))
        parts = condition.parts_response
        answer = self._stage_plans(condition, "answer") if parts else thinking
        return {"prompt": prompt, "thinking": thinking, "answer": answer}

    def _stage_plans(self, condition: Condition, stage: Stage) -> LayerPlans:
        by_layer: dict[int, list[Intervention]] = {}
        for item in condition.interventions:
            if item.acts_on(stage):
                by_layer.setdefault(self._model.layer(item.layer), []).append(item)
        size, dtype = self._model.hidden_size, self._model.dtype
        return {layer: plan_of(items, size, dtype) for layer, items in sorted(by_layer.items())}

    def _row(self, job: Job, states: dict[int, NDArray[np.float64]], source: int) -> Row:
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
        plans = self._plans[id(condition)] if steered else _NO_PLANS
        row = Row(job, plans["prompt"], plans["answer"], scores, steered)
        if steered and condition.parts_response and self._model.chat.thinks(job.ids):
            row.plans, row.answer_plans = plans["thinking"], plans["answer"]
        return row

    def _base(self, prompts: list[tuple[int, ...]], head: Ids, keep: set[int]) -> Prefilled:
        key = (tuple(prompts), frozenset(keep))
        # A prompt with more conditions than the batch has rows comes in several waves.
        if self._last is None or self._last[0] != key:
            start = self._base_head(head).rows([0] * len(prompts)) if head else None
            rest = [p[len(head) : -1] for p in prompts]
            self._last = (key, self._prefill.run(rest, keep, start=start))
        return self._last[1]

    def _base_head(self, head: Ids) -> Prefilled:
        if head not in self._heads:
            # All layers' states are kept: each may be some condition's lowest, and it is one row.
            self._heads[head] = self._prefill.run([head], range(self._model.num_layers))
        return self._heads[head]

    def _planned_rows(self, head: Ids, plans: Sequence[LayerPlans]) -> list[Any]:
        """Caches of the head under each row's plans, whose lowest layers are the same."""
        if not head:
            return self._prefill.fresh(len(plans))
        key = head, min(plans[0])
        known = self._head_plans[key]
        if key not in self._planned_heads:
            base, every, parts = self._base_head(head), list(known.values()), []
            at_once = max(1, PREFILL_TOKENS // len(head))
            for i in range(0, len(every), at_once):
                some = every[i : i + at_once]
                start, rows = self._prefill.fresh(len(some)), [0] * len(some)
                parts.append(self._prefill.replay(base, rows, some, start, [head] * len(some)))
            self._planned_heads[key] = join([part.caches for part in parts])
        place = {name: i for i, name in enumerate(known)}
        rows = [place[id(p)] for p in plans]
        return [take_rows(cache, rows) for cache in self._planned_heads[key]]

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


def _shared_heads(jobs: Sequence[Job]) -> dict[tuple[int, ...], Ids]:
    """For each prompt, the tokens that all prompts with the same system prompt begin with."""
    groups: dict[str, set[tuple[int, ...]]] = {}
    for job in jobs:
        groups.setdefault(job.condition.system_prompt or "", set()).add(job.ids)
    heads: dict[tuple[int, ...], Ids] = {}
    for prompts in groups.values():
        shared = common_head(list(prompts)) if len(prompts) > 1 else 0
        for ids in prompts:
            heads.setdefault(ids, ids[: shared if shared >= SHORTEST_HEAD else 0])
    return heads
