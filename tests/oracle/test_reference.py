"""Our numbers against the PyTorch reference path: operators, scopes, gates and sliding windows.

The reference path (`tests/reference`) is a decoder written from the architecture. It runs every
sequence alone, whole and uncached, and knows what transformers' models do not: scopes, ablation,
clamping and gates.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import torch

from mlx_steer import Condition, Intervention, Job, complete, extract, load_model, load_vectors
from mlx_steer.conditions import Gate
from mlx_steer.engine.guard import forward_of
from mlx_steer.engine.jobs import Sampling
from mlx_steer.engine.prefill import Prefill
from mlx_steer.engine.steered import steered
from mlx_steer.errors import GenerationError
from mlx_steer.model.load import Model
from mlx_steer.words import Operator, Scope
from tests import reference
from tests.helpers.tiny import LAYERS, WINDOW, random_vector, tiny_folder
from tests.oracle.cases import BEHAVIOR, PAIRS, PROMPTS, SYSTEM, parting, relative_error
from tests.reference import decoder, interventions, vectors

STATE_ERROR, LOGIT_ERROR = 3e-5, 1e-3
MAX_TOKENS = 20

FOLDERS = {
    "llama": ("llama", {}),
    # The only configs whose windows mlx-lm's Llama and Mistral code honours.
    "llama with sliding windows": (
        "llama",
        {
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"] * 2,
            "sliding_window": WINDOW,
        },
    ),
    "mistral": ("mistral", {"head_dim": 32, "seed": 1}),
}


@dataclass(frozen=True, eq=False)
class Sides:
    """One model folder, loaded by both."""

    ours: Model
    theirs: decoder.Decoder

    def ids(self, prompt: int, system: str | None = None) -> list[int]:
        return self.ours.chat.prompt_ids(PROMPTS[prompt], system)

    def complete(self, jobs: Sequence[Job], max_tokens: int = MAX_TOKENS) -> list:  # type: ignore
        return complete(self.ours, jobs, Sampling(max_tokens=max_tokens), batch_size=8)


@pytest.fixture(scope="module", params=FOLDERS)
def sides(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Sides:
    model_type, changes = FOLDERS[request.param]
    folder = tiny_folder(model_type, tmp_path_factory.mktemp("model"), **changes)
    return Sides(load_model(str(folder)), decoder.load(folder))


def test_the_reference_path_knows_nothing_of_what_it_checks() -> None:
    allowed = {*sys.stdlib_module_names, "numpy", "torch", "safetensors"}
    paths = sorted(Path(reference.__file__).parent.glob("*.py"))
    assert len(paths) >= 4
    for path in paths:
        imported: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level != 1:  # 1: its own modules
                imported.add(node.module or "..")
        assert {name.split(".")[0] for name in imported} <= allowed, path.name


def test_hidden_states_agree_at_every_layer_and_token(sides: Sides) -> None:
    for system in (None, SYSTEM):
        sequences = [sides.ids(i, system) for i in range(len(PROMPTS))]
        with forward_of(sides.ours.network) as forward:
            done = Prefill(forward).run(sequences, keep=range(LAYERS))
        for row, ids in enumerate(sequences):
            expected = sides.theirs.forward(torch.tensor([ids]), capture=range(LAYERS)).hidden
            for layer in range(LAYERS):
                ours = np.array(done.hidden[layer][row, : len(ids)])
                assert relative_error(ours, expected[layer][0].numpy()) < STATE_ERROR


@pytest.mark.parametrize("position", ["last", "mean"])
def test_extracted_vectors_agree_at_every_layer(sides: Sides, position: decoder.Position) -> None:
    chat = sides.ours.chat
    prompts = [chat.prompt_ids(p.prompt, p.system) for p in PAIRS]
    lengths = [len(p) for p in prompts]
    expected = sides.theirs.mean_difference(
        [i + chat.response_ids(p.positive) for i, p in zip(prompts, PAIRS, strict=True)],
        [i + chat.response_ids(p.negative) for i, p in zip(prompts, PAIRS, strict=True)],
        range(LAYERS),
        position,
        (lengths, lengths),
    )
    for layer, vector in extract(sides.ours, BEHAVIOR, token_position=position).items():
        assert relative_error(vector.array, expected[layer]) < STATE_ERROR, layer


@pytest.mark.parametrize(
    ("layer", "system"),
    [(0, None), (3, SYSTEM), (LAYERS - 1, None)],
    ids=["first layer", "middle layer", "last layer"],
)
@pytest.mark.parametrize(
    ("operator", "strength"),
    [("add", 1.5), ("add", -0.5), ("ablate", 1.0), ("clamp", 20.0), ("clamp", 0.0)],
)
def test_steered_logits_agree_at_every_token(
    sides: Sides, operator: Operator, strength: float, layer: int, system: str | None
) -> None:
    ids, vector = sides.ids(1, system), random_vector(layer)
    steer = interventions.Steer(layer, vector, strength, operator=operator)
    expected = sides.theirs.forward(torch.tensor([ids]), [steer]).logits[0].numpy()
    base = sides.theirs.forward(torch.tensor([ids])).logits[0].numpy()
    with steered(sides.ours, vector, layer=layer, strength=strength, operator=operator):
        ours = np.array(sides.ours.network(mx.array([ids]))[0])
    assert np.abs(ours - expected).max() < LOGIT_ERROR
    assert np.abs(base - expected).max() > 100 * LOGIT_ERROR


def orthogonal_to(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    part = np.dot(second, first) / np.dot(first, first) * first
    return np.asarray(second - part, np.float32)


A, B = random_vector(1), random_vector(2)
C = orthogonal_to(A, random_vector(3))

# Each: (layer, vector, strength, operator, scope), applied in this order by the reference path.
Effect = tuple[int, np.ndarray, float, Operator, Scope]
CONDITIONS: dict[str, tuple[Effect, ...]] = {
    "base": (),
    "add": ((2, A, 1.0, "add", "all"),),
    "add, generated": ((2, A, 1.0, "add", "generated"),),
    "add, prompt": ((2, A, 1.0, "add", "prompt"),),
    "add at the first layer, generated": ((0, B, -0.7, "add", "generated"),),
    "add at the last layer": ((LAYERS - 1, B, 1.5, "add", "all"),),
    "ablate": ((1, A, 1.0, "ablate", "all"),),
    "ablate, generated": ((3, B, 1.0, "ablate", "generated"),),
    "ablate, prompt": ((3, B, 1.0, "ablate", "prompt"),),
    "clamp": ((3, A, 15.0, "clamp", "all"),),
    "clamp, generated": ((3, A, -15.0, "clamp", "generated"),),
    "two vectors at one layer": ((2, A, 1.0, "add", "all"), (2, B, -0.5, "add", "generated")),
    "ablate, then add": ((2, A, 1.0, "ablate", "all"), (2, B, 1.0, "add", "all")),
    "ablate and clamp": ((2, A, 1.0, "ablate", "all"), (2, C, 12.0, "clamp", "all")),
    "three layers": (
        (1, A, 0.8, "add", "prompt"),
        (3, B, 1.0, "ablate", "all"),
        (5, C, 10.0, "clamp", "generated"),
    ),
}


@pytest.mark.parametrize(
    "sides",
    [pytest.param(name, marks=[] if name == "llama" else pytest.mark.slow) for name in FOLDERS],
    indirect=True,
)
def test_continuations_agree_for_every_operator_and_scope_in_one_batch(sides: Sides) -> None:
    prompts = [sides.ids(1), sides.ids(3, SYSTEM)]
    jobs, expected = [], []
    for name, effects in CONDITIONS.items():
        condition = Condition(name, None, tuple(Intervention(*e) for e in effects))
        steers = [
            interventions.Steer(layer, vector, strength, scope, operator=operator)
            for layer, vector, strength, operator, scope in effects
        ]
        for i, ids in enumerate(prompts):
            jobs.append(Job(f"{name}, prompt {i}", tuple(ids), condition))
            expected.append(sides.theirs.greedy(ids, MAX_TOKENS, steers, sides.ours.chat.stop_ids))
    done = sides.complete(jobs)
    partings = [
        parting(ours, theirs.tokens, theirs.margins)
        for ours, theirs in zip(done, expected, strict=True)
    ]
    assert len([p for p in partings if p]) <= 2, partings
    assert [c.finish_reason for c, p in zip(done, partings, strict=True) if not p] == [
        e.finish_reason for e, p in zip(expected, partings, strict=True) if not p
    ]
    # No condition could have stood in for another.
    assert len({(len(e.tokens), *e.tokens) for e in expected}) == len(expected)


def test_gates_read_the_same_scores_and_open_the_same_rows(sides: Sides) -> None:
    prompts = [sides.ids(i) for i in range(len(PROMPTS))]
    scores = {}
    for layer, direction in ((1, A), (4, B)):
        gate = interventions.Gate(layer, direction, 0.0)
        scores[layer] = [sides.theirs.gate_score(gate, ids) for ids in prompts]
    # Between the second and the third of four scores: two rows open, two stay shut.
    cuts = {layer: float(np.mean(sorted(s)[1:3])) for layer, s in scores.items()}
    assert all(min(abs(x - cuts[k]) for x in s) > 0.1 for k, s in scores.items())
    steer = interventions.Steer(2, C, 1.0)
    acts = (Intervention(2, C, 1.0),)
    gates = (Gate(1, A, cuts[1]), Gate(4, B, cuts[4]))
    conditions = {
        "one gate": Condition("one gate", None, acts, gates[:1]),
        "all gates": Condition("all gates", None, acts, gates, "all"),
        "any gate": Condition("any gate", None, acts, gates, "any"),
    }
    jobs, expected, opened = [], [], []
    for name, condition in conditions.items():
        for i, ids in enumerate(prompts):
            each = [scores[g.layer][i] >= g.threshold for g in condition.gates]
            opened.append(any(each) if condition.gate_join == "any" else all(each))
            jobs.append(Job(f"{name}, prompt {i}", tuple(ids), condition))
            expected.append(
                sides.theirs.greedy(
                    ids, MAX_TOKENS, [steer] if opened[-1] else [], sides.ours.chat.stop_ids
                )
            )
    done = sides.complete(jobs)
    assert [c.steered for c in done] == opened
    assert {True, False} == set(opened)
    for job, ours, theirs in zip(jobs, done, expected, strict=True):
        prompt = prompts.index(list(job.ids))
        margins = [scores[g.layer][prompt] - g.threshold for g in job.condition.gates]
        assert ours.gates == pytest.approx(margins, abs=1e-3)
        assert parting(ours, theirs.tokens, theirs.margins) is None


def test_a_gate_of_the_reference_path_decides_as_ours(sides: Sides) -> None:
    ids = sides.ids(0)
    score = sides.theirs.gate_score(interventions.Gate(3, A, 0.0), ids)
    for threshold, steered_ in ((score - 0.1, True), (score + 0.1, False)):
        gate = interventions.Gate(3, A, threshold)
        steer = interventions.Steer(1, B, 1.0)
        theirs = sides.theirs.greedy(ids, 8, [steer], sides.ours.chat.stop_ids, gate)
        acts = (Intervention(1, B, 1.0),)
        condition = Condition("gated", None, acts, (Gate(3, A, threshold),))
        (ours,) = sides.complete([Job("row", tuple(ids), condition)], 8)
        assert ours.steered is steered_
        assert parting(ours, theirs.tokens, theirs.margins) is None


def test_the_whole_chain_agrees_from_our_folder_of_vectors_on(sides: Sides, tmp_path: Path) -> None:
    """Extract and save; the reference path reads with numpy, steers, and says the same words."""
    extract(sides.ours, BEHAVIOR).save(tmp_path / "vectors")
    theirs, ours = vectors.read(tmp_path / "vectors"), load_vectors(tmp_path / "vectors")
    jobs, expected = [], []
    for layer, strength in ((0, 2.0), (2, 1.0), (-1, -1.5)):
        vector = ours[layer]
        acts = (Intervention(vector.layer, vector.array, strength),)
        steer = interventions.Steer(vector.layer, theirs.vectors[vector.layer], strength)
        for i in (1, 3):
            ids = sides.ids(i, SYSTEM)
            jobs.append(
                Job(f"layer {layer}, prompt {i}", tuple(ids), Condition("steering", None, acts))
            )
            expected.append(sides.theirs.greedy(ids, MAX_TOKENS, [steer], sides.ours.chat.stop_ids))
    partings = [
        parting(c, e.tokens, e.margins) for c, e in zip(sides.complete(jobs), expected, strict=True)
    ]
    assert len([p for p in partings if p]) <= 1, partings


def test_within_mistral_s_sliding_window_both_agree_and_beyond_it_ours_refuses(
    tmp_path: Path,
) -> None:
    window = 48
    folder = tiny_folder("mistral", tmp_path, sliding_window=window)
    sides = Sides(load_model(str(folder)), decoder.load(folder))
    short, long = sides.ids(0), sides.ids(1, SYSTEM)
    condition = Condition("steering", None, (Intervention(2, A, 1.0),))
    steer = interventions.Steer(2, A, 1.0)
    fitting = window - len(short)
    (ours,) = sides.complete([Job("short", tuple(short), condition)], fitting)
    theirs = sides.theirs.greedy(short, fitting, [steer], sides.ours.chat.stop_ids)
    assert len(ours.tokens) == fitting
    assert parting(ours, theirs.tokens, theirs.margins) is None
    for ids, tokens in ((short, fitting + 1), (long, 1)):
        with pytest.raises(GenerationError, match=f"exceed the {window}"):
            sides.complete([Job("too long", tuple(ids), condition)], tokens)
    # Why it refuses: mlx-lm would compute another model there.
    expected = sides.theirs.forward(torch.tensor([long])).logits[0].numpy()
    computed = np.array(sides.ours.network(mx.array([long]))[0])
    assert np.abs(computed - expected)[:window].max() < LOGIT_ERROR
    assert np.abs(computed - expected)[window:].max() > 100 * LOGIT_ERROR
