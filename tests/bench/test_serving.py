"""bench/serving.py on a tiny model: it runs whole, and a wrong reward leaves no result."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

for name in ("fastapi", "prometheus_client", "httpx"):
    pytest.importorskip(name, reason="the server needs the extra `serve`")


@pytest.fixture
def serving(load: Any) -> Any:
    return load("serving")


def flags(model: Path, *more: str) -> list[str]:
    sizes = "--clients 8 --distinct 8 --plain 6 --group 4 --prompt 60 --response 12 --rounds 2 --check 2"
    return ["--model", str(model), *sizes.split(), *more]


@pytest.mark.slow
def test_it_runs_whole(serving: Any, tiny_backbone_dir: Path, fork: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    output = tmp_path / "out.json"

    def start(command: list[str], **_: Any) -> SimpleNamespace:
        """In a fork of a process that has imported torch and transformers."""
        process = fork(command[2], *command[3:], output=tmp_path / command[-1].lstrip("-"))
        return SimpleNamespace(terminate=process.terminate, wait=process.join)

    monkeypatch.setattr(serving, "subprocess", SimpleNamespace(Popen=start, DEVNULL=None))
    serving.main(flags(tiny_backbone_dir, "--json", str(output)))
    result = json.loads(output.read_text())
    assert result["rows_per_batch"]["no batching"] == 1 < result["rows_per_batch"]["batching"]
    for name, requests in (("shared", {"batching": 16, "no batching": 6}), ("distinct", {"batching": 8, "no batching": 6})):
        load = result["loads"][name]
        assert 57 <= load["prompt_tokens"] <= 63
        assert 9 <= load["response_tokens"] <= 15
        assert [entry["requests"] for entry in load["rounds"]] == [requests] * 2
        speed = {server: [requests[server] / entry["seconds"][server] for entry in load["rounds"]] for server in requests}
        ratios = [a / b for a, b in zip(speed["batching"], speed["no batching"], strict=True)]
        faster = load["batching_is_faster_by"].pop("no batching")
        assert load["batching_is_faster_by"] == {}
        assert [faster["low"], faster["median"], faster["high"]] == pytest.approx([min(ratios), sum(ratios) / 2, max(ratios)], abs=1e-3)
    assert "json" not in result["settings"]


def test_a_wrong_reward_ends_it(serving: Any):
    load = serving.Load(name="shared", prompts=[], responses=[], prompt_tokens=0, response_tokens=0, expected=[0.0, 1.0, 2.0])
    assert serving._check("batching", load, (1.0, [0.0, 1.0001])) == pytest.approx(1e-4 / (2 / 3) ** 0.5)
    for wrong in ([1.0, 0.0], [0.0, float("nan")]):
        with pytest.raises(SystemExit, match="batching, shared: a reward is off by"):
            serving._check("batching", load, (1.0, wrong))
