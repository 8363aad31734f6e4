"""A tiny model behind the routes, and behind a real port."""

import pytest
from starlette.testclient import TestClient

from mlx_steer.serve.app import make_app
from mlx_steer.serve.guard import Access
from mlx_steer.serve.protocol import Steer
from tests.helpers.serving import listening, living, service
from tests.helpers.tiny import tiny_model


@pytest.fixture(scope="session")
def model():
    return tiny_model()


@pytest.fixture(scope="session")
def scheduler(model):
    with living(model) as running:
        yield running


@pytest.fixture(scope="session")
def offered(scheduler, model):
    found = service(scheduler, model)
    found.catalog.add_preset("short", (Steer(vector="brevity", layer=3, strength=1.5),))
    return found


@pytest.fixture(scope="session")
def client(offered):
    app = make_app(offered, Access())
    return TestClient(app, base_url="http://localhost", raise_server_exceptions=False)


@pytest.fixture(scope="session")
def address(offered):
    """The same service behind uvicorn and a port of this machine."""
    with listening(offered) as found:
        yield found


def body(text="What is the capital of France?", **more):
    messages = [{"role": "user", "content": text}]
    return {"messages": messages, "temperature": 0, "max_tokens": 8, **more}


@pytest.fixture
def chat(client):
    """Ask by /v1/chat/completions; gives the response."""
    return lambda *text, **more: client.post("/v1/chat/completions", json=body(*text, **more))
