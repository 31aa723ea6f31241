"""The report's server in a thread, for tests."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from results.page.server import make_server


@contextmanager
def serving(roots: list[Path], build: object = None) -> Iterator[int]:
    """The port of a server that answers with numbered pages."""
    numbers = iter(range(1, 1000))
    server = make_server(roots, "127.0.0.1", 0, build or (lambda: f"page {next(numbers)}".encode()))  # type: ignore[arg-type]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
