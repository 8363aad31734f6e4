from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_steer.behaviors import Behavior, PromptItem
from mlx_steer.conditions import Condition, Intervention
from mlx_steer.config import GateConfig
from mlx_steer.engine.complete import complete
from mlx_steer.engine.jobs import Job, Sampling
from mlx_steer.engine.steered import gate_score
from mlx_steer.engine.steering import steerable
from mlx_steer.errors import ConfigError, DataError, ModelError
from mlx_steer.extraction.directions import FOLDS, METHODS, projection
from mlx_steer.extraction.gates import GateFit, fit_gate, gate_scores, spread_folds
from mlx_steer.model.load import Model
from mlx_steer.stats import auc, wilson
from mlx_steer.words import Method, PromptSet
from tests.helpers import behaviors
from tests.helpers.tiny import LAYERS, random_vector, tiny_model

TOPICS = [
    "the sea",
    "bread",
    "a card trick",
    "old maps",
    "the wind",
    "two locks",
    "Paris",
    "salt",
    "a poem",
    "water",
    "flour",
    "the morning",
]


def prompts(name: PromptSet, verb: str, count: int = 12, **values: Any) -> list[PromptItem]:
    """Prompts that differ from those of another verb in nothing else."""
    return [
        PromptItem(f"{name}-{verb}-{i}", f"{topic}: {verb}", name, **{"split": "gate", **values})
        for i, topic in enumerate(TOPICS[:count])
    ]


def behavior(*items: PromptItem) -> Behavior:
    return behaviors.behavior(prompts=items, name="thefts")


METHODS_TRIED = GateConfig().methods
STEAL_OR_DRAW = behavior(*prompts("target", "steal"), *prompts("other", "draw"))


def mumble(seed: int, count: int) -> list[str]:
    """Random letters, which no two sets can be told apart by."""
    rng = np.random.default_rng(seed)
    return ["".join(chr(97 + k) for k in rng.integers(0, 26, 12)) for _ in range(count)]


def noise(seed: int, target: int = 6, other: int = 6) -> Behavior:
    names: list[PromptSet] = ["target"] * target + ["other"] * other
    texts = mumble(seed, target + other)
    return behavior(
        *(
            PromptItem(f"{name}-{i}", text, name, split="gate")
            for i, (name, text) in enumerate(zip(names, texts, strict=True))
        )
    )


def fitted(
    model: Model,
    data: Behavior,
    system_prompt: str | None = None,
    name: str = "plain",
    seed: int = 0,
    **settings: Any,
) -> GateFit:
    values = GateConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()})
    return fit_gate(model, data, values, system_prompt=system_prompt, name=name, seed=seed)


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny_model()


@pytest.fixture(scope="module")
def fit(model: Model) -> GateFit:
    return fitted(model, STEAL_OR_DRAW)


def states(model: Model, items: Sequence[PromptItem], layer: int, system: str | None = None):
    """Last-token states, each prompt alone: float64, shape (prompts, hidden_size)."""
    kept: list[mx.array] = []
    with steerable(model.network, [layer]) as (site,):
        site.record = kept.append
        for item in items:
            both = "\n\n".join(part for part in (item.system, system) if part)
            mx.eval(model.network(mx.array(model.chat.prompt_ids(item.prompt, both))[None]))
    return np.stack([np.array(h[0, -1].astype(mx.float32), np.float64) for h in kept])


# --- what is fitted -------------------------------------------------------------------------------


def test_prompts_that_differ_in_one_word_are_told_apart_also_where_they_were_not_seen(
    model: Model, fit: GateFit
) -> None:
    assert fit.candidates[0].auc == 1.0
    assert fit.opened.value == 1.0 and fit.achieved.count == 0
    for verb, opened in (("steal", True), ("draw", False)):
        new = [f"{topic}: {verb}" for topic in ("a song", "the train", "some tea", "two birds")]
        scores = gate_scores(model, fit.gate, [model.chat.prompt_ids(text) for text in new])
        assert [score >= 0 for score in scores] == [opened] * 4


