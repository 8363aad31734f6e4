"""Sets of steering vectors: reading, algebra, fitting a model, comparing."""

import hashlib

import numpy as np
import pytest

from mlx_steer.errors import VectorError
from mlx_steer.vectors import (
    DatasetInfo,
    SteeringVector,
    SteeringVectorSet,
    compare_vectors,
)
from tests.helpers.vector_sets import MODEL, NUM_LAYERS, SIZE, metadata, vector, vector_set


def test_a_set_reads_like_a_mapping_in_ascending_order():
    made = SteeringVectorSet([vector(31), vector(4), vector(12)], metadata())
    assert list(made) == list(made.keys()) == [4, 12, 31]
    assert [one.layer for one in made.values()] == [4, 12, 31]
    assert [(layer, one.layer) for layer, one in made.items()] == [(4, 4), (12, 12), (31, 31)]
    assert dict(made)[12] is made[12]
    assert len(made) == 3
    assert 12 in made and 13 not in made and "12" not in made


def test_negative_layers_count_from_the_end_of_the_model():
    made = vector_set((4, 31))
    assert made[-1] is made[31]
    assert made[-28] is made[4]
    assert -1 in made and -2 not in made
    for missing in (-2, -33, 32, 5):
        with pytest.raises(VectorError, match=rf"no layer {missing}; they have 4, 31 of a model"):
            made[missing]


def test_the_metadata_always_describes_the_vectors():
    made = vector_set((4, 12))
    assert list(made.metadata.layers) == [4, 12]
    assert (made * 2).metadata.layers[12].norm == pytest.approx(2 * made[12].norm, rel=1e-8)
    assert made.metadata.layers[12].sha256 != (made * 2).metadata.layers[12].sha256


@pytest.mark.parametrize(
    ("vectors", "changes", "says"),
    [
        ([], {}, "at least one layer"),
        ([vector(3), vector(3)], {}, "one vector for each layer"),
        ([vector(32)], {}, "layers 0 to 31"),
        ([vector(3)], {"hidden_size": 9}, "8 elements, but the model's hidden size is 9"),
    ],
)
def test_a_set_that_contradicts_itself_is_refused(vectors, changes, says):
    with pytest.raises(VectorError, match=says):
        SteeringVectorSet(vectors, metadata(**changes))


def test_set_algebra_acts_on_every_layer_and_is_recorded_in_the_method():
    a, b = vector_set((4, 12), values=1), vector_set((4, 12), values=2, method="pca")
    for made, method, expected in [
        (2 * a, "mean_difference * 2.0", lambda x, y: x * 2),
        (np.float64(2) * a, "mean_difference * 2.0", lambda x, y: x * 2),
        (a / 4, "mean_difference / 4.0", lambda x, y: x / 4),
        (-a, "-mean_difference", lambda x, y: -x),
        (a + b, "mean_difference + pca", lambda x, y: x + y),
        (a - b, "mean_difference - pca", lambda x, y: x - y),
        ((a + b) * 0.5, "(mean_difference + pca) * 0.5", lambda x, y: (x + y) * 0.5),
        (a - -b, "mean_difference - (-pca)", lambda x, y: x + y),
        (SteeringVectorSet.mean([a, b]), "mean(mean_difference, pca)", lambda x, y: (x + y) / 2),
        (a.normalised(), "normalised(mean_difference)", lambda x, y: x / np.linalg.norm(x)),
    ]:
        assert made.metadata.method == f"algebra: {method}"
        assert list(made) == [4, 12]
        for layer in made:
            wanted = expected(a[layer].array.astype(np.float64), b[layer].array.astype(np.float64))
            np.testing.assert_allclose(made[layer].array, wanted, rtol=1e-6, atol=1e-7)


