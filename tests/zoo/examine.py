"""One model type tried in everything the package does with a model, against `plain.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from importlib import import_module
from typing import Any
from zlib import crc32

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

from mlx_steer.behaviors import load_behavior
from mlx_steer.conditions import Condition, Float32, Gate, Intervention
from mlx_steer.engine.capture import prompt_states, response_states
from mlx_steer.engine.complete import complete
from mlx_steer.engine.guard import traits_of
from mlx_steer.engine.jobs import Job, Sampling
from mlx_steer.engine.perplexity import Answer, perplexities, units
from mlx_steer.engine.screening import screen
from mlx_steer.engine.steered import steered
from mlx_steer.errors import ModelError
from mlx_steer.extraction.gates import gate_scores
from mlx_steer.extraction.pairs import extract
from mlx_steer.model.families import HIDDEN_SIZE
from mlx_steer.model.load import Model
from mlx_steer.vectors import ModelInfo
from tests.helpers.tiny import tiny_chat
from tests.zoo.configs import config_of
from tests.zoo.plain import Plain

TOKENS = 6
SAMPLING = Sampling(TOKENS)
_GAIN = 1.3


@dataclass(frozen=True)
class Examined:
    """What came of a model type.

    Attributes:
        type: mlx-lm's model type.
        refused: Why it is refused; None if it is not.
        traits: See `Traits`.
        wrong: What went wrong, by check; empty if all is right.
    """

    type: str
    refused: str | None = None
    traits: dict[str, Any] = field(default_factory=dict)
    wrong: dict[str, str] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """For the page of families."""
        if self.refused:
            return "refused"
        if self.wrong:
            return "wrong: " + ", ".join(self.wrong)
        if self.traits["together"] == "single":
            return "right, one row at a time"
        if self.traits["together"] == "even":
            return "right, prompts of one length at a time"
        return "right" if self.traits["replays"] else "right, each prompt run whole when steered"


def network_of(model_type: str) -> nn.Module:
    """A small random network of a type, float32, no part of it idle."""
    module = import_module(f"mlx_lm.models.{model_type}")
    network: nn.Module = module.Model(module.ModelArgs.from_dict(config_of(model_type)))
    network.set_dtype(mx.float32)
    drawn = [(n, _weight(n, v)) for n, v in tree_flatten(network.parameters())]
    network.update(tree_unflatten(drawn))
    network.eval()
    mx.eval(network.parameters())
    return network


def _weight(name: str, value: mx.array) -> mx.array:
    if not mx.issubdtype(value.dtype, mx.floating):
        return value
    rng = np.random.default_rng([3, crc32(name.encode())])
    drawn = rng.standard_normal(value.shape)
    if "norm" in name and value.ndim == 1:
        drawn = 1.0 + 0.2 * drawn
    elif value.ndim < 2:  # biases, decays, step sizes: where the network puts them, or near
        drawn = np.array(value) + 0.1 * drawn
    else:
        drawn *= _GAIN / np.sqrt(value.shape[-1])
    if any(part in name for part in ("embed", "wte", "lm_head")) and value.ndim == 2:
        drawn *= 4.0
    return mx.array(drawn.astype(np.float32))


def model_of(model_type: str, network: nn.Module) -> Model:
    """A network as a `Model`, with the tokenizer of the tiny models."""
    config = config_of(model_type)
    text = config.get("text_config", config)
    size = next(text[key] for key in HIDDEN_SIZE if key in text)
    info = ModelInfo(
        id=f"zoo/{model_type}",
        revision=None,
        model_type=model_type,
        quantization=None,
        fingerprint="0" * 64,
    )
    return Model(network, tiny_chat(), info, size, mx.float32, None, config)


def examine(model_type: str) -> Examined:
    """Try a model type in everything."""
    network = network_of(model_type)
    try:
        traits = traits_of(network)
    except ModelError as error:
        return Examined(model_type, refused=str(error))
    case = Case(model_of(model_type, network))
    wrong: dict[str, str] = {}
    checks: list[Callable[[], None]] = [
        case.steered_calls,
        case.rows_of_a_batch,
        case.captures,
        case.extraction,
        case.gates,
        case.screening,
        case.perplexity,
    ]
    for check in checks:
        try:
            check()
        except Exception as error:
            wrong[check.__name__] = f"{type(error).__name__}: {str(error)[:200]}"
    return Examined(model_type, traits=asdict(traits), wrong=wrong)


class Case:
    """A model, prompts and conditions."""

    def __init__(self, model: Model) -> None:
        stream = getattr(model.network.layers[0], "config", None)
        active = getattr(stream, "altup_active_idx", None)
        self.model = model
        self.plain = Plain(model.network, active)
        self.layers = model.num_layers
        rng = np.random.default_rng(1)
        head = tuple(rng.integers(10, 300, 9).tolist())
        self.prompts = [head + tuple(rng.integers(10, 300, n).tolist()) for n in (2, 5, 3, 9)]
        self.prompts.append(tuple(rng.integers(10, 300, 4).tolist()))
        seen = self.plain.read(self.prompts[0], []).hidden
        self.sizes = {k: float(np.linalg.norm(v, axis=-1).mean()) for k, v in seen.items()}

    def vector(self, layer: int, seed: int) -> Float32:
        """As long as the hidden states of the layer."""
        drawn = np.random.default_rng([9, seed]).standard_normal(self.model.hidden_size)
        return (self.sizes[layer] * drawn / np.linalg.norm(drawn)).astype(np.float32)

    def conditions(self) -> list[Condition]:
        """Of every kind."""
        act, low, high = Intervention, 1, self.layers - 2
        a, b = self.vector(low, 1), self.vector(high, 2)
        effects: dict[str, tuple[Intervention, ...]] = {
            "base": (),
            "first": (act(0, self.vector(0, 3), 1.0),),
            "low": (act(low, a, 1.0),),
            "high": (act(high, b, -1.0),),
            "last": (act(self.layers - 1, self.vector(self.layers - 1, 4), 1.0),),
            "both": (act(low, a, 0.5), act(high, b, 0.5)),
            "prompt": (act(low, a, 1.5, scope="prompt"),),
            "generated": (act(low, a, 1.5, scope="generated"),),
            "ablate": (act(low, a, 1.0, "ablate"),),
            "clamp": (act(high, b, self.sizes[high], "clamp"),),
        }
        return [Condition(name, None, acts) for name, acts in effects.items()]

    def steered_calls(self) -> None:
        """`with steered` is what a wrapper around the block does, with caches and without."""
        from mlx_lm.generate import generate_step

        acts = (Intervention(1, self.vector(1, 1), 1.0),)
        network, ids = self.model.network, self.prompts[3]
        with steered(network, acts):
            found = np.array(network(mx.array([ids])))[0]
            made = [int(t) for t, _ in generate_step(mx.array(ids), network, max_tokens=TOKENS)]
        _near(found, self.plain.call(ids, acts), "a call")
        expected, margin = self.plain.greedy(ids, acts, TOKENS, ())
        assert made == expected or margin < 1e-4, f"generated {made}, not {expected}"
        base = self.plain.call(ids, ())
        assert not np.allclose(found, base, atol=1e-2), "steering does nothing"
        _near(np.array(network(mx.array([ids])))[0], base, "a call afterwards")

    def rows_of_a_batch(self) -> None:
        """Rows under all conditions, in batches of several sizes, are those of plain loops."""
        stops = self.model.chat.stop_ids
        jobs = [
            Job(f"{c.name} {i}", ids, c)
            for k, c in enumerate(self.conditions())
            for i, ids in enumerate(self.prompts)
            if (i + k) % 2
        ]
        expected = {
            j.key: self.plain.greedy(j.ids, j.condition.interventions, TOKENS, stops) for j in jobs
        }
        for size in (5, 64):
            for done in complete(self.model, jobs, SAMPLING, size):
                tokens, margin = expected[done.key]
                right = list(done.tokens) == tokens or margin < 1e-4
                assert right, f"{done.key}, {size} rows: {done.tokens}, not {tokens}"

    def captures(self) -> None:
        """States of responses, and of prompts' last tokens."""
        rng = np.random.default_rng(5)
        responses = [[rng.integers(10, 300, n).tolist() for n in (1, 4)] for _ in self.prompts]
        layers = [0, self.layers - 2]
        found = response_states(self.model, self.prompts, responses, layers)
        last = prompt_states(self.model, self.prompts, layers)
        for i, prompt in enumerate(self.prompts):
            for k, response in enumerate(responses[i]):
                read = self.plain.read(prompt, response).hidden
                for layer in layers:
                    _near(found[i][k][layer], read[layer][len(prompt) :], f"row {i} {k} {layer}")
                    _near(last[layer][i], read[layer][len(prompt) - 1], f"prompt {i} {layer}")

    def extraction(self) -> None:
        """Vectors are the mean difference of the states at the responses' last tokens."""
        whole = load_behavior("refusal")
        behavior = replace(whole, pairs=whole.pairs[:3])
        layer, chat = self.layers - 2, self.model.chat
        found = extract(self.model, behavior, layers=[layer])[layer].array
        sums = np.zeros((2, self.model.hidden_size))
        for pair in behavior.pairs:
            prompt = chat.prompt_ids(pair.prompt, pair.system, pair.tools)
            for side, response in enumerate((pair.positive, pair.negative)):
                read = self.plain.read(prompt, chat.response_ids(response)).hidden
                sums[side] += read[layer][-1]
        _near(found, (sums[0] - sums[1]) / len(behavior.pairs), "the vector")

    def gates(self) -> None:
        """Scores are projections of the last prompt token's state, and decide the rows."""
        layer = self.layers - 2
        direction = self.vector(layer, 7) / self.sizes[layer]
        states = [self.plain.read(p, []).hidden[layer][-1] for p in self.prompts]
        raw = [float(s @ direction) for s in states]
        gate = Gate(layer, direction, float(np.mean(raw)))
        scores = gate_scores(self.model, gate, self.prompts)
        _near(np.array(scores), np.array(raw) - gate.threshold, "scores")
        act = Intervention(1, self.vector(1, 1), 1.0)
        gated = Condition("gated", None, (act,), gates=(gate,))
        jobs = [Job(str(i), ids, gated) for i, ids in enumerate(self.prompts)]
        for score, done in zip(raw, complete(self.model, jobs, SAMPLING), strict=True):
            assert done.steered == (score >= gate.threshold), f"gate of {done.key}"

    def screening(self) -> None:
        """Log-odds of tokens at the first response position."""
        wanted = [11, 40, 77]
        chosen = [c for c in self.conditions() if c.name in ("base", "low", "high", "prompt")]
        jobs = [Job(f"{c.name} {i}", ids, c) for c in chosen for i, ids in enumerate(self.prompts)]
        found = screen(self.model, jobs, wanted)
        for job in jobs:
            logits = self.plain.read(job.ids, [], job.condition.interventions).logits[0]
            odds = _log_sum(logits[wanted]) - _log_sum(np.delete(logits, wanted))
            assert abs(found[job.key] - odds) < 5e-3, f"{job.key}: {found[job.key]}, not {odds}"

    def perplexity(self) -> None:
        """Of given responses under the plain model."""
        rng = np.random.default_rng(6)
        answers = [
            Answer(f"{i} {n}", ids, tuple(rng.integers(10, 300, n).tolist()), 9 if i < 4 else 0)
            for i, ids in enumerate(self.prompts)
            for n in (1, 5)
        ]
        found = dict(pair for some in perplexities(self.model, units(answers)) for pair in some)
        for answer in answers:
            logits = self.plain.read(answer.ids, answer.tokens[:-1]).logits.astype(np.float64)
            losses = [_log_sum(row) - row[t] for row, t in zip(logits, answer.tokens, strict=True)]
            expected = float(np.exp(np.mean(losses)))
            assert abs(found[answer.key] / expected - 1) < 5e-3, f"{found[answer.key]}, {expected}"


def _log_sum(values: np.ndarray) -> float:
    top = values.max()
    return float(np.log(np.exp(values.astype(np.float64) - top).sum()) + top)


def _near(found: np.ndarray, expected: np.ndarray, what: str) -> None:
    assert found.shape == expected.shape, f"{what}: shape {found.shape}, not {expected.shape}"
    known = np.isfinite(expected)  # phi3small gives tokens it must not choose minus infinity
    assert np.array_equal(known, np.isfinite(found)), f"{what}: not finite"
    scale = max(float(np.abs(expected[known]).max()), 1e-6)
    error = float(np.abs(found[known] - expected[known]).max()) / scale
    assert error < 2e-3, f"{what}: off by {error:.2g} of the largest"
