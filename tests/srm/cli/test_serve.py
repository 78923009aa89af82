"""srm-serve's flags and the line that each mistake gets."""

from __future__ import annotations

import socket

import pytest

from srm.cli.serve import _listen, main


def needs_server() -> None:
    for name in ("fastapi", "uvicorn", "prometheus_client"):
        pytest.importorskip(name, reason="the server needs the extra `serve`")


@pytest.mark.parametrize(
    ("flags", "token", "message"),
    [
        (["--max_queue", "0"], None, "--max_queue must be at least 1 and at most 2,147,483,647, got 0"),
        (["--max_wait_ms", "-1"], None, "--max_wait_ms must be at least 0 and at most 60,000, got -1.0"),
        *(
            ([flag, value], None, f"{flag} must be")
            for flag in ("--max_body_mb", "--max_wait_ms", "--receive_seconds")
            for value in ("nan", "inf")
        ),
        (["--max_body_mb=-1"], None, "--max_body_mb must be above 0"),
        (["--drain_seconds", "-1"], None, "--drain_seconds must be at least 0"),
        (["--policy_ends", " "], None, "the value after --policy_ends is empty"),
        (["--host", "é" * 80], None, "cannot listen on"),
        ([], " secret", "the token must be printable ASCII"),
        (["--port", "99999"], None, "--port must be at least 0 and at most 65,535, got 99999"),
        (["--host", "203.0.113.7"], None, "cannot listen on 203.0.113.7:8000"),
        (["--port", "0"], None, "no model could be loaded"),
    ],
)
def test_mistakes_are_one_line(flags, token, message, monkeypatch, capsys, tmp_path):
    needs_server()
    monkeypatch.delenv("SRM_TOKEN", raising=False)
    if token is not None:
        monkeypatch.setenv("SRM_TOKEN", token)
    assert main(["--model", str(tmp_path), *flags]) == 1
    error = capsys.readouterr().err
    assert error.startswith("srm-serve: ")
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("is_loading", [True, False])
def test_a_port_that_is_taken(is_loading, monkeypatch, capsys):
    """By a server, or by one that is still loading its model; found out before the second one loads its own."""
    needs_server()
    monkeypatch.setattr("srm.cli.serve.load_model", lambda *_: pytest.fail("loaded a model"))
    with _listen("127.0.0.1", 0) if is_loading else socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["--model", "nowhere", "--port", str(port)]) == 1
    error = capsys.readouterr().err
    assert f"srm-serve: cannot listen on 127.0.0.1:{port}" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("host", "token", "warns"),
    [("0.0.0.0", None, True), ("0.0.0.0", "secret", False), ("127.0.0.1", None, False), ("localhost", None, False)],
)
def test_a_server_that_anyone_can_use_says_so(host, token, warns, monkeypatch, capsys, tmp_path):
    needs_server()
    monkeypatch.delenv("SRM_TOKEN", raising=False)
    if token is not None:
        monkeypatch.setenv("SRM_TOKEN", token)
    assert main(["--model", str(tmp_path), "--host", host, "--port", "0"]) == 1
    error = capsys.readouterr().err
    assert ("ANYONE WHO REACHES 0.0.0.0 CAN USE THIS SERVER" in error) == warns
    assert error.count("\n") == 1 + warns
