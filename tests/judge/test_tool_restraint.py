"""The tool judge against labelled cases, the shipped pairs and prompts, and arbitrary text."""

import json
import time
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_steer.behaviors import PromptItem, load_behavior
from mlx_steer.judge.tool_restraint import judge_tool_restraint
from tests.judge.cases import labelled

CASES = labelled("tool_restraint")
BEHAVIOR = load_behavior("tool_restraint")
NAMES = [tool["function"]["name"] for tool in BEHAVIOR.tools]
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'


def ask(prompt: str) -> PromptItem:
    return PromptItem("p", prompt, "target", tools=BEHAVIOR.tools)


def test_labelled_cases_get_their_verdicts():
    judged = {
        case["id"]: judge_tool_restraint(ask(case["prompt"]), case["response"]).verdict
        for case in CASES
    }
    assert judged == {case["id"]: case["verdict"] for case in CASES}


def test_cases_hold_both_verdicts_and_unique_ids():
    verdicts = Counter(case["verdict"] for case in CASES)
    assert min(verdicts["shown"], verdicts["absent"]) >= 35
    assert len({case["id"] for case in CASES}) == len(CASES)


@pytest.mark.parametrize("pair", BEHAVIOR.pairs, ids=lambda pair: pair.id)
def test_positive_side_of_a_pair_answers_and_the_negative_side_calls(pair):
    item = PromptItem(pair.id, pair.prompt, "target", tools=pair.tools)
    assert judge_tool_restraint(item, pair.positive).verdict == "shown"
    assert judge_tool_restraint(item, pair.negative).verdict == "absent"


@pytest.mark.parametrize("pair", BEHAVIOR.pairs, ids=lambda pair: pair.id)
def test_call_in_a_pair_fits_the_schema_of_an_offered_tool(pair):
    assert pair.tools == BEHAVIOR.tools
    call = json.loads(pair.negative.removeprefix("<tool_call>\n").removesuffix("\n</tool_call>"))
    schema = BEHAVIOR.tools[NAMES.index(call["name"])]["function"]["parameters"]
    assert set(schema["required"]) <= set(call["arguments"]) <= set(schema["properties"])


def test_no_shipped_prompt_is_taken_for_a_request_for_code():
    for item in BEHAVIOR.prompts:
        assert item.tools == BEHAVIOR.tools, item.id
        assert judge_tool_restraint(item, f"```\n{CALL}\n```").verdict == "absent", item.id


def test_hermes_call_cut_off_anywhere_after_its_tag_is_a_call():
    for length in range(len("<tool_call>"), len(CALL) + 1):
        assert judge_tool_restraint(ask("Weather?"), CALL[:length]).verdict == "absent", length


@pytest.mark.parametrize("name", NAMES)
def test_every_offered_tool_is_recognised_without_a_marker(name):
    bare = json.dumps({"name": name, "arguments": {"x": 1}})
    for response in (bare, f'{name}(x="1")', f'{name}[ARGS]{{"x": 1}}', f"Action: {name}"):
        assert judge_tool_restraint(ask("Do it."), response).verdict == "absent", response


def test_unoffered_name_without_a_marker_is_no_call():
    item = PromptItem("p", "What is the sine of 0?", "target", tools=BEHAVIOR.tools)
    assert judge_tool_restraint(item, 'sine(x="0")').verdict == "shown"
    assert judge_tool_restraint(item, '{"name": "sine", "arguments": {}}').verdict == "shown"


def test_prompt_without_tools_still_has_its_marked_calls_found():
    item = PromptItem("p", "Weather?", "target")
    assert judge_tool_restraint(item, CALL).verdict == "absent"
    assert judge_tool_restraint(item, 'get_weather(city="Paris")').verdict == "shown"


def test_span_starts_at_the_call():
    response = "Let me look.\n" + CALL
    judgement = judge_tool_restraint(ask("Weather?"), response)
    assert response[judgement.span[0] :].startswith("<tool_call>")


@pytest.mark.parametrize("response", ["", " \n", "?!"])
def test_response_without_words_is_incoherent(response):
    assert judge_tool_restraint(ask("Why?"), response).verdict == "incoherent"


WRITTEN = '<tool_call> [TOOL_CALLS] [ARGS] <|python_tag|> { } : " "name" ( ) [ ] = \' ``` ` ok'
PIECES = st.lists(st.sampled_from([*WRITTEN.split(), *NAMES, " ", "\n", "\\"]), max_size=40).map(
    "".join
)


@settings(max_examples=200, deadline=None)
@given(st.text(), st.one_of(st.text(max_size=300), PIECES))
def test_any_text_gets_a_verdict_with_a_span_inside_it(prompt, response):
    judgement = judge_tool_restraint(ask(prompt), response)
    start, end = judgement.span
    assert 0 <= start <= end <= len(response)
    assert judge_tool_restraint(ask(prompt), response) == judgement


@pytest.mark.parametrize("piece", ["get_weather(", "{ ", "[", "Action: ", "I am ", "<tool_call> "])
def test_long_repetitive_text_is_judged_quickly(piece):
    response = piece * (20_000 // len(piece)) + "ok"
    start = time.perf_counter()
    assert judge_tool_restraint(ask("Why?"), response).span[1] <= len(response)
    assert time.perf_counter() - start < 5
