"""Beginnings that prompts share (a template's opening, a system prompt), each run once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mlx_steer.engine.caches import join, take_rows
from mlx_steer.engine.forward import Ids
from mlx_steer.engine.jobs import Job
from mlx_steer.engine.limits import PREFILL_TOKENS, SHORTEST_HEAD
from mlx_steer.engine.prefill import LayerPlans, Prefill, Prefilled, common_head


class Heads:
    """The heads of known prompts in caches: unsteered, and under each condition's plans.

    Args:
        prefill: Runs them.
        jobs: All jobs to come, which decide what is shared.
        plans: For each of them, its plans for the prompt; the same object for the same condition.
    """

    def __init__(self, prefill: Prefill, jobs: Sequence[Job], plans: Sequence[LayerPlans]) -> None:
        """See the class."""
        self._prefill = prefill
        self._head_of = _shared_heads(jobs)
        self._base: dict[Ids, Prefilled] = {}
        # By head and lowest planned layer: the plans, and caches with a row for each of them.
        self._plans: dict[tuple[Ids, int], dict[int, LayerPlans]] = {}
        for job, own in zip(jobs, plans, strict=True):
            if own:
                key = self._head_of[job.ids], min(own)
                self._plans.setdefault(key, {})[id(own)] = own
        self._planned: dict[tuple[Ids, int], list[Any]] = {}

    def of(self, ids: Ids) -> Ids:
        """The tokens of a prompt that are run once for all that begin so; none if it is unknown."""
        return self._head_of.get(tuple(ids), ())

    def base(self, head: Ids) -> Prefilled:
        """A head, unsteered, in one row."""
        if head not in self._base:
            # All layers' states are kept: each may be some condition's lowest, and it is one row.
            layers = range(len(self._prefill.forward.sites))
            self._base[head] = self._prefill.run([head], layers)
        return self._base[head]

    def planned(self, head: Ids, plans: Sequence[LayerPlans]) -> list[Any]:
        """Caches of a head under each row's plans, whose lowest layers are the same."""
        if not head:
            return self._prefill.forward.fresh(len(plans))
        key = head, min(plans[0])
        known = self._plans[key]
        if key not in self._planned:
            base, every, parts = self.base(head), list(known.values()), []
            at_once = max(1, PREFILL_TOKENS // len(head))
            for i in range(0, len(every), at_once):
                some = every[i : i + at_once]
                start, rows = self._prefill.forward.fresh(len(some)), [0] * len(some)
                parts.append(self._prefill.replay(base, rows, some, start, [head] * len(some)))
            self._planned[key] = join([part.caches for part in parts])
        place = {name: i for i, name in enumerate(known)}
        rows = [place[id(own)] for own in plans]
        return [take_rows(cache, rows) for cache in self._planned[key]]


def _shared_heads(jobs: Sequence[Job]) -> Mapping[tuple[int, ...], Ids]:
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
