"""The checks: each measures one difference and says how large it may be."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from numpy.typing import NDArray

from mlx_steer.blas import openblas_status
from mlx_steer.conditions import Condition, Intervention
from mlx_steer.engine.capture import response_states
from mlx_steer.engine.complete import complete
from mlx_steer.engine.jobs import Job, Sampling
from mlx_steer.engine.operators import plan_of
from mlx_steer.engine.row_plan import Plan
from mlx_steer.engine.steered import steered
from mlx_steer.engine.steering import SteerableLayer, steerable
from mlx_steer.errors import SteerError
from mlx_steer.model.load import Model, decoder_layers

Status = Literal["pass", "fail", "warn", "skip"]
Float64 = NDArray[np.float64]

# Largest root mean square of a difference over the standard deviation of what is compared: some ten
# times what the order of sums does (float32), or what rounding in every layer does (bfloat16: 0.03
# to 0.04 against float32 on a 30-layer model). A row under a wrong plan is near 1.
_TOLERANCE = {"float32": 1e-4, "float16": 0.02, "bfloat16": 0.1}
_SIGNIFICANT_BITS = {"float32": 24, "float16": 11, "bfloat16": 8}
# Rounding in every layer moves a logit by a few spacings: tokens closer than this may trade places.
_SPACINGS = 8.0
# Full float32 products err by 3e-7; those of reduced precision by 3e-4 and more.
_FLOAT32_ERROR = 1e-5

_PROMPTS = (
    "What is the capital of France?",
    "How do I bake a loaf of bread at home?",
    "Write a short poem about the sea.",
)
_RESPONSES = ("I cannot help with that.", "Sure, here is how you can do it.")
_NEW_TOKENS = 10


@dataclass(frozen=True)
class Check:
    """One thing that must hold.

    Attributes:
        name: What holds.
        subject: The model it was checked on, or "machine".
        status: `pass`, `fail`, `warn` (works, but slowly) or `skip` (does not apply).
        measured: The number that was compared with the limit, if there is one.
        limit: See `measured`.
        detail: In words.
    """

    name: str
    subject: str
    status: Status
    measured: float | None = None
    limit: float | None = None
    detail: str = ""


def machine_checks() -> Iterator[Check]:
    """What does not depend on a model."""
    blas = openblas_status()
    yield Check(
        "BLAS",
        "machine",
        "pass" if blas.ok else "warn",
        detail=blas.state if blas.ok else blas.detail,
    )
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 256, 256)).astype(np.float32)
    exact = a.astype(np.float64) @ b.astype(np.float64)
    error = _relative(np.array(mx.array(a) @ mx.array(b)), exact)
    fine = error <= _FLOAT32_ERROR
    detail = "" if fine else _why_rounded()
    yield Check(
        "float32 precision", "machine", "pass" if fine else "fail", error, _FLOAT32_ERROR, detail
    )


def _why_rounded() -> str:
    setting = os.environ.get("MLX_ENABLE_TF32")
    if setting != "0":
        return f"float32 products are rounded, for MLX_ENABLE_TF32 is {setting!r}; set it to 0"
    return (
        "float32 products are rounded, for MLX multiplied before mlx_steer was imported; import "
        "mlx_steer first, or start with MLX_ENABLE_TF32=0"
    )


def model_checks(model: Model) -> Iterator[Check]:
    """Everything steering rests on, for one model."""
    try:
        examination = _Examination(model)
    except Exception as error:  # nothing else can be checked on a model that does not run
        yield _failed("a plain pass", model, error)
        return
    for name, check in examination.all().items():
        try:
            yield check(name)
        except Exception as error:  # what a bug report is for
            yield _failed(name, model, error)


def _failed(name: str, model: Model, error: Exception) -> Check:
    reason = " ".join(str(error).split())[:200]
    kind = "" if isinstance(error, SteerError) else f"{type(error).__name__}: "
    return Check(name, model.info.id, "fail", detail=f"{kind}{reason}")


class _Examination:
    """One model, a few prompts and a random vector as long as a usual hidden state."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.network = model.network
        self.layer = model.num_layers // 2
        self.name = str(model.dtype).removeprefix("mlx.core.")
        self.limit = _TOLERANCE[self.name]
        self.bits = _SIGNIFICANT_BITS[self.name]
        self.ids = [tuple(model.chat.prompt_ids(text)) for text in _PROMPTS]
        self.parameters = _parameter_names(self.network)
        self.classes = [type(block) for block in decoder_layers(self.network)]
        self.base = self.logits(self.ids[0])
        seen: list[mx.array] = []
        with steerable(self.network, [self.layer]) as sites:
            sites[0].record = seen.append
            self.logits(self.ids[0])
            sites[0].record = None
        # The first token's state can be a hundred times longer than all others: the median.
        norm = np.median(np.linalg.norm(_array(seen[0][0]), axis=-1))
        draw = np.random.default_rng(1).standard_normal(model.hidden_size)
        self.vector = (norm * draw / np.linalg.norm(draw)).astype(np.float32)

    def all(self) -> dict[str, Callable[[str], Check]]:
        """The checks in order; the last two look at what the others left behind."""
        return {
            "strength 0 is base": self.strength_0,
            "strength 1 changes logits": self.strength_1,
            "hidden states keep their dtype": self.dtypes,
            "batched logits equal solo": self.batched_logits,
            "batched tokens equal solo": self.batched_tokens,
            "cached equals uncached": self.cached,
            "capture equals a plain pass": self.capture,
            "undo restores the logits": self.undo,
            "parameter names unchanged": self.names,
        }

    def logits(self, ids: Sequence[int]) -> Float64:
        """Of one plain, uncached pass: (tokens, vocabulary)."""
        return _array(self.network(mx.array(list(ids))[None])[0])

    def strength_0(self, name: str) -> Check:
        with steered(self.model, self.vector, layer=self.layer, strength=0.0):
            off = self.logits(self.ids[0])
        nothing = Plan(mx.zeros((1, 1, self.model.hidden_size), self.model.dtype))
        with steerable(self.network) as sites:
            # What base rows carry in a batch with steered ones.
            for site in sites:
                site.plan = nothing
            zero = self.logits(self.ids[0])
        worst = max(float(np.abs(x - self.base).max()) for x in (off, zero))
        return self._check(name, worst, 0.0, "largest difference of a logit")

    def strength_1(self, name: str) -> Check:
        with steered(self.model, self.vector, layer=self.layer, strength=1.0):
            on = self.logits(self.ids[0])
        change, least = _relative(on, self.base), 2 * self.limit
        detail = f"relative change at layer {self.layer}; at least the limit"
        status: Status = "pass" if change >= least and np.isfinite(on).all() else "fail"
        return Check(name, self.model.info.id, status, change, least, detail)

    def dtypes(self, name: str) -> Check:
        ids = mx.array(list(self.ids[0]))[None]
        before = self.network(ids).dtype
        found: dict[int, mx.Dtype] = {}
        every = range(self.model.num_layers)
        with steerable(self.network) as sites:
            for layer, site in enumerate(sites):
                site.record = _DtypeOf(found, layer)
            # A float32 vector at every layer: none may lift the stream to float32.
            with steered(self.model, self.vector, layer=every, strength=0.01):
                after = self.network(ids).dtype
            for site in sites:
                site.record = None
        wrong = [k for k in every if found.get(k) != self.model.dtype]
        detail = f"layers not in {self.name}"
        if after != before:
            wrong.append(self.model.num_layers)
            detail = f"logits turn from {before} to {after}"
        return self._check(name, float(len(wrong)), 0.0, detail)

    def batched_logits(self, name: str) -> Check:
        shortest = min(map(len, self.ids))
        rows = [ids[-shortest:] for ids in self.ids]
        strengths = [0.0, 0.5, -0.5]
        solo = []
        for ids, strength in zip(rows, strengths, strict=True):
            with steered(self.model, self.vector, layer=self.layer, strength=strength):
                solo.append(self.logits(ids))
        plans = [
            plan_of(
                [Intervention(self.layer, self.vector, strength)],
                self.model.hidden_size,
                self.model.dtype,
            )
            for strength in strengths
        ]
        with steerable(self.network, [self.layer]) as sites:
            sites[0].plan = Plan.stack(plans)
            batch = _array(self.network(mx.array([list(ids) for ids in rows])))
            sites[0].plan = None
        worst = max(_relative(a, b) for a, b in zip(batch, solo, strict=True))
        return self._check(name, worst, self.limit, "relative, three rows under three strengths")

    def batched_tokens(self, name: str) -> Check:
        lower = self.layer - 1 if self.layer else 0
        conditions = [
            Condition("base"),
            Condition("half", None, (Intervention(self.layer, self.vector, 0.5),)),
            Condition("lower", None, (Intervention(lower, self.vector, -0.5),)),
        ]
        jobs = [Job(f"{i} {c.name}", x, c) for i, x in enumerate(self.ids) for c in conditions]
        sampling = Sampling(_NEW_TOKENS)
        together = complete(self.model, jobs, sampling, len(jobs))
        parted, worst = 0, 0.0
        for job, done in zip(jobs, together, strict=True):
            alone = complete(self.model, [job], sampling, 1)[0]
            step = _first_difference(done.tokens, alone.tokens)
            if step is not None:
                parted += 1
                worst = max(worst, self._margin(job, step, done.tokens, alone.tokens))
        if self.model.exact:
            return self._check(name, float(parted), 0.0, f"of {len(jobs)} rows differ")
        detail = f"margin where {parted} of {len(jobs)} rows part, in spacings of the logits"
        return self._check(name, worst, _SPACINGS, detail)

    def cached(self, name: str) -> Check:
        from mlx_lm.models.cache import make_prompt_cache

        ids = self.ids[1]
        first = len(ids) // 2
        with steered(self.model, self.vector, layer=self.layer, strength=0.5):
            whole = self.logits(ids)[first - 1 :]
            cache = make_prompt_cache(self.network)
            pieces = [ids[:first], *([token] for token in ids[first : first + _NEW_TOKENS])]
            steps = [
                _array(self.network(mx.array(list(piece))[None], cache=cache)[0, -1])
                for piece in pieces
            ]
        measured = _relative(np.stack(steps), whole[: len(steps)])
        return self._check(name, measured, self.limit, f"relative, {len(steps)} steps")

    def capture(self, name: str) -> Check:
        responses = [
            [tuple(self.model.chat.response_ids(text)) for text in _RESPONSES] for _ in self.ids
        ]
        layers = sorted({0, self.layer, self.model.num_layers - 1})
        states = response_states(self.model, self.ids, responses, layers)
        worst = 0.0
        for i, prompt in enumerate(self.ids):
            for j, response in enumerate(responses[i]):
                with _watched(self.network) as seen:
                    self.logits([*prompt, *response])
                if not seen:
                    detail = "the model's blocks cannot be watched from outside"
                    return Check(name, self.model.info.id, "skip", detail=detail)
                for layer in layers:
                    plain = seen[layer][len(prompt) :]
                    worst = max(worst, _relative(states[i][j][layer], plain))
        detail = f"relative, layers {', '.join(map(str, layers))}"
        return self._check(name, worst, self.limit, detail)

    def undo(self, name: str) -> Check:
        try:
            with steered(self.model, self.vector, layer=self.layer):
                raise InterruptedError
        except InterruptedError:
            pass
        worst = float(np.abs(self.logits(self.ids[0]) - self.base).max())
        blocks = decoder_layers(self.network)
        left = [b for b in blocks if isinstance(b, SteerableLayer) or hasattr(b, "_site")]
        if left or [type(block) for block in blocks] != self.classes:
            detail = f"{len(left)} blocks are still steerable"
            return Check(name, self.model.info.id, "fail", worst, 0.0, detail)
        return self._check(name, worst, 0.0, "largest difference of a logit")

    def names(self, name: str) -> Check:
        with steered(self.model, self.vector, layer=range(self.model.num_layers)):
            inside = _parameter_names(self.network)
        after = _parameter_names(self.network)
        changed = float(len(inside ^ self.parameters) + len(after ^ self.parameters))
        return self._check(name, changed, 0.0, f"of {len(self.parameters)} names changed")

    def _check(self, name: str, measured: float, limit: float, detail: str) -> Check:
        # A nan is a failure, too.
        status: Status = "pass" if measured <= limit else "fail"
        return Check(name, self.model.info.id, status, measured, limit, detail)

    def _margin(self, job: Job, step: int, a: Sequence[int], b: Sequence[int]) -> float:
        """How far apart the tokens are by which two responses part, in spacings of the logits."""
        with steered(self.model, job.condition.interventions):
            last = self.logits([*job.ids, *a[:step]])[-1]
        # A response that is over took the best of the tokens that end it.
        ends = max(last[list(self.model.chat.stop_ids)], default=-math.inf)
        x, y = (float(last[side[step]]) if step < len(side) else float(ends) for side in (a, b))
        spacing = 2.0 ** (math.floor(math.log2(max(abs(x), abs(y), 1e-6))) + 1 - self.bits)
        return abs(x - y) / spacing


