"""What responses are made of: stop strings, tool calls, thinking, turns, bounds of sampling."""

import json
from types import SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_lm.models.cache import KVCache

from mlx_steer.engine.jobs import Sampling
from mlx_steer.engine.narrowing import narrowing
from mlx_steer.errors import VectorError
from mlx_steer.serve.calls import Calls
from mlx_steer.serve.catalog import Catalog, Offered, parse_preset
from mlx_steer.serve.prefix_cache import MOST_TURNS, PrefixCache
from mlx_steer.serve.protocol import Steer
from mlx_steer.serve.speech import Speech
from mlx_steer.serve.stops import Stops
from tests.helpers.serving import tiny_vectors
from tests.helpers.tiny import HIDDEN, LAYERS, tiny_chat


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.text("ab-", max_size=4), max_size=8),
    st.lists(st.text("ab-", min_size=1, max_size=3), max_size=3),
)
def test_a_stream_ends_at_the_stop_string_that_its_text_holds_first(pieces, strings):
    stops, said = Stops(strings), ""
    for piece in pieces:
        said += stops.feed(piece)
        if stops.stopped:
            break
    said += stops.rest()
    text = "".join(pieces)
    if stops.stopped:
        assert any(text.startswith(said + stop) for stop in strings)
        # Nothing before it was one, up to where the stream had come.
        assert not any(stop in said for stop in strings)
    else:
        assert said == text and not any(stop in text for stop in strings)


def no_template_for_tools():
    return SimpleNamespace(tokenizer=SimpleNamespace(has_tool_calling=False))


CALL = '<tool_call>{"name": "get_weather", "arguments": {"city": "Paris"}}</tool_call>'


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_tool_calls_are_taken_out_of_the_text_however_it_comes(size):
    text = f"Let me see. {CALL} and {CALL}"
    calls = Calls(no_template_for_tools(), [])
    said = "".join(calls.feed(text[i : i + size]) for i in range(0, len(text), size))
    said += calls.rest()
    assert said == "Let me see.  and "
    assert [c["index"] for c in calls.found] == [0, 1]
    assert calls.found[0]["function"]["name"] == "get_weather"
    assert json.loads(calls.found[0]["function"]["arguments"]) == {"city": "Paris"}
    assert calls.found[0]["id"] != calls.found[1]["id"]


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>no json</tool_call>",
        "<tool_call>{}</tool_call> then",
        "<tool_call>{",
        "a <tool_",
    ],
)
def test_what_is_no_call_stays_text(text):
    calls = Calls(no_template_for_tools(), [])
    said = "".join(calls.feed(one) for one in text) + calls.rest()
    assert said == text and not calls.found


def test_speech_is_what_decode_gives_for_the_whole():
    chat = tiny_chat()
    for text in ("Mix flour, water — salt & yeast.", "naïve café 日本語 🙂!", " leading space"):
        tokens = chat.response_ids(text)
        speech = Speech(chat, [1, 5])
        said = "".join(speech.add(token) for token in [*tokens, 1, 3]) + speech.rest()
        assert said == chat.decode(tokens) == text


def test_thinking_is_told_apart_from_the_answer_with_the_mark_in_several_tokens():
    chat = tiny_chat()
    end = tuple(chat.response_ids("</think>"))
    assert len(end) > 1
    thinks = SimpleNamespace(
        tokenizer=SimpleNamespace(detokenizer=chat.tokenizer.detokenizer, think_start="<think>"),
        thinking_end=end,
        thinks=lambda ids: True,
        silent_ids=chat.silent_ids,
    )
    speech = Speech(thinks, [1])
    said = {True: "", False: ""}
    for token in chat.response_ids("\nI wonder </thi why </think>\n\nParis."):
        before = speech.thinking
        said[before] += speech.add(token)
    said[speech.thinking] += speech.rest()
    assert said[True].strip() == "I wonder </thi why"
    assert said[False] == "Paris."


def caches(tokens):
    cache = KVCache()
    cache.update_and_fetch(mx.ones((1, 1, tokens, 4)), mx.ones((1, 1, tokens, 4)))
    return [cache]


def test_turns_know_the_longest_beginning_that_was_read_under_the_same_plans():
    turns = PrefixCache(1 << 20)
    ids = list(range(100))
    turns.keep("a", ids, caches(100))
    turns.keep("a", [*ids[:50], *ids[:30]], caches(80))
    assert turns.known("b", ids) == 0
    assert turns.known("a", [*ids[:60], 7, 7]) == 60
    taken, count = turns.take("a", [*ids[:50], *ids[:40]])
    assert count == 80 == taken[0].offset
    taken, count = turns.take("a", ids[:40])
    assert count == 40 == taken[0].offset
    # What is kept was not cut.
    assert turns.known("a", ids) == 100
    assert turns.take("a", ids[:5]) is None