def test_the_direction_is_the_methods_own_over_all_prompts_and_has_length_1(model: Model) -> None:
    items = STEAL_OR_DRAW.prompts
    for method in METHODS_TRIED:
        fit = fitted(model, STEAL_OR_DRAW, layers=[3], methods=[method])
        at = states(model, items, 3)
        wanted = METHODS[method](at[:12], at[12:])
        wanted /= np.linalg.norm(wanted)
        assert fit.method == method and fit.gate.layer == 3
        assert fit.gate.direction.dtype == np.float32
        assert np.linalg.norm(fit.gate.direction) == pytest.approx(1.0, abs=1e-6)
        assert np.linalg.norm(fit.gate.direction - wanted) < 1e-3, method


def test_candidates_are_every_layer_and_method_by_their_cross_validated_auc(model: Model) -> None:
    data = noise(0, 9, 11)
    fit = fitted(model, data, layers=[4, -5], methods=METHODS_TRIED[::-1], seed=3)
    labels = np.array([item.set == "target" for item in data.prompts])
    folds = spread_folds(labels, 3)
    wanted: dict[tuple[int, Method], float] = {}
    for layer in (1, 4):
        at = states(model, data.prompts, layer)
        for method in METHODS_TRIED:
            scores = np.zeros(len(at))
            for k in range(FOLDS):
                score = projection(at[(folds != k) & labels], at[(folds != k) & ~labels], method)
                scores[folds == k] = score(at[folds == k])
            wanted[layer, method] = auc(scores.tolist(), labels.tolist())
    found = {(c.layer, c.method): c.auc for c in fit.candidates}
    assert found == pytest.approx(wanted, abs=1e-9)
    assert [c.auc for c in fit.candidates] == sorted(found.values(), reverse=True)
    assert (fit.gate.layer, fit.method) == (fit.candidates[0].layer, fit.candidates[0].method)


def test_of_equals_the_lowest_layer_and_the_first_method_are_taken(model: Model) -> None:
    fit = fitted(model, STEAL_OR_DRAW, methods=METHODS_TRIED[::-1])
    equal = [c for c in fit.candidates if c.auc == fit.candidates[0].auc]
    assert len({c.layer for c in equal}) > 1 and len({c.method for c in equal}) > 1
    order = [(c.layer, METHODS_TRIED[::-1].index(c.method)) for c in equal]
    assert order == sorted(order)


def test_random_prompts_are_not_told_apart_on_held_out_ones(model: Model) -> None:
    found = [
        fitted(model, noise(seed, 10, 10), layers=[2], methods=["mean_difference"])
        for seed in range(12)
    ]
    aucs = [fit.candidates[0].auc for fit in found]
    assert abs(np.mean(aucs) - 0.5) < 0.12
    # The prompts that made the direction would have said otherwise.
    for fit, seed in zip(found, range(12), strict=True):
        items = noise(seed, 10, 10).prompts
        seen = states(model, items, 2) @ fit.gate.direction
        assert auc(seen.tolist(), [i.set == "target" for i in items]) > 0.75


@pytest.mark.parametrize(("positive", "negative"), [(5, 5), (60, 30), (7, 23), (60, 61)])
def test_folds_hold_like_shares_of_both_sides(positive: int, negative: int) -> None:
    labels = np.arange(positive + negative) < positive
    folds = spread_folds(labels, 0)
    for side in (labels, ~labels):
        sizes = np.bincount(folds[side], minlength=FOLDS)
        assert len(sizes) == FOLDS and sizes.max() - sizes.min() <= 1 and sizes.min() >= 1
    assert np.array_equal(folds, spread_folds(labels, 0))
    assert not np.array_equal(folds, spread_folds(labels, 1))


# --- the threshold --------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.0, 0.05, 0.1, 0.25, 0.5, 0.99])
def test_at_most_the_stated_share_of_held_out_other_prompts_open_the_gate(
    model: Model, rate: float
) -> None:
    for seed in range(4):
        data = noise(seed, 8, 20)
        fit = fitted(model, data, layers=[2], methods=["mean_difference"], false_positive_rate=rate)
        assert fit.achieved.count == int(rate * 20 + 1e-9)
        assert fit.achieved == wilson(fit.achieved.count, 20)
        opened = {name for name, score in fit.scores.items() if score >= 0}
        assert sum(name.startswith("other") for name in opened) == fit.achieved.count
        assert sum(name.startswith("target") for name in opened) == fit.opened.count
        assert fit.opened.n == 8


