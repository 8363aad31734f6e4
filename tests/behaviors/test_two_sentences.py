"""A behavior of two opposed sentences, and the shelf of shipped ones."""

from collections import Counter
from pathlib import Path

import pytest

from mlx_steer.behaviors import LOG_RATIO, load_behavior
from mlx_steer.behaviors.two_sentences import behavior_of, factual_questions, opposed, shelf
from mlx_steer.config import parse_config
from mlx_steer.errors import ConfigError, DataError
from mlx_steer.sentences import TwoSentences
from tests.helpers.behaviors import jsonl, write

PIRATE, PLAIN = "You are a pirate.", "You are a plain assistant."


def test_two_sentences_come_with_questions_to_write_choose_and_test_on_and_with_facts():
    behavior = opposed(PIRATE, PLAIN, "pirate")
    counts = Counter(item.split for item in behavior.prompts)
    assert counts == {"extract": 60, "select": 40, "test": 60, "facts": 100}
    assert {item.set for item in behavior.prompts} == {"target"}
    assert behavior.judge == LOG_RATIO and not behavior.pairs
    assert behavior.system_prompts == {"positive": PIRATE, "negative": PLAIN}
    assert all(item.check and item.check["answers"] for item in factual_questions())


def test_every_pair_on_the_shelf_is_a_behavior():
    for one in shelf():
        assert opposed(one.positive, one.negative, one.name).verdicts["shown"].endswith(one.name)


def test_prompts_of_ones_own_take_the_place_of_the_neutral_ones(tmp_path: Path):
    lines = [
        {"id": f"{s}-{n}", "set": s, "split": n, "prompt": f"{s} {n}?"}
        for s in ("target", "other")
        for n in ("select", "test", "gate")
    ]
    file = write(tmp_path / "own.jsonl", jsonl(*lines))
    found = behavior_of(TwoSentences(positive=PIRATE, negative=PLAIN, prompts=str(file)))
    assert Counter((item.set, item.split) for item in found.prompts) == {
        ("target", "extract"): 60,
        ("target", "facts"): 100,
        **{(s, n): 1 for s in ("target", "other") for n in ("select", "test", "gate")},
    }


@pytest.mark.parametrize(
    ("positive", "negative", "told"),
    [
        ("", PLAIN, "the positive sentence is empty"),
        (PIRATE, "  ", "the negative sentence is empty"),
        (PIRATE, "you are  a PIRATE.", "are the same"),
        ("a\x07b", PLAIN, "the positive sentence has the control character"),
    ],
)
def test_sentences_that_say_nothing_are_refused(positive, negative, told):
    with pytest.raises(DataError, match=told):
        opposed(positive, negative)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"positive": PIRATE}, "key 'behavior.negative' is missing"),
        ({"positive": PIRATE, "negative": PIRATE}, "'behavior': the two sentences are the same"),
        ({"positive": " ", "negative": PLAIN}, "'behavior': the positive sentence is empty"),
        ({"positive": PIRATE, "negative": PLAIN, "rule": "refusal"}, "unknown key 'behavior.rule'"),
        ({"positive": PIRATE, "negative": 3}, "key 'behavior.negative': must be text"),
        (3, "key 'behavior'"),
    ],
)
def test_a_config_with_bad_sentences_is_refused_in_one_line(said, told):
    data = {"name": "x", "model": {"name": "m"}, "behavior": said}
    with pytest.raises(ConfigError, match=told) as caught:
        parse_config(data, "the test")
    assert "constrained" not in str(caught.value) and "TwoSentences" not in str(caught.value)


def test_a_config_says_a_behavior_by_two_sentences():
    said = {"positive": PIRATE, "negative": PLAIN, "name": "pirate"}
    config = parse_config({"name": "x", "model": {"name": "m"}, "behavior": said}, "the test")
    assert config.behavior == TwoSentences(**said)
    assert behavior_of(config.behavior).name == "pirate"


def test_a_folder_may_hold_sentences_in_place_of_pairs(tmp_path: Path):
    text = f"""
name: pirate
title: Pirate
description: Speaks like one.
judge: log_ratio
verdicts: {{shown: pirate, absent: plain}}
sets: {{target: questions}}
sentences: {{positive: {PIRATE}, negative: {PLAIN}}}
"""
    write(tmp_path / "behavior.yaml", text)
    write(tmp_path / "prompts.jsonl", jsonl({"set": "target", "split": "extract", "prompt": "Hi?"}))
    found = load_behavior(tmp_path)
    assert found.sentences and found.sentences.positive == PIRATE and not found.pairs
    write(tmp_path / "behavior.yaml", text.replace("log_ratio", "refusal"))
    with pytest.raises(DataError, match="belong together"):
        load_behavior(tmp_path)
