"""`srm-serve` as a process: what it says, SIGTERM, SIGKILL and a new start."""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the server needs the extra `serve`")
pytest.importorskip("prometheus_client", reason="the server needs the extra `serve`")
pytest.importorskip("httpx", reason="the client needs the extra `serve`")

import httpx

from srm import AsyncClient, Client, SentenceRewardModel
from tests.servers import wait_until

TEXTS = [f"It is {number}. No, it is wrong!" for number in range(30)]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def is_up(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health").status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.slow
def test_kill_restart_and_drain(model: SentenceRewardModel, model_dir: Path, fork: Callable[..., BaseProcess], tmp_path: Path):
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    expected = [scored.reward for scored in model.score(["Is it warm?"] * len(TEXTS), TEXTS)]

    def start(name: str) -> BaseProcess:
        # One row a pass, so that a queue is there when the signals come.
        flags = ["--model", str(model_dir), "--device", "cpu", "--port", str(port), "--no_batching"]
        return fork("srm.cli.serve", *flags, output=tmp_path / name, SRM_TOKEN="secret")

    async def score_all(on_first: threading.Event) -> list[float]:
        async with AsyncClient(url, token="secret", retry_seconds=300) as client:

            async def one(text: str) -> float:
                scored = (await client.score(["Is it warm?"], [text]))[0]
                on_first.set()
                return scored.reward

            return await asyncio.gather(*map(one, TEXTS))

    def in_background() -> tuple[threading.Thread, threading.Event, list[float]]:
        on_first, rewards = threading.Event(), []
        thread = threading.Thread(target=lambda: rewards.extend(asyncio.run(score_all(on_first))))
        thread.start()
        return thread, on_first, rewards

    first = start("first")
    # The client is there before the server is, which counts as unreachable too.
    thread, on_first, rewards = in_background()
    assert on_first.wait(300)
    first.kill()
    first.join()
    assert first.exitcode == -signal.SIGKILL
    second = start("second")
    thread.join(300)
    assert rewards == pytest.approx(expected, abs=1e-5)

    # Drain: what the server has begun to read is answered, what comes later is refused.
    with httpx.Client(base_url=url, headers={"Authorization": "Bearer secret"}, timeout=120) as http:
        body = {"rows": [{"prompt": "Is it warm?", "response": text} for text in TEXTS * 10]}
        answers: list[httpx.Response] = []
        asking = threading.Thread(target=lambda: answers.append(http.post("/v1/rewards", json=body)))
        asking.start()
        metrics = httpx.Client(headers={"Authorization": "Bearer secret"})
        wait_until(lambda: "srm_queue_rows 0.0" not in metrics.get(f"{url}/metrics").text)
        second.terminate()
        wait_until(lambda: not is_up(url))
        assert second.is_alive(), "ended before it had answered"
        asking.join(300)
        metrics.close()
    assert answers[0].status_code == 200
    assert [row["reward"] for row in answers[0].json()["rewards"]] == pytest.approx(expected * 10, abs=1e-5)
    second.join(60)
    out, error = ((tmp_path / f"second.{name}").read_text() for name in ("out", "err"))
    assert second.exitcode == 0, error
    assert out.startswith(f"srm-serve: {model_dir} on cpu, {url} (documentation: {url}/docs)")
    assert "Traceback" not in error
    with Client(url, retry_seconds=0.1) as client, pytest.raises(Exception, match="cannot be reached"):
        client.score(["a"], ["It is."])