def test_no_false_opening_is_none_even_if_an_other_prompt_scores_highest(model: Model) -> None:
    highest = []
    for seed in range(12):
        fit = fitted(model, noise(seed), layers=[2], false_positive_rate=0.0)
        highest.append(fit.sets[max(fit.scores, key=lambda name: fit.scores[name])])
        assert fit.achieved.count == 0, seed
        assert all(s < 0 for name, s in fit.scores.items() if fit.sets[name] == "other")
    assert set(highest) == {"target", "other"}, "the seeds must give both cases"


def test_the_threshold_lies_halfway_between_two_prompts(model: Model, fit: GateFit) -> None:
    above = min(s for s in fit.scores.values() if s >= 0)
    below = max(s for s in fit.scores.values() if s < 0)
    assert above == pytest.approx(-below, abs=1e-5)
    assert above > 0.01


def test_gate_scores_count_from_the_threshold_and_are_those_of_single_passes(
    model: Model, fit: GateFit
) -> None:
    items = STEAL_OR_DRAW.prompts
    ids = [model.chat.prompt_ids(item.prompt) for item in items]
    found = gate_scores(model, fit.gate, ids)
    plain = states(model, items, fit.gate.layer) @ fit.gate.direction - fit.gate.threshold
    assert found == pytest.approx(plain.tolist(), abs=2e-4)
    assert found == pytest.approx([gate_score(model.network, fit.gate, i) for i in ids], abs=2e-4)
    # Directions from four fifths of the prompts lie near the one from all: so do the scores.
    held_out = [fit.scores[item.id] for item in items]
    assert np.corrcoef(found, held_out)[0, 1] > 0.9
    assert [s >= 0 for s in found] == [item.set == "target" for item in items]
    # The same in the engine, whatever is steered.
    act = Intervention(2, random_vector(0), 1.0)
    gated = Condition("gated", None, (act,), (fit.gate,))
    jobs = [Job(item.id, tuple(i), gated) for item, i in zip(items, ids, strict=True)]
    done = complete(model, jobs, Sampling(1))
    assert [c.gates[0] for c in done] == pytest.approx(found, abs=2e-4)
    assert [c.steered for c in done] == [s >= 0 for s in found]


# --- what it is fitted on -------------------------------------------------------------------------


def test_only_prompts_of_the_gate_split_are_read(model: Model, fit: GateFit) -> None:
    others = [
        *prompts("target", "draw", split="test"),
        *prompts("other", "steal", split="select"),
    ]
    again = fitted(model, behavior(*others, *STEAL_OR_DRAW.prompts))
    assert again.info == fit.info and again.candidates == fit.candidates
    assert (again.scores, again.sets) == (fit.scores, fit.sets)
    assert np.array_equal(again.gate.direction, fit.gate.direction)


def test_borderline_prompts_shape_the_direction_and_are_no_false_openings(
    model: Model, fit: GateFit
) -> None:
    # Like target prompts: were they counted, they would take up all false openings.
    borderline = prompts("borderline", "steal", 8)
    layer = fit.gate.layer
    again = fitted(
        model,
        behavior(*STEAL_OR_DRAW.prompts, *borderline),
        layers=[layer],
        methods=[fit.method],
        false_positive_rate=0.25,
    )
    assert again.prompts == {"target": 12, "other": 12, "borderline": 8}
    assert again.achieved.n == 12 and again.achieved.count == 3
    assert set(again.scores) == set(again.sets) >= {item.id for item in borderline}
    at = states(model, [*STEAL_OR_DRAW.prompts, *borderline], layer)
    wanted = METHODS[fit.method](at[:12], at[12:])
    assert np.linalg.norm(again.gate.direction - wanted / np.linalg.norm(wanted)) < 1e-3
    assert np.linalg.norm(again.gate.direction - fit.gate.direction) > 1e-2


def test_system_prompts_are_read_with_the_prompts(model: Model) -> None:
    data = behavior(
        *prompts("target", "steal", system="Answer briefly."), *prompts("other", "draw")
    )
    system = "Decline when it is not safe."
    options: dict[str, Any] = {"layers": [2], "methods": ["mean_difference"]}
    fit = fitted(model, data, system_prompt=system, **options)
    at = states(model, data.prompts, 2, system)
    wanted = at[:12].mean(axis=0) - at[12:].mean(axis=0)
    assert np.linalg.norm(fit.gate.direction - wanted / np.linalg.norm(wanted)) < 1e-4
    assert fit.system_prompt == system
    hashes = {
        text: fitted(model, data, system_prompt=text, **options).info.system_prompt_sha256
        for text in (None, "Be kind.", system)
    }
    assert hashes[None] is None and len(set(hashes.values())) == 3


