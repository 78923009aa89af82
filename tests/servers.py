"""srm-serve as tests start it: in a thread of their own process, or as the command."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from srm import Client, SentenceRewardModel


@contextmanager
def in_thread(model: SentenceRewardModel, **settings: Any) -> Iterator[str]:
    """The address of a server of `model`."""
    from srm.serving import ServerSettings, create_app, make_server

    listener = socket.create_server(("127.0.0.1", 0))
    chosen = ServerSettings(**settings)
    server = make_server(create_app(model, chosen), chosen)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        wait_until(lambda: server.started)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@contextmanager
def as_command(folder: Path, log: Path) -> Iterator[str]:
    """The address of `srm-serve --model FOLDER`, once it answers."""
    url = free_url()
    command = [sys.executable, "-m", "srm.cli.serve", "--model", str(folder), "--port", url.rpartition(":")[2]]
    with log.open("w") as out, subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT) as server:
        try:
            Client(url, retry_seconds=300).score(["Is it up?"], ["Yes."])
            yield url
        finally:
            server.terminate()


def free_url() -> str:
    """An address where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def wait_until(condition: Callable[[], Any], seconds: float = 300.0) -> None:
    """Return as soon as `condition` holds. The limit ends a test that hangs: a busy machine needs many times what a quiet one does."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)
