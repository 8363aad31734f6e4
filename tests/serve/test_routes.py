"""The routes, without a port: what they answer, and in which shape."""

import json

import pytest

from tests.serve.conftest import body

STEER = {"vector": "brevity", "layer": 3, "strength": 1.5}


def events(response):
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def test_a_chat_completion_has_the_openai_apis_shape(chat):
    found = chat(model="any-name-at-all").json()
    assert found["object"] == "chat.completion" and found["id"].startswith("chatcmpl-")
    choice = found["choices"][0]
    assert choice["message"]["role"] == "assistant" and choice["message"]["content"]
    assert choice["finish_reason"] in ("stop", "length")
    usage = found["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_a_stream_gives_the_same_text_in_pieces(chat):
    whole = chat(steering=[STEER], stop="zq").json()
    stream = events(chat(steering=[STEER], stream=True, stream_options={"include_usage": True}))
    pieces = [e["choices"][0]["delta"].get("content", "") for e in stream if e["choices"]]
    assert "".join(pieces) == whole["choices"][0]["message"]["content"]
    assert stream[0]["choices"][0]["delta"]["role"] == "assistant"
    assert stream[-2]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]
    usage = stream[-1]["usage"]
    assert usage["completion_tokens"] == whole["usage"]["completion_tokens"]


def test_steering_is_echoed_with_the_gates_score_and_what_it_decided(chat):
    opened = chat(steering=[{**STEER, "gate": "open"}]).json()
    shut = chat(steering=[{**STEER, "gate": "shut"}]).json()
    assert opened["steering"]["steered"] and opened["steering"]["gates"][0] > 0
    assert not shut["steering"]["steered"] and shut["steering"]["gates"][0] < 0
    assert opened["steering"]["steering"] == [
        {**STEER, "operator": "add", "scope": "all", "gate": "open"}
    ]
    text = [found["choices"][0]["message"]["content"] for found in (opened, shut)]
    assert text[1] == chat().json()["choices"][0]["message"]["content"] != text[0]


def test_a_preset_is_a_model_of_its_own(client, chat):
    models = client.get("/v1/models").json()["data"]
    # Other tests may have saved presets of their own.
    assert [m["id"] for m in models[:2]] == ["tiny/llama", "tiny/llama+short"]
    assert models[1]["steering"][0]["vector"] == "brevity"
    assert client.get("/v1/models/tiny/llama+short").json()["id"] == "tiny/llama+short"
    ways = (
        {"model": "tiny/llama+short"},
        {"preset": "short"},
        {"steering": [STEER]},
    )
    texts = {chat(**way).json()["choices"][0]["message"]["content"] for way in ways}
    assert len(texts) == 1


def test_a_preset_is_added_and_answers_at_once(client, chat):
    made = client.post("/v1/presets", json={"name": "mine", "steering": [STEER]})
    assert made.status_code == 201
    assert chat(preset="mine").json()["steering"]["preset"] == "mine"
    assert "mine" in client.get("/v1/vectors").json()["presets"]


def test_a_dose_is_another_way_to_say_a_strength(client, chat):
    layers = client.get("/v1/vectors").json()["vectors"]["brevity"]["layers"]
    dose = 1.5 * layers["3"]["dose_per_strength"]
    by_dose = chat(steering=[{"vector": "brevity", "layer": 3, "dose": dose}]).json()
    by_strength = chat(steering=[STEER]).json()
    assert by_dose["choices"] == by_strength["choices"]


def test_a_high_dose_that_nobody_measured_gives_a_warning(chat):
    high = chat(steering=[{**STEER, "strength": 5}]).json()["steering"]["warnings"]
    assert len(high) == 1 and "never measured" in high[0]
    assert chat(steering=[{**STEER, "strength": 0.5}]).json()["steering"]["warnings"] == []


def test_several_choices_differ_by_their_seeds_and_come_again(chat):
    asked = {"n": 3, "temperature": 1.0, "seed": 7}
    first, again = (chat(**asked).json()["choices"] for _ in range(2))
    assert len({c["message"]["content"] for c in first}) > 1
    assert first == again
    stream = events(chat(**asked, stream=True))
    for i, choice in enumerate(first):
        said = [c["delta"].get("content", "") for e in stream for c in e["choices"]
                if c["index"] == i]  # fmt: skip
        assert "".join(said) == choice["message"]["content"]


def test_a_stop_string_ends_the_text_before_it_in_both_ways(chat):
    text = chat(max_tokens=20).json()["choices"][0]["message"]["content"]
    stop = text[6:9]
    whole = chat(max_tokens=20, stop=[stop]).json()["choices"][0]
    assert whole["message"]["content"] == text[: text.index(stop)]
    assert whole["finish_reason"] == "stop"
    stream = events(chat(max_tokens=20, stop=[stop], stream=True))
    said = "".join(e["choices"][0]["delta"].get("content", "") for e in stream)
    assert said == whole["message"]["content"]