# --- the record -----------------------------------------------------------------------------------


def test_the_same_inputs_give_the_same_gate_and_another_seed_other_folds(
    model: Model,
) -> None:
    data = noise(1, 9, 9)
    first, again, other = (fitted(model, data, seed=seed) for seed in (0, 0, 1))
    assert first.info == again.info and first.gate.key() == again.gate.key()
    assert first.scores == again.scores
    assert first.scores != other.scores


def test_the_fit_and_its_info_say_what_was_found(fit: GateFit) -> None:
    assert len(fit.candidates) == LAYERS * len(METHODS_TRIED)
    assert (fit.opened.count, fit.opened.n) == (12, 12)
    assert (fit.achieved.count, fit.achieved.n) == (0, 12)
    assert set(fit.scores) == {item.id for item in STEAL_OR_DRAW.prompts}
    assert fit.sets["other-draw-3"] == "other"
    info = fit.info
    assert (info.name, info.layer, info.method) == ("plain", fit.gate.layer, fit.method)
    assert (info.auc, info.false_positive_rate) == (1.0, 0.05)
    assert info.prompts == {"target": 12, "other": 12, "borderline": 0}


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("target", "other"), [(4, 12), (12, 4), (0, 0)])
def test_fewer_prompts_of_a_side_than_folds_are_refused(
    model: Model, target: int, other: int
) -> None:
    data = behavior(*prompts("target", "steal", target), *prompts("other", "draw", other))
    with pytest.raises(DataError, match=f"thefts has {target} target and {other} other prompts"):
        fitted(model, data)


def test_five_of_each_are_enough(model: Model) -> None:
    data = behavior(*prompts("target", "steal", 5), *prompts("other", "draw", 5))
    assert fitted(model, data).opened.n == 5


def test_borderline_prompts_do_not_make_up_for_other_ones(model: Model) -> None:
    data = behavior(
        *prompts("target", "steal"), *prompts("other", "draw", 4), *prompts("borderline", "lend")
    )
    with pytest.raises(DataError, match="12 target and 4 other"):
        fitted(model, data)


def test_sets_of_the_same_prompts_are_refused(model: Model) -> None:
    data = behavior(*prompts("target", "steal"), *prompts("other", "steal"))
    with pytest.raises(DataError, match="the same hidden states; write prompts that differ"):
        fitted(model, data, methods=["mean_difference"])


@pytest.mark.parametrize(
    "name", ["", "../gate", "a" * 65, "ä", "plain\n"], ids=["empty", "path", "long", "ä", "lines"]
)
def test_a_name_that_cannot_be_a_files_is_refused(model: Model, name: str) -> None:
    with pytest.raises(ConfigError, match=r"cannot name a gate's file; use letters.*64 at most"):
        fitted(model, STEAL_OR_DRAW, name=name)


@pytest.mark.parametrize("layer", [LAYERS, -LAYERS - 1])
def test_a_layer_the_model_lacks_is_refused(model: Model, layer: int) -> None:
    with pytest.raises(ModelError, match=f"no layer {layer}"):
        fitted(model, STEAL_OR_DRAW, layers=[1, layer])


def test_hidden_states_that_overflow_are_refused_with_the_cure() -> None:
    model = tiny_model(dtype="float16")
    down = model.network.layers[2].mlp.down_proj
    down.weight = 3e4 * down.weight
    with pytest.raises(ModelError, match=r"layer 2 of tiny/llama.*float16; load it with --dtype"):
        fitted(model, STEAL_OR_DRAW)
    assert fitted(model, STEAL_OR_DRAW, layers=[0, 1]).gate.layer < 2


def test_a_prompt_longer_than_the_model_computes_correctly_is_refused(model: Model) -> None:
    long = PromptItem("too-long", "bread and " * 200, "other", split="gate")
    with pytest.raises(DataError, match=r"too-long of thefts has \d+ tokens, more than the 256"):
        fitted(model, behavior(*STEAL_OR_DRAW.prompts, long))
    short = replace(model, context=None)
    assert fitted(short, behavior(*STEAL_OR_DRAW.prompts, long)).prompts["other"] == 13
