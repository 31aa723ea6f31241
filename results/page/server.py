"""The report's page over HTTP, renewed as runs write. It serves this one page and nothing else."""

import hashlib
import ipaddress
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

from whitebench.errors import UserError

if TYPE_CHECKING:
    from results.page.page import Options

SECONDS_BETWEEN = 2.0
"""Between two readings of the run folders, at least."""

SHARE = 0.2
"""Of one core, about, that building pages may take while runs write all the time."""

CONTENT_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": CONTENT_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


class LivePage:
    """The newest page of some run folders, built again when a file in them has changed."""

    def __init__(self, roots: Sequence[Path], build: Callable[[], bytes]) -> None:
        self._roots, self._build, self._lock = roots, build, threading.Lock()
        self._next, self._state, self._content = 0.0, "", b""

    def content(self) -> tuple[bytes, str]:
        """The page and its tag, which changes with it."""
        with self._lock:
            start = time.monotonic()
            if start >= self._next:
                state = folder_state(self._roots)
                if state != self._state:
                    self._content, self._state = self._build(), state
                end = time.monotonic()
                self._next = end + max(SECONDS_BETWEEN, (end - start) / SHARE) if SECONDS_BETWEEN else end
            return self._content, f'"{self._state}"'


def folder_state(roots: Sequence[Path]) -> str:
    """A hash of names, sizes and times of the files that the page may show."""
    digest = hashlib.sha256()
    for root in roots:
        for path in _files(root):
            try:
                status = path.stat()
            except OSError:
                continue
            digest.update(f"{path}\0{status.st_size}\0{status.st_mtime_ns}\n".encode(errors="surrogatepass"))
    return digest.hexdigest()[:32]


def _files(root: Path) -> Iterator[Path]:
    """Files below a folder of runs, no links to folders followed; weights change together with their records."""
    for folder, folders, names in os.walk(root):
        folders.sort()
        yield from (
            Path(folder, name) for name in sorted(names) if not name.startswith(".") and not name.endswith(".pt")
        )


def own_names(host: str) -> frozenset[str]:
    """The names that this server goes by when it listens on `host`."""
    names = {"localhost", host.lower()}
    if host not in ("127.0.0.1", "::1", "localhost"):
        names |= {socket.gethostname().lower(), socket.getfqdn().lower()}
    return frozenset(names)


def host_allowed(header: str | None, names: frozenset[str]) -> bool:
    """Whether a request's Host header is one of `names`, or a numeric address.

    A page of the internet that lets its own name point here (DNS rebinding) sends that name, and is refused; numeric
    addresses cannot be rebound.
    """
    name = _host_name(header or "")
    if name in names:
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _host_name(header: str) -> str:
    """Without its port, and without the brackets of an IPv6 address."""
    text = header.strip().lower()
    return text[1:].partition("]")[0] if text.startswith("[") else text.partition(":")[0]


def handler(page: LivePage, host: str) -> type[BaseHTTPRequestHandler]:
    names = own_names(host)

    class Handler(BaseHTTPRequestHandler):
        server_version, sys_version = "whitebench", ""
        timeout = 30

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def _answer(self, with_body: bool) -> None:
            if not host_allowed(self.headers.get("Host"), names):
                self._refuse(HTTPStatus.MISDIRECTED_REQUEST, "this server does not go by that name", with_body)
            elif self.path != "/":
                self._refuse(HTTPStatus.NOT_FOUND, "only / is served", with_body)
            else:
                self._page(with_body)

        def _page(self, with_body: bool) -> None:
            try:
                content, tag = page.content()
            except Exception as error:  # the server outlives a folder that it cannot show
                print(f"error: the page could not be built: {type(error).__name__}: {error}", file=sys.stderr)
                text = "the page could not be built; see the terminal of the server"
                self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR, text, with_body)
                return
            if self.headers.get("If-None-Match") == tag:
                self._send(HTTPStatus.NOT_MODIFIED, b"", "text/html; charset=utf-8", tag, with_body=False)
            else:
                self._send(HTTPStatus.OK, content, "text/html; charset=utf-8", tag, with_body)

        def _refuse(self, status: HTTPStatus, text: str, with_body: bool) -> None:
            self._send(status, f"{text}\n".encode(), "text/plain; charset=utf-8", "", with_body)

        def _send(self, status: HTTPStatus, content: bytes, kind: str, tag: str, with_body: bool) -> None:
            self.send_response(status)
            headers = {**HEADERS, "Content-Type": kind, **({"ETag": tag} if tag else {})}
            if status != HTTPStatus.NOT_MODIFIED:
                headers["Content-Length"] = str(len(content))
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            if with_body:
                self.wfile.write(content)

        def handle(self) -> None:
            try:
                super().handle()
            except (ConnectionError, TimeoutError):  # the reader has gone
                self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:
            """Requests are not logged: an open page asks every two seconds."""

    return Handler


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, host: str, port: int, kind: type[BaseHTTPRequestHandler]) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), kind)

    def server_bind(self) -> None:
        """Without the look-up of the machine's full name, which may wait for a name server."""
        socket.socket.setsockopt(self.socket, socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])


def make_server(roots: Sequence[Path], host: str, port: int, build: Callable[[], bytes]) -> ThreadingHTTPServer:
    """A server that listens; `serve_forever` answers.

    Raises:
        UserError: the address cannot be listened on.
    """
    try:
        return _Server(host, port, handler(LivePage(roots, build), host))
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot listen on {host} port {port} ({reason}); choose another --port or --host") from error


def serve(roots: Sequence[Path], host: str, port: int, options: "Options") -> None:
    """Serves the page of `roots` until Ctrl-C."""
    from results.page.snapshot import build_page, read_runs

    server = make_server(roots, host, port, lambda: build_page(read_runs(roots), options))
    name = f"[{host}]" if ":" in host else host
    print(f"http://{name}:{server.server_port}/ shows {', '.join(map(str, roots))}; Ctrl-C ends it", flush=True)
    try:
        server.serve_forever(poll_interval=0.2)
    except KeyboardInterrupt:
        print("ended")
    finally:
        server.server_close()