def test_turns_keep_to_their_bytes_and_number_and_drop_the_least_recently_used():
    size = sum(c.nbytes for c in caches(256))
    turns = PrefixCache(3 * size)
    for name in "abc":
        turns.keep(name, range(256), caches(256))
    turns.take("a", range(256))
    turns.keep("d", range(256), caches(256))
    assert [turns.known(name, range(256)) for name in "abcd"] == [256, 0, 256, 256]
    assert turns.bytes == 3 * size
    many = PrefixCache(1 << 30)
    for i in range(MOST_TURNS + 9):
        many.keep(str(i), range(20), caches(20))
    assert many.known("0", range(20)) == 0 and many.known("9", range(20)) == 20


def test_a_longer_turn_takes_the_place_of_what_it_goes_on_from():
    turns = PrefixCache(1 << 30)
    turns.keep("a", range(50), caches(50))
    before = turns.bytes
    turns.keep("a", range(60), caches(60))
    assert turns.bytes == before  # both take one block of 256 positions


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.05, 1.0), st.integers(0, 30), st.floats(0, 0.5))
def test_the_bounds_of_sampling_are_those_of_the_definitions(seed, top_p, top_k, min_p):
    logits = np.random.default_rng(seed).normal(0, 3, 40).astype(np.float32)
    sampling = Sampling(temperature=1.0, top_p=top_p, top_k=top_k, min_p=min_p)
    wide, narrow = (
        np.array(bound)[0, 0] for bound in narrowing(mx.array(logits)[None], [sampling], 0.0)
    )
    assert wide == pytest.approx(narrow)
    order = np.argsort(-logits)
    p = np.exp(logits.astype(np.float64) - logits.max())
    p /= p.sum()
    kept = set(range(40))
    if top_p < 1:
        total = np.cumsum(p[order])
        kept &= set(order[: int(np.searchsorted(total, top_p - 1e-6)) + 1])
    if top_k:
        kept &= set(order[:top_k])
    if min_p:
        kept &= set(np.flatnonzero(p >= min_p * p.max() * (1 - 1e-6)))
    found = set(np.flatnonzero(logits >= wide - 1e-6))
    if top_p < 1 and abs(np.cumsum(p[order]) - top_p).min() < 1e-5:
        return  # the sum's last digits decide
    assert found == (kept | {order[0]})


def test_what_slack_lets_pass_encloses_what_it_does_not():
    logits = mx.random.normal((4, 50), key=mx.random.key(1))
    samplings = [
        Sampling(temperature=1, top_p=0.7),
        Sampling(temperature=1, top_k=5),
        Sampling(temperature=1, min_p=0.2),
        Sampling(temperature=0, top_k=5),
    ]
    exact, _ = narrowing(logits, samplings, 0.0)
    wide, narrow = narrowing(logits, samplings, 1e-2)
    assert (np.array(wide) <= np.array(exact)).all()
    assert (np.array(exact) <= np.array(narrow)).all()
    assert np.array(wide)[3, 0] <= np.array(logits)[3].min()  # a greedy row is not narrowed


def test_a_preset_of_a_band_steers_each_of_its_layers():
    _, steering = parse_preset("mild=concise,layer:12-14,strength:0.3")
    assert [(s.layer, s.strength) for s in steering] == [(12, 0.3), (13, 0.3), (14, 0.3)]


def test_presets_are_read_as_they_are_written_on_the_command_line():
    name, steering = parse_preset("short=concise,layer:18,strength:0.8,gate:plain")
    assert name == "short"
    assert steering == (Steer(vector="concise", layer=18, strength=0.8, gate="plain"),)


@pytest.mark.parametrize(
    "text", ["", "short", "short=", "a=b,layer", "a=b,layer:x", "a=b,layer:1,layer:2", "a=b,x:1"]
)
def test_a_preset_that_cannot_be_read_is_refused_with_an_example(text):
    with pytest.raises(VectorError, match="NAME=VECTORS,layer:18"):
        parse_preset(text)


def test_a_catalog_reads_folders_by_name_or_behavior_and_refuses_two_of_one_name(tmp_path):
    folder = tmp_path / "vectors"
    tiny_vectors().save(folder)
    offered = Offered("tiny/llama", HIDDEN, LAYERS)
    catalog, _ = Catalog.load(offered, [(None, folder), ("other", folder)])
    assert set(catalog.vectors) == {"brevity", "other"}
    with pytest.raises(VectorError, match="two vectors are called"):
        Catalog.load(offered, [(None, folder), (None, folder)])
    with pytest.raises(VectorError, match="letters, digits"):
        Catalog.load(offered, [("a/b", folder)])
