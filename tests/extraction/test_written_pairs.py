"""Pairs that the model writes: what is kept, what is refused, and vectors made again from them."""

from pathlib import Path

import numpy as np
import pytest

from mlx_steer.behaviors import PromptItem, Sentences
from mlx_steer.behaviors.two_sentences import opposed
from mlx_steer.config import ExtractConfig
from mlx_steer.errors import DataError, VectorError
from mlx_steer.extraction.written_pairs import Replies, samplings, write_pairs, written
from mlx_steer.model.load import Model
from mlx_steer.vectors import load_vectors
from tests.helpers.behaviors import jsonl, write
from tests.helpers.command import Run
from tests.helpers.tiny import tiny_folder, tiny_model

BOTH = Sentences("Decline this request.", "Bake bread, and write of the sea.")
FLUENT = [
    "The wind is fair today and our ship sails for the islands of gold.",
    "You can mix flour with water and salt, then wait an hour for it.",
]


def replies(ratios: list[tuple[float | None, float | None]], texts: list[str] = FLUENT):
    return [
        Replies(f"q{i}", PromptItem(f"q{i}", f"What is {i}?", "target"), (texts[0], texts[1]), pair)
        for i, pair in enumerate(ratios)
    ]


def kept(asked: list[Replies]):
    return written(asked, BOTH, ExtractConfig(), 0, "the model")


def test_pairs_that_are_incoherent_or_not_told_apart_are_dropped_and_counted():
    asked = replies([(1.0 + i / 50, -1.0 - i / 50) for i in range(20)])
    asked[3] = Replies("q3", asked[3].question, ("no no no no no no no no", FLUENT[1]), (5.0, -1.0))
    asked[7] = Replies("q7", asked[7].question, asked[7].texts, (-1.5, -1.2))
    asked[9] = Replies("q9", asked[9].question, ("", FLUENT[1]), (None, -1.0))
    found = kept(asked)
    assert found.dropped == {"incoherent": 2, "not told apart": 1}
    assert [pair.id for pair in found.pairs] == [f"q{i}" for i in range(20) if i not in (3, 7, 9)]
    assert found.info.dropped == found.dropped and found.info.questions == 20


def test_a_model_that_answers_alike_is_told_of_with_the_area_and_examples():
    asked = replies([(0.1 * (-1) ** i, 0.1 * (-1) ** (i // 2)) for i in range(20)], [FLUENT[0]] * 2)
    with pytest.raises(DataError, match="cannot tell the two sentences' answers apart") as caught:
        kept(asked)
    assert "20 of 20 answers are the same" in str(caught.value)
    assert FLUENT[0][:30] in str(caught.value)


def test_too_few_coherent_pairs_are_an_error_with_examples():
    with pytest.raises(DataError, match="only 0 of 12 pairs of answers by the model are coherent"):
        kept(replies([(1.0, -1.0)] * 12, ["la la la la la la la la", "!!!"]))


def test_several_answers_are_sampled_apart_and_a_single_one_is_greedy():
    assert [s.temperature for s in samplings(ExtractConfig())] == [0]
    several = samplings(ExtractConfig(answers=3), 5)
    assert [s.seed for s in several] == [5, 6, 7] and all(s.temperature > 0 for s in several)


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny_model()


def test_the_model_writes_pairs_of_its_answers_and_more_of_them_by_sampling(model, monkeypatch):
    # A random model babbles: what it says is no matter here, only which answers make which pair.
    monkeypatch.setattr("mlx_steer.extraction.written_pairs.COHERENCE_THRESHOLD", -1.0)
    monkeypatch.setattr("mlx_steer.extraction.written_pairs.LEAST_AUC", 0.0)
    monkeypatch.setattr("mlx_steer.extraction.written_pairs.FEWEST_PAIRS", 1)
    behavior = opposed(BOTH.positive, BOTH.negative)
    questions = behavior.select(split="extract")[:4]
    few = behavior.__class__(**{**vars(behavior), "prompts": questions})
    found = write_pairs(model, few, ExtractConfig(answers=2, answer_tokens=8), batch_size=3)
    again = write_pairs(model, few, ExtractConfig(answers=2, answer_tokens=8), batch_size=16)
    assert found.file == again.file and found.info == again.info
    assert found.info.questions == 4 and len(found.pairs) + sum(found.dropped.values()) == 8
    for pair in found.pairs:
        assert pair.prompt in {q.prompt for q in questions}
        assert pair.positive != pair.negative


def test_a_sentence_longer_than_the_context_is_refused(model):
    long = opposed("word " * 400, "Short.")
    with pytest.raises(DataError, match="the longest prompt under the positive sentence has"):
        write_pairs(model, long, ExtractConfig())


def test_vectors_are_made_again_from_their_pairs_byte_for_byte(
    tmp_path: Path, run: Run, monkeypatch
):
    monkeypatch.setattr("mlx_steer.extraction.written_pairs.COHERENCE_THRESHOLD", -1.0)
    monkeypatch.setattr("mlx_steer.extraction.written_pairs.LEAST_AUC", 0.0)
    monkeypatch.setattr("mlx_steer.extraction.written_pairs.FEWEST_PAIRS", 1)
    folder = tiny_folder("llama", tmp_path / "model")
    made, again = tmp_path / "vectors", tmp_path / "again"
    sentences = ("--positive", BOTH.positive, "--negative", BOTH.negative, "--name", "sea")
    done = run("extract", "--model", folder, *sentences, "--layers", "2,3", "--out", made)
    assert done.code == 0, done.err
    assert "pairs (left out:" in done.out and "held-out error" in done.out
    redone = run("extract", "--model", folder, "--again", made, "--out", again)
    assert redone.code == 0, redone.err
    assert {p.name for p in made.iterdir()} == {
        *("layer_2.npy", "layer_3.npy", "metadata.json", "pairs.jsonl")
    }
    for path in made.iterdir():
        assert (again / path.name).read_bytes() == path.read_bytes()
    found = load_vectors(made)
    assert found.metadata.written and found.metadata.token_position == "mean"
    lines = (made / "pairs.jsonl").read_bytes().splitlines()
    assert found.metadata.dataset and len(lines) == found.metadata.dataset.pairs
    # Derived vectors are not those of the file any more, and say so by silence.
    assert (found * 2).metadata.written is None
    assert np.array_equal(found.at([2])[2].array, found[2].array)
    write(made / "pairs.jsonl", jsonl({"prompt": "a", "positive": "b", "negative": "c"}))
    with pytest.raises(VectorError, match="jsonl has changed"):
        load_vectors(made)


def test_one_sentence_without_the_other_is_a_usage_error(run: Run, tmp_path: Path):
    done = run("extract", "--model", "m", "--positive", "Hello.", "--out", tmp_path / "v")
    assert done.code == 2 and "belong together" in done.err
    done = run(
        *("extract", "--model", "m", "--positive", "Hello.", "--negative", "Hello."),
        *("--out", tmp_path / "v"),
    )
    assert done.code == 2 and "are the same" in done.err
