"""Commands of SLURM on PATH that ask the simulated controller in this process."""

import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.simulated_slurm.commands import NAMES, Commands

CLIENT = """#!/bin/bash
# asks the simulated controller: the number of words, the words, each with a null byte after it
exec 3<>/dev/tcp/127.0.0.1/{port}
printf '%s\\n' $(($# + 1)) >&3
printf '%s\\0' "${{0##*/}}" "$@" >&3
read -r code <&3
IFS= read -r -d '' errors <&3
printf '%s' "$errors" >&2
cat <&3
exit "$code"
"""


@contextmanager
def commands_on_path(commands: Commands, folder: Path) -> Iterator[None]:
    """Until the end, SLURM's commands of this process and its children are those in `folder`."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            count = int(self.rfile.readline())
            words: list[bytes] = []
            while len(words) < count:
                words.append(_word(self.rfile))
            name, *arguments = (word.decode() for word in words)
            with lock:
                answer = commands.run(name, arguments)
            self.wfile.write(f"{answer.code}\n{answer.errors}\0{answer.output}".encode())

    lock = threading.Lock()
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server, pytest.MonkeyPatch.context() as patch:
        server.daemon_threads = True
        folder.mkdir()
        for name in NAMES:
            (folder / name).write_text(CLIENT.format(port=server.server_address[1]))
            (folder / name).chmod(0o755)
        patch.setenv("PATH", str(folder), prepend=":")
        patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


def _word(stream: Any) -> bytes:
    """What stands before the next null byte."""
    word = bytearray()
    while (byte := stream.read(1)) not in (b"\0", b""):
        word += byte
    return bytes(word)
