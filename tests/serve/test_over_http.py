"""Over a real port: the openai client, clients that hang up or are slow, the command itself."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from urllib.request import Request, urlopen

import openai
import pytest

from mlx_steer.serve import app
from tests.helpers.serving import tiny_vectors
from tests.helpers.tiny import tiny_folder
from tests.serve.conftest import body

STEER = {"vector": "brevity", "layer": 3, "strength": 1.5}
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
    },
}


@pytest.fixture(scope="module")
def openai_client(address):
    return openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=30)


def test_the_openai_client_chats_steered_and_streams_the_same(openai_client):
    asked = {
        **body(), "model": "tiny/llama", "extra_body": {"steering": [STEER], "top_k": 5}
    }  # fmt: skip
    whole = openai_client.chat.completions.create(**asked)
    assert whole.choices[0].message.content
    assert whole.steering["steered"]  # further fields come through
    stream = openai_client.chat.completions.create(**asked, stream=True)
    said = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert said == whole.choices[0].message.content


def test_the_openai_client_lists_models_and_uses_a_preset(openai_client):
    assert "tiny/llama+short" in {model.id for model in openai_client.models.list()}
    found = openai_client.chat.completions.create(**body(), model="tiny/llama+short")
    assert found.steering["preset"] == "short"
    text = openai_client.completions.create(model="tiny/llama", prompt="Mix", max_tokens=3)
    assert text.usage.completion_tokens <= 3


def test_the_openai_client_raises_its_own_errors(openai_client):
    with pytest.raises(openai.BadRequestError) as wrong:
        openai_client.chat.completions.create(**body(temperature=-3), model="m")
    assert wrong.value.param == "temperature"
    with pytest.raises(openai.NotFoundError):
        openai_client.chat.completions.create(**body(), model="tiny/llama+nobody")


def test_the_openai_client_offers_tools(openai_client):
    """The tiny model calls nothing; what is offered must reach its prompt."""
    asked = {**body("Hi"), "model": "tiny/llama", "max_tokens": 4}
    bare = openai_client.chat.completions.create(**asked)
    offered = openai_client.chat.completions.create(**asked, tools=[TOOL])
    none = openai_client.chat.completions.create(**asked, tools=[TOOL], tool_choice="none")
    assert offered.usage.prompt_tokens > bare.usage.prompt_tokens == none.usage.prompt_tokens
    assert offered.choices[0].message.tool_calls is None


def test_32_openai_clients_at_once_get_what_each_gets_alone(address):
    async def ask(client, i):
        steer = {**STEER, "strength": 0.1 * i, "layer": 1 + 2 * (i % 2)}
        if i % 4 == 0:
            steer["gate"] = "open" if i % 8 else "shut"
        asked = body(f"Question {i}", model="m", extra_body={"steering": [steer]})
        stream = await client.chat.completions.create(**asked, stream=True)
        return "".join([c.choices[0].delta.content or "" async for c in stream if c.choices])

    async def all_of_them():
        async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="none") as client:
            together = await asyncio.gather(*(ask(client, i) for i in range(32)))
            alone = [await ask(client, i) for i in range(0, 32, 5)]
        return together, alone

    together, alone = asyncio.run(all_of_them())
    assert len(set(together)) > 20
    assert together[::5] == alone


def raw(address, data):
    host, port = address.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=20)
    connection.sendall(data)
    return connection


def request(address, more, extra=b""):
    sent = json.dumps(body(**more)).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json"
    return f"{head}\r\nContent-Length: {len(sent) + len(extra)}\r\n\r\n".encode() + sent


def quiet(scheduler):
    """Wait until nothing runs any more."""
    until = time.monotonic() + 10
    while (load := scheduler.load()).running or load.waiting:
        assert time.monotonic() < until, load
        time.sleep(0.02)
    return load


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_hangs_up_frees_its_place(address, scheduler, stream):
    before = quiet(scheduler).finished.get("cancelled", 0)
    # A sampled response of up to 200 tokens under a seed at which it does not end early.
    long = {"max_tokens": 200, "temperature": 1.5, "seed": 11, "stream": stream}
    for _ in range(3):
        raw(address, request(address, long)).close()
    until = time.monotonic() + 10
    while scheduler.load().finished.get("cancelled", 0) < before + 3:
        assert time.monotonic() < until
        time.sleep(0.02)
    quiet(scheduler)


def test_a_body_that_does_not_come_is_given_up(address, monkeypatch):
    monkeypatch.setattr(app, "_BODY_SECONDS", 0.3)
    connection = raw(address, request(address, {}, extra=b" " * 100))
    assert b"408" in connection.recv(200).split(b"\r\n")[0]
    connection.close()


def test_garbage_on_the_wire_ends_its_own_connection_only(address):
    for data in (b"\x00\xff\x16\x03\x01", b"GET / HTTP/9.9\r\n\r\n", b"POST /v1 HTTP/1.1\r\n\r\n"):
        connection = raw(address, data + b"\r\n\r\n")
        connection.settimeout(5)
        assert b" 4" in connection.recv(100)
        connection.close()
    with urlopen(f"{address}/health") as response:
        assert response.status == 200


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    home = tmp_path_factory.mktemp("serve")
    model = tiny_folder("llama", home / "model")
    tiny_vectors().save(home / "vectors")
    return model, home / "vectors"


def command(*arguments, **more):
    program = [sys.executable, "-c", "from mlx_steer.cli import main; main()", "serve"]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [*program, *map(str, arguments)], stdout=pipe, stderr=pipe, text=True, **more
    )


def test_the_command_serves_until_ctrl_c(folders):
    model, vectors = folders
    preset = "low=calm,layer:3,strength:0.4"
    file = vectors.parent / "high.yaml"
    file.write_text("vectors: {calm: vectors}\nsteering: [{vector: calm, layer: 1, strength: 2}]")
    with command("--model", model, "--vectors", f"calm={vectors}", "--preset", preset,
                 "--preset", file, "--port", 0) as process:  # fmt: skip
        line = process.stdout.readline()
        url = line.split(" is served at ")[1].split()[0]
        asked = Request(
            f"{url}/v1/chat/completions",
            json.dumps(body(preset="low")).encode(),
            {"Content-Type": "application/json"},
        )
        with urlopen(asked) as response:
            assert json.load(response)["steering"]["preset"] == "low"
        with urlopen(url) as response:
            assert b"playground" in response.read()
        with urlopen(f"{url}/v1/models") as response:
            assert [m["id"].rpartition("+")[2] for m in json.load(response)["data"][1:]] == [
                "low",
                "high",
            ]
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        said = process.stderr.read()
    assert "vectors: calm" in said and "stopped" in said and "Traceback" not in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--host", "0.0.0.0"], "--api-key"),
        (["--preset", "x=nobody,layer:1"], "there are no vectors"),
        (["--preset", "x"], "NAME=VECTORS"),
        (["--vectors", "{home}/nowhere"], "nowhere"),
        (["--vectors", "a b={vectors}"], "letters, digits"),
    ],
)
def test_what_cannot_be_served_is_said_in_a_sentence(folders, run, arguments, said):
    model, vectors = folders
    filled = [a.format(vectors=vectors, home=vectors.parent) for a in arguments]
    result = run("serve", "--model", model, "--port", 0, *filled)
    assert result.code == 2 and not result.out
    assert said in result.err


def test_a_port_that_is_taken_is_said(folders, run):
    with socket.create_server(("127.0.0.1", 0)) as other:
        result = run("serve", "--model", folders[0], "--port", other.getsockname()[1])
    assert result.code == 2 and "choose another with --port" in result.err


@pytest.mark.slow
def test_kill_9_leaves_nothing_that_a_new_start_trips_over(folders):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    for _ in range(2):
        with command("--model", folders[0], "--port", port) as process:
            assert "is served at" in process.stdout.readline()
            os.kill(process.pid, signal.SIGKILL)
