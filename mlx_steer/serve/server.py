"""The server as a process: the model's thread is the caller's, the event loop has its own."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

import uvicorn

from mlx_steer.errors import SteerError
from mlx_steer.serve.app import make_app
from mlx_steer.serve.completions import Service
from mlx_steer.serve.guard import Access, is_loopback
from mlx_steer.serve.scheduler import Scheduler

# How long responses may go on after Ctrl-C.
GRACE_SECONDS = 10
_MOST_CONNECTIONS = 512


@dataclass(frozen=True)
class Address:
    """Where a server listens.

    Attributes:
        host: A name or an address.
        port: 0 takes any that is free.
    """

    host: str = "127.0.0.1"
    port: int = 8080

    def listen(self) -> socket.socket:
        """Take the port.

        Raises:
            SteerError: If that cannot be done.
        """
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        try:
            return socket.create_server((self.host, self.port), family=family)
        except OSError as error:
            raise SteerError(
                f"cannot listen at {self.host}, port {self.port}: {error.strerror or error}; "
                "choose another with --port"
            ) from error


def checked_key(host: str, api_key: str | None) -> str | None:
    """The API key, which must be there where other machines can ask.

    Raises:
        SteerError: If it is missing, or cannot stand in a header.
    """
    if api_key is not None and not (api_key.isascii() and api_key.isprintable() and api_key):
        raise SteerError("the API key must be of printable ASCII characters")
    if api_key is None and not is_loopback(host):
        raise SteerError(
            f"at {host} other machines can reach the server; give an --api-key that they must know"
        )
    return api_key


def serve(
    scheduler: Scheduler,
    service: Service,
    access: Access,
    listener: socket.socket,
    on_start: Callable[[int], None],
) -> None:
    """Serve until Ctrl-C or SIGTERM; the calling thread must be the main one, and runs the model.

    Args:
        scheduler: The living batch that the service asks.
        service: What is served.
        access: Who may ask.
        listener: From `Address.listen`.
        on_start: Called with the port when requests are taken.
    """
    config = uvicorn.Config(
        make_app(service, access),
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        lifespan="off",
        ws="none",
        limit_concurrency=_MOST_CONNECTIONS,
        timeout_keep_alive=15,
        timeout_graceful_shutdown=5,
    )
    server = uvicorn.Server(config)

    def listen() -> None:
        try:
            server.run([listener])
        finally:
            scheduler.stop()

    thread = threading.Thread(target=listen, name="http")
    with _stopping_on_signals(scheduler):
        thread.start()
        try:
            while not server.started and thread.is_alive():
                thread.join(0.02)
            on_start(listener.getsockname()[1])
            scheduler.run()
        finally:
            server.should_exit = True
            thread.join()


@contextmanager
def _stopping_on_signals(scheduler: Scheduler) -> Iterator[None]:
    """The first signal lets responses end, the second one does not."""
    times = 0

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal times
        scheduler.stop(0.0 if times else GRACE_SECONDS)
        times += 1

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
