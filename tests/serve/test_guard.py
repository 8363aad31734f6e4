"""Who may ask, and how much; and that garbage is refused in one sentence."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from mlx_steer.errors import SteerError
from mlx_steer.serve.app import make_app
from mlx_steer.serve.guard import LARGEST_BODY, Access
from mlx_steer.serve.server import checked_key
from tests.serve.conftest import body

CHAT = "/v1/chat/completions"


@pytest.fixture
def behind(offered):
    def client(access, host="localhost"):
        return TestClient(
            make_app(offered, access), f"http://{host}", raise_server_exceptions=False
        )

    return client


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "localhost:8080", "[::1]:8080"])
def test_this_machines_own_names_are_answered(client, host):
    assert client.get("/health", headers={"host": host}).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil", ""])
def test_another_host_name_is_refused_on_loopback(client, host):
    response = client.get("/health", headers={"host": host})
    assert response.status_code == 421
    assert response.json()["error"]["code"] == "wrong_host"


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_what_a_foreign_page_can_send_unasked_is_refused(client, kind):
    response = client.post(CHAT, content=json.dumps(body()), headers={"content-type": kind})
    assert response.status_code == 415


def test_no_foreign_page_may_read_unless_it_was_allowed(behind):
    origin = {"origin": "https://app.example"}
    closed = behind(Access()).get("/v1/models", headers=origin)
    assert "access-control-allow-origin" not in closed.headers
    access = Access(origins=frozenset(["https://app.example"]))
    opened = behind(access).get("/v1/models", headers=origin)
    assert opened.headers["access-control-allow-origin"] == "https://app.example"
    other = behind(access).get("/v1/models", headers={"origin": "https://other.example"})
    assert "access-control-allow-origin" not in other.headers
    asked = behind(access).options(
        CHAT, headers={**origin, "access-control-request-method": "POST"}
    )
    assert asked.status_code == 200
    assert "authorization" in asked.headers["access-control-allow-headers"]


@pytest.mark.parametrize(
    ("sent", "status"),
    [(None, 401), ("Bearer wrong", 401), ("Bearer ké", 401), ("Basic secret", 401),
     ("secret", 401), ("Bearer secret", 200), ("bearer secret", 200)],
)  # fmt: skip
def test_a_key_must_be_known_if_there_is_one(behind, sent, status):
    client = behind(Access.of("0.0.0.0", "secret"), host="any.example")
    headers = {} if sent is None else {"authorization": sent.encode()}
    response = client.get("/v1/models", headers=headers)
    assert response.status_code == status
    if status == 401:
        assert response.json()["error"]["type"] == "authentication_error"
    assert client.get("/").status_code == client.get("/health").status_code == 200


def test_another_address_needs_a_key():
    assert checked_key("127.0.0.1", None) is None
    for host in ("0.0.0.0", "192.168.1.5", "::"):
        assert checked_key(host, "secret") == "secret"
        with pytest.raises(SteerError, match="api-key"):
            checked_key(host, None)
    with pytest.raises(SteerError, match="ASCII"):
        checked_key("127.0.0.1", "")


def test_large_bodies_are_refused_by_their_header_and_by_their_length(client):
    large = b" " * (LARGEST_BODY + 1)
    headers = {"content-type": "application/json"}
    assert client.post(CHAT, content=large, headers=headers).status_code == 413
    in_parts = (large[i : i + 65536] for i in range(0, len(large), 65536))
    assert client.post(CHAT, content=in_parts, headers=headers).status_code == 413
    lying = {**headers, "content-length": "9" * 30}
    assert client.post(CHAT, content=b"{}", headers=lying).status_code == 413


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"null", b"[]", b"\xff\xfe", b'"' * 9, b"[" * 100_000, b'{"messages":' * 9999,
     b'{"messages": [{"role": "user", "content": "\\ud800"}]}', b"NaN", b"1e999"],
)  # fmt: skip
def test_a_body_that_is_no_request_is_refused(client, data):
    response = client.post(CHAT, content=data, headers={"content-type": "application/json"})
    assert response.status_code == 400
    assert response.json()["error"]["message"]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip
FIELDS = st.sampled_from(
    ["messages", "model", "steering", "preset", "max_tokens", "temperature", "top_p", "top_k",
     "min_p", "seed", "n", "stop", "stream", "stream_options", "tools", "logprobs", "top_logprobs",
     "projections", "tool_choice", "response_format"]
)  # fmt: skip


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.dictionaries(FIELDS, VALUES, min_size=1, max_size=4))
def test_fields_of_any_kind_are_answered_or_refused_and_never_break_the_server(client, change):
    text = json.dumps({**body(), "max_tokens": 2, **change})
    headers = {"content-type": "application/json"}
    response = client.post(CHAT, content=text, headers=headers)
    assert response.status_code in (200, 400, 404), response.text
    assert client.get("/health").status_code == 200


def test_the_page_may_load_nothing_from_elsewhere(client):
    page = client.get("/")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "http://" not in page.text.replace("http://www.w3.org", "")
    assert "https://" not in page.text
    assert page.headers["x-content-type-options"] == "nosniff"
