"""What holds of a network, found out once for each kind by trying it on a few tokens.

mlx-lm's models differ in what may be done with them: some read the padding of a batch, some have
caches that cannot be batched, some compute something else without caches. Nothing of that is known
here by name. Two short rows are run alone, as mlx-lm itself would run them, and then in each of the
engine's ways, the fastest first: under plans, replayed, joined, filtered, and with a step that is
taken back. The first way that gives the same is the network's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import wraps
from typing import ParamSpec

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from numpy.typing import NDArray

from mlx_steer.engine.caches import join, twin
from mlx_steer.engine.forward import Call, Forward, Ids, Plans
from mlx_steer.engine.prefill import Prefill, Prefilled, stack_plans
from mlx_steer.engine.row_plan import Plan, StagedPlan
from mlx_steer.engine.steering import Site, steerable
from mlx_steer.engine.structure import WHERE, cannot_be_run, kind_of, name_of, structure_of
from mlx_steer.engine.traits import Traits
from mlx_steer.errors import ModelError
from mlx_steer.model import load as unguarded
from mlx_steer.model.families import Together
from mlx_steer.model.load import Model

P = ParamSpec("P")
Logits = NDArray[np.float64]

# Two prompts with a common head and unlike ends, and the tokens that follow; small ids, which every
# vocabulary has.
_HEAD = (5, 9)
_ENDS = (4, 7, 6, 8), (3, 6)
_NEXT, _WRONG = 7, 4
# Windows up to here are looked beyond: those of real models are longer than a few tokens.
_SHORT_WINDOW = 32
# Of the logits' standard deviation: how far a row in a batch may be from the row alone.
_EXACT, _ROUNDED = 2e-3, 0.1

_found: dict[str, Traits] = {}


@contextmanager
def forward_of(network: nn.Module) -> Iterator[Forward]:
    """A network with steerable blocks, run as it may be run; undone after an exception too.

    Raises:
        ModelError: See `traits_of`.
    """
    traits = traits_of(network)
    with steerable(network) as sites:
        yield Forward(network, sites, traits)


def traits_of(network: nn.Module) -> Traits:
    """What holds of a network; some short calls of it, once for each kind of network.

    Raises:
        ModelError: If it cannot be steered, or gives in none of the engine's ways what it gives
            alone.
    """
    kind = kind_of(network)
    if kind not in _found:
        structure = structure_of(network)
        with steerable(network) as sites:
            try:
                trial = _Trial.begun(network, sites)
            except RuntimeError as error:
                raise cannot_be_run(network, error) from error
            may_replay = structure.plain and structure.aligned
            if np.isnan([*trial.planned, *trial.later]).any():
                # These weights overflow, alone too: who reads the hidden states says so.
                return Traits(skips=structure.plain, replays=may_replay)
            best = Traits(skips=structure.plain, replays=may_replay, uncached=trial.uncached())
            _found[kind] = _first_right(trial, best)
    return _found[kind]


def _guarded(load: Callable[P, Model]) -> Callable[P, Model]:
    @wraps(load)
    def loaded(*args: P.args, **kwargs: P.kwargs) -> Model:
        model = load(*args, **kwargs)
        traits_of(model.network)
        return model

    return loaded


load_model = _guarded(unguarded.load_model)
"""`model.load.load_model`, and a refusal of what the engine cannot run rightly."""


def _first_right(trial: _Trial, best: Traits) -> Traits:
    ways: tuple[Together, ...] = ("padded", "even", "single")
    for together in ways:
        traits = replace(best, together=together)
        found = trial.tried(traits)
        if found.base and not found.planned and traits.replays:
            traits = replace(traits, replays=False)
            found = trial.tried(traits)
        if found.planned and not found.later:
            traits = replace(traits, undoes=False)
            found = trial.tried(traits)
        if found.base and found.planned and found.later:
            return traits
    raise ModelError(
        f"rows of model type {name_of(trial.forward.network)!r} give, however they are run, "
        f"something else than mlx-lm gives for them alone; {WHERE}"
    )


@dataclass(frozen=True)
class _Found:
    """Whether rows were right: unsteered ones, steered ones, and all of them a step later."""

    base: bool = False
    planned: bool = False
    later: bool = False


@dataclass(frozen=True, eq=False)
class _Trial:
    """What the rows give alone, and the network to try other ways on.

    Attributes:
        forward: The network, a row at a time.
        rests: What follows the common head in the long prompt and in the short one.
        layer: The one that is steered.
        plans: Of the long row and of the short one.
        base: The long row's logits after its prompt, unsteered.
        planned: The same of both rows, steered.
        later: The same of both a token later.
    """

    forward: Forward
    rests: tuple[Ids, Ids]
    layer: int
    plans: tuple[Plan, Plan]
    base: Logits
    planned: tuple[Logits, Logits]
    later: tuple[Logits, Logits]

    @staticmethod
    def begun(network: nn.Module, sites: list[Site]) -> _Trial:
        """Run the rows alone, as mlx-lm would."""
        forward = Forward(network, sites, Traits("single", skips=False, replays=False))
        layer, rests = len(sites) // 2, _rests(forward)
        caches = forward.fresh(1)
        longest = [*_HEAD, *rests[0]]
        hidden = forward.read([longest[:-1]], caches, Call(keep=[layer])).hidden[layer]
        base = _after(forward, caches, longest[-1], {})
        size = float(np.linalg.norm(_read(hidden), axis=-1).mean())
        plans = _random_plan(1, size, hidden), _random_plan(2, size, hidden)
        planned, later = [], []
        for rest, plan in zip(rests, plans, strict=True):
            caches = forward.fresh(1)
            forward.read([[*_HEAD, *rest[:-1]]], caches, Call({layer: plan}))
            planned.append(_after(forward, caches, rest[-1], {layer: plan}))
            later.append(_after(forward, caches, _NEXT, {layer: plan}))
        first, second = (planned[0], planned[1]), (later[0], later[1])
        return _Trial(forward, rests, layer, plans, base, first, second)

    def uncached(self) -> bool:
        """Whether a call without caches gives the same."""
        forward = Forward(self.forward.network, self.forward.sites, Traits(uncached=True))
        for rest, plan, wanted in zip(self.rests, self.plans, self.planned, strict=True):
            staged = {self.layer: StagedPlan([(0, plan)])}
            try:
                ids = [*_HEAD, *rest]
                logits = forward.alone(ids, len(ids) - 1, staged).logits[:, -1]
                if not self._same(_read(logits)[0], wanted):
                    return False
            except Exception:  # whatever mlx-lm raises: it does not hold
                return False
        return True

    def tried(self, traits: Traits) -> _Found:
        """Run the rows together: the long one unsteered, the short one and the long one steered."""
        forward = Forward(self.forward.network, self.forward.sites, traits)
        prefill, (long, short) = Prefill(forward), self.rests
        found = _Found()
        try:
            head = prefill.run([_HEAD], [self.layer])
            base = prefill.run([long[:-1], short[:-1]], [self.layer], start=head.rows([0, 0]))
            logits = _read(forward.step(mx.array([long[-1], short[-1]]), base.rows([0, 1]), {}))
            found = _Found(base=self._same(logits[0], self.base))
            if found.base:
                found = self._steered(prefill, head, base)
        except Exception:  # whatever mlx-lm raises: it does not hold
            return found
        return found

    def _steered(self, prefill: Prefill, head: Prefilled, base: Prefilled) -> _Found:
        forward, (long, short) = prefill.forward, self.rests
        each = [{self.layer: self.plans[1]}, {self.layer: self.plans[0]}]
        start = prefill.replay(head, [0, 0], each, forward.fresh(2), [_HEAD, _HEAD]).caches
        replayed = prefill.replay(base, [1, 0], each, start, [short[:-1], long[:-1]])
        caches = join([base.rows([0]), replayed.caches])
        plans = {self.layer: stack_plans([{}, *each], self.layer)}
        logits = _read(forward.step(mx.array([long[-1], short[-1], long[-1]]), caches, plans))
        wanted = (self.base, self.planned[1], self.planned[0])
        found = _Found(True, all(map(self._same, logits, wanted)))
        if found.planned and forward.traits.undoes:
            before = twin(caches)
            _read(forward.step(mx.array([_WRONG] * 3), caches, plans))
            caches = before
        if found.planned:
            for cache in caches:
                cache.filter([1, 2])
            plans = {self.layer: plans[self.layer].rows([1, 2])}
            logits = _read(forward.step(mx.array([_NEXT, _NEXT]), caches, plans))
            wanted_later = (self.later[1], self.later[0])
            found = replace(found, later=all(map(self._same, logits, wanted_later)))
        return found

    def _same(self, found: Logits, wanted: Logits) -> bool:
        known = np.isfinite(wanted)  # some networks give tokens that must not come minus infinity
        if not np.array_equal(np.isfinite(found), known):
            return False
        exact = self.plans[0].shift.dtype == mx.float32
        error = float(np.sqrt(np.mean((found[known] - wanted[known]) ** 2)))
        return error <= (_EXACT if exact else _ROUNDED) * float(wanted[known].std())


def _rests(forward: Forward) -> tuple[Ids, Ids]:
    """Both prompts after their head, past the end of a short window."""
    windows = [
        getattr(row, name)
        for cache in forward.fresh(1)
        for row in cache.rows
        for name in ("max_size", "chunk_size")
        if isinstance(getattr(row, name, None), int)
    ]
    past = max((w for w in windows if w <= _SHORT_WINDOW), default=0)
    filler = [2 + 7 * i % 11 for i in range(past)]
    return [*filler, *_ENDS[0]], [*filler, *_ENDS[1]]


def _random_plan(seed: int, size: float, hidden: mx.array) -> Plan:
    """A vector as long as the hidden state."""
    direction = mx.random.normal((1, 1, hidden.shape[-1]), key=mx.random.key(seed))
    return Plan((size * direction / mx.linalg.norm(direction)).astype(hidden.dtype))


def _after(forward: Forward, caches: list[object], token: int, plans: Plans) -> Logits:
    found: Logits = _read(forward.step(mx.array([token]), caches, plans))[0]
    return found


def _read(logits: mx.array) -> Logits:
    return np.array(logits.astype(mx.float32)).astype(np.float64)
