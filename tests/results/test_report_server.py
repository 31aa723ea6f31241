"""The live page: it is served to this machine only, is renewed as runs write, and nothing else is served."""

import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from results.page import server as module
from results.page.server import LivePage, folder_state, host_allowed, make_server, own_names
from tests.support.report_runs import history
from tests.support.report_server import serving
from tests.support.run_records import Records
from whitebench.errors import UserError

ROOT = Path(__file__).parents[2]


def ask(port: int, path: str = "/", method: str = "GET", **headers: str) -> tuple[int, bytes, str]:
    """Status, body and ETag."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return response.status, body, response.headers.get("ETag", "")


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders are looked at for every request."""
    monkeypatch.setattr(module, "SECONDS_BETWEEN", 0.0)


def test_the_page_is_built_again_only_when_a_file_has_changed(tmp_path: Path, now: None) -> None:
    (tmp_path / "a").write_text("1")
    with serving([tmp_path]) as port:
        status, body, tag = ask(port)
        assert (status, body) == (200, b"page 1")
        assert ask(port)[1] == b"page 1"
        assert ask(port, If_None_Match=tag)[:2] == (304, b"")
        (tmp_path / "a").write_text("1\n2")
        status, body, newer = ask(port, If_None_Match=tag)
        assert (status, body) == (200, b"page 2")
        assert newer != tag
        assert ask(port, method="HEAD")[:2] == (200, b"")


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "/../../etc/passwd", "//etc/passwd", "/run.json", "/?x=1", "/%2e%2e/", "*", "/index.html"]
)
def test_other_paths_are_refused(tmp_path: Path, path: str) -> None:
    with serving([tmp_path]) as port:
        status, body, _ = ask(port, path)
        assert (status, body) == (404, b"only / is served\n")


def test_other_methods_are_refused(tmp_path: Path) -> None:
    with serving([tmp_path]) as port:
        assert ask(port, method="POST")[0] == 501
        assert ask(port, method="PUT")[0] == 501


def test_names_of_other_hosts_are_refused(tmp_path: Path) -> None:
    with serving([tmp_path]) as port:
        assert ask(port, Host=f"evil.example:{port}")[0] == 421
        assert ask(port, Host=f"localhost:{port}")[0] == 200
    names = own_names("127.0.0.1")
    for header in ("localhost", "127.0.0.1:8321", "[::1]:8321", "LOCALHOST:1"):
        assert host_allowed(header, names)
    for header in (None, "", "evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "[evil", "a:b:c"):
        assert not host_allowed(header, names)
    assert host_allowed("login.cluster", own_names("login.cluster"))


def test_a_page_that_cannot_be_built_does_not_end_the_server(
    tmp_path: Path, now: None, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = iter([RuntimeError("broken"), b"whole"])

    def build() -> bytes:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    with serving([tmp_path], build) as port:
        assert ask(port)[0] == 500
        assert ask(port)[:2] == (200, b"whole")
    assert "RuntimeError: broken" in capsys.readouterr().err


def test_an_address_that_cannot_be_listened_on_is_one_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UserError, match="choose another --port"):
            make_server([tmp_path], "127.0.0.1", taken.getsockname()[1], bytes)
    for host, port in (("203.0.113.1", 0), ("no such host", 0), ("127.0.0.1", 99999)):
        with pytest.raises(UserError, match="cannot listen"):
            make_server([tmp_path], host, port, bytes)


def test_the_state_of_a_folder_follows_its_files_and_no_links(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    before = folder_state([tmp_path])
    (tmp_path / "a" / "metrics.jsonl").write_text("1\n")
    after = folder_state([tmp_path])
    assert before != after
    (tmp_path / "loop").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert folder_state([tmp_path, tmp_path / "missing"]) == folder_state([tmp_path])
    assert LivePage([tmp_path], lambda: b"x").content()[0] == b"x"


def test_the_command_serves_runs_as_they_write_and_ends_with_ctrl_c(tmp_path: Path) -> None:
    records = Records(tmp_path / "runs")
    records.root.mkdir()
    command = [sys.executable, "-u", "results/report.py", "--serve", "--port", "0", str(records.root)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        address = re.search(r"http://127\.0\.0\.1:(\d+)/", process.stdout.readline())
        assert address is not None
        port = int(address[1])
        assert b"No run is in this page" in ask(port)[1]
        run = records.pretrain("byol", 5, status="running")
        folder = records.root / "pretrain" / run
        history(folder)
        (folder / "own.log").write_text("the newest line\n")
        (folder / "attempts.jsonl").write_text(f'{{"log": "{folder / "own.log"}"}}\n')
        text = wait_for(port, run)
        assert "6 of 6" in text
        assert "the newest line" in text
        assert "connect-src 'self'" in text
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=300) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def wait_for(port: int, word: str) -> str:
    """The page once it holds a word."""
    for _ in range(3000):
        text = ask(port)[1].decode()
        if word in text:
            return text
        threading.Event().wait(0.1)
    pytest.fail(f"{word} did not come")