class _DtypeOf:
    def __init__(self, into: dict[int, mx.Dtype], layer: int) -> None:
        self.into = into
        self.layer = layer

    def __call__(self, hidden: mx.array) -> None:
        self.into[self.layer] = hidden.dtype


class _Watcher:
    """Stands in for a block and notes its output: another way to see it than steering's own."""

    def __init__(self, block: nn.Module, into: dict[int, Float64], layer: int) -> None:
        self._block, self._into, self._layer = block, into, layer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._block, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        out = self._block(*args, **kwargs)
        hidden = out[0] if isinstance(out, tuple) else out
        self._into[self._layer] = _array(hidden[0])
        return out


@contextmanager
def _watched(network: nn.Module) -> Iterator[dict[int, Float64]]:
    """Hidden states of one-row passes, by layer: (tokens, hidden_size)."""
    blocks, seen = _held_blocks(network), dict[int, Float64]()
    before = list(blocks)
    try:
        blocks[:] = [_Watcher(b, seen, i) for i, b in enumerate(before)]  # type: ignore
        yield seen
    finally:
        blocks[:] = before


def _held_blocks(network: nn.Module) -> list[nn.Module]:
    """The very list that the network runs; its `layers` may be a copy."""
    first = decoder_layers(network)[0]
    for module in network.modules():  # type: ignore[no-untyped-call]
        for value in module.values():
            if isinstance(value, list) and value and value[0] is first:
                return value
    return []


def _array(values: mx.array) -> Float64:
    return np.array(values.astype(mx.float32)).astype(np.float64)


def _relative(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """Root mean square of the difference over the standard deviation of what is expected."""
    wanted = expected.astype(np.float64)
    difference = found.astype(np.float64) - wanted
    return float(np.sqrt(np.mean(difference**2)) / max(float(wanted.std()), 1e-12))


def _first_difference(a: Sequence[int], b: Sequence[int]) -> int | None:
    if tuple(a) == tuple(b):
        return None
    pairs = zip(a, b, strict=False)
    return next((i for i, (x, y) in enumerate(pairs) if x != y), min(len(a), len(b)))


def _parameter_names(network: nn.Module) -> frozenset[str]:
    from mlx.utils import tree_flatten

    leaves: list[tuple[str, mx.array]] = tree_flatten(network.parameters())  # type: ignore
    return frozenset(name for name, _ in leaves)