def test_the_mean_of_a_set_with_itself_is_the_set():
    made = vector_set((4, 12), seed=7)
    same = SteeringVectorSet.mean([made] * 3)
    for layer in made:
        np.testing.assert_allclose(same[layer].array, made[layer].array, rtol=1e-6)
        assert same[layer].hidden_norm == made[layer].hidden_norm
    assert same.metadata.dataset == made.metadata.dataset
    assert same.metadata.seed == 7


def test_adding_sets_keeps_what_they_have_in_common_and_joins_the_rest():
    other = DatasetInfo(name="hedges", sha256="c" * 64, pairs=20)
    a = vector_set((4, 12), seed=7)
    b = vector_set(
        (4, 12), behavior="uncertainty", dataset=other, seed=8, chat_template_sha256=None
    )
    joined = (a + b).metadata
    assert joined.behavior == "refusal + uncertainty"
    assert joined.model == a.metadata.model
    assert (joined.dataset.name, joined.dataset.pairs) == ("refusal + hedges", 70)
    assert joined.dataset.sha256 == hashlib.sha256(b"b" * 64 + b"c" * 64).hexdigest()
    assert joined.seed is None and joined.chat_template_sha256 is None
    assert (a + a).metadata.model_copy(update={"method": "", "layers": {}}) == (
        a.metadata.model_copy(update={"method": "", "layers": {}})
    )


OTHER = MODEL.model_copy(update={"id": "example/other"})


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (lambda: vector_set((4, 13)), "one has 4, 12, another 4, 13"),
        (
            lambda: vector_set((4, 12), model=MODEL.model_copy(update={"id": "example/other"})),
            "different model",
        ),
        (lambda: vector_set((4, 12), num_layers=40), "different num_layers"),
        (lambda: vector_set((4, 12), token_position="mean"), "different token_position"),
        (
            lambda: SteeringVectorSet(
                [SteeringVector(layer, np.ones(3), 1.0) for layer in (4, 12)],
                metadata(hidden_size=3),
            ),
            "different hidden_size",
        ),
    ],
)
def test_sets_that_do_not_match_cannot_be_combined(other, says):
    for combine in (
        lambda a, b: a + b,
        lambda a, b: a - b,
        lambda a, b: SteeringVectorSet.mean([a, b]),
    ):
        with pytest.raises(VectorError, match=says):
            combine(vector_set((4, 12)), other())


def test_the_mean_of_nothing_is_an_error():
    with pytest.raises(VectorError, match="at least one set"):
        SteeringVectorSet.mean([])


def test_vectors_fit_their_model_and_warn_of_another_with_the_same_shape():
    made = vector_set((4, 12))
    assert made.check_fits(SIZE, NUM_LAYERS, "tiny/llama") == []
    [warning] = made.check_fits(SIZE, NUM_LAYERS, "tiny/tuned")
    assert "tiny/llama" in warning and "tiny/tuned" in warning
    with pytest.raises(VectorError, match="hidden size 8, but example/big has 16"):
        made.check_fits(16, NUM_LAYERS, "example/big")
    with pytest.raises(VectorError, match="number of layers 32, but tiny/llama has 30"):
        made.check_fits(SIZE, 30, "tiny/llama")


def test_comparing_sets_gives_a_record_for_each_shared_layer():
    a, b = vector_set((4, 12, 20)), vector_set((12, 20, 31)) * -0.5
    first, second = compare_vectors(a, b)
    assert (first.layer, second.layer) == (12, 20)
    assert first.cosine == pytest.approx(-1.0)
    assert first.norm_a == a[12].norm and first.norm_b == b[12].norm
    assert first.norm_ratio == pytest.approx(2.0)


def test_sets_without_a_shared_layer_or_size_cannot_be_compared():
    with pytest.raises(VectorError, match="share no layer: one has 4, the other 12"):
        compare_vectors(vector_set((4,)), vector_set((12,)))
    small = SteeringVectorSet([SteeringVector(4, np.ones(3), 1.0)], metadata(hidden_size=3))
    with pytest.raises(VectorError, match="hidden size 8 and 3"):
        compare_vectors(vector_set((4,)), small)
