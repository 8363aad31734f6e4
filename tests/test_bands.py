"""Layers and bands as they are written."""

import pytest

from mlx_steer.bands import band_of, layer_order, layer_words, layers_of, read_layer


@pytest.mark.parametrize(
    ("text", "place", "layers"),
    [
        ("12", 12, (12,)),
        ("-2", -2, (-2,)),
        ("12-14", "12-14", (12, 13, 14)),
        ("07-8", "7-8", (7, 8)),
    ],
)
def test_a_layer_is_a_number_and_a_band_its_first_and_last(text, place, layers) -> None:
    assert read_layer(text) == place
    assert layers_of(place) == layers and band_of(layers) == place


@pytest.mark.parametrize("text", ["", "x", "12-", "-3--1", "16-12", "12-12", "1.5", "1-99999"])
def test_what_is_neither_is_refused(text) -> None:
    with pytest.raises(ValueError):
        read_layer(text)


def test_bands_stand_among_layers_by_where_they_begin() -> None:
    places = ["12-16", 12, 9, None, "12-14", 13]
    assert sorted(places, key=layer_order) == [None, 9, 12, "12-14", "12-16", 13]
    assert [layer_words(place) for place in (12, "12-16")] == ["layer 12", "layers 12-16"]