def test_log_probabilities_come_with_the_tokens(client, chat):
    found = chat(logprobs=True, top_logprobs=2).json()["choices"][0]
    entries = found["logprobs"]["content"]
    assert all(len(e["top_logprobs"]) == 2 and e["logprob"] <= 0 for e in entries)
    assert "".join(e["token"] for e in entries) == found["message"]["content"]
    asked = {"prompt": "Mix flour", "max_tokens": 4, "temperature": 0, "logprobs": 2}
    text = client.post("/v1/completions", json=asked).json()["choices"][0]
    assert len(text["logprobs"]["tokens"]) == len(text["logprobs"]["text_offset"]) == 4
    assert len(text["logprobs"]["top_logprobs"][0]) == 2


def test_projections_come_whole_and_in_streams(chat):
    whole = chat(steering=[STEER], projections=True).json()
    stream = events(chat(steering=[STEER], projections=True, stream=True))
    said = [e["projection"] for e in stream if "projection" in e]
    # A token that ended a character, or none, may come without text; it has its value all the same.
    assert whole["steering"]["projections"][0] == pytest.approx(said)


def test_text_completions_go_on_with_a_text(client):
    asked = {"model": "tiny", "prompt": ["Mix flour, water"], "max_tokens": 6, "temperature": 0}
    found = client.post("/v1/completions", json=asked).json()
    assert found["object"] == "text_completion" and found["choices"][0]["text"]
    stream = events(client.post("/v1/completions", json={**asked, "stream": True}))
    assert "".join(e["choices"][0]["text"] for e in stream) == found["choices"][0]["text"]


def test_the_next_turn_reports_the_tokens_it_knew(chat):
    first = chat("Write a short poem about the sea and the wind").json()
    reply = first["choices"][0]["message"]
    messages = [
        {"role": "user", "content": "Write a short poem about the sea and the wind"},
        {"role": reply["role"], "content": reply["content"]},
        {"role": "user", "content": "Another one"},
    ]
    usage = chat(messages=messages).json()["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] >= first["usage"]["prompt_tokens"] - 1


@pytest.mark.parametrize(
    ("change", "status", "param"),
    [
        ({"messages": []}, 400, "messages"),
        ({"messages": [{"role": "king", "content": "x"}]}, 400, "messages.0.role"),
        ({"messages": "hi"}, 400, "messages"),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"max_tokens": 10_000}, 400, "messages"),
        ({"temperature": -1}, 400, "temperature"),
        ({"temperature": "hot"}, 400, "temperature"),
        ({"n": 100}, 400, "n"),
        ({"stop": ["a"] * 50}, 400, "stop"),
        ({"stop": "x" * 300}, 400, "stop.0"),
        ({"logit_bias": {"5": 1}}, 400, None),
        ({"steering": [{"vector": "nobody"}]}, 400, "steering.0.vector"),
        ({"steering": [{"vector": "../../etc/passwd"}]}, 400, "steering.0.vector"),
        ({"steering": [{"vector": "brevity", "layer": 2}]}, 400, "steering.0.layer"),
        ({"steering": [{"vector": "brevity"}]}, 400, "steering.0.layer"),
        ({"steering": [{**STEER, "gate": "none"}]}, 400, "steering.0.gate"),
        ({"steering": [{**STEER, "dose": 1}]}, 400, "steering.0"),
        (
            {"steering": [{**STEER, "operator": "ablate", "strength": 3}]},
            400,
            "steering.0.strength",
        ),
        ({"steering": [STEER] * 50}, 400, "steering"),
        ({"steering": [STEER], "preset": "short"}, 400, "steering"),
        ({"preset": "nobody"}, 404, "preset"),
        ({"model": "tiny/llama+nobody"}, 404, "model"),
        ({"tools": [{"type": "function"}]}, 400, "tools.0.function"),
    ],
)
def test_what_is_wrong_with_a_request_is_said_in_the_apis_shape(chat, change, status, param):
    response = chat(**change)
    error = response.json()["error"]
    assert response.status_code == status
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == param and error["message"]


def test_a_stream_that_is_refused_has_its_own_status(chat):
    assert chat(stream=True, max_tokens=10_000).status_code == 400


@pytest.mark.parametrize("name", ["", "a/b", "..", "x y", "<b>", "a" * 300])
def test_a_presets_name_can_stand_in_a_url(client, name):
    made = client.post("/v1/presets", json={"name": name, "steering": [STEER]})
    assert made.status_code == 400


def test_metrics_and_health_are_told(client, chat):
    chat()
    text = client.get("/metrics").text
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if line[0] != "#")
    assert float(values["mlx_steer_response_tokens_total"]) > 0
    assert float(values['mlx_steer_requests_finished_total{reason="length"}']) > 0
    assert client.get("/health").json() == {"status": "ok"}


def test_an_unknown_route_or_method_is_told_as_json(client):
    assert client.get("/v1/nothing").json()["error"]["type"] == "invalid_request_error"
    assert client.get("/v1/chat/completions").status_code == 405
    assert client.get("/v1/models/nobody").status_code == 404


def test_the_bodys_defaults_are_the_apis(client):
    text = {"messages": body()["messages"], "max_tokens": 4}
    # At the API's temperature of 1, requests without a seed differ.
    said = {
        client.post("/v1/chat/completions", json=text).json()["choices"][0]["message"]["content"]
        for _ in range(6)
    }
    assert len(said) > 1
