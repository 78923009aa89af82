"""Requests made from the server's own description, and bent: none may be answered with 5xx."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, Phase, given, settings

schemathesis = pytest.importorskip("schemathesis", reason="requests from the OpenAPI document need schemathesis")
pytest.importorskip("fastapi", reason="the server needs the extra `serve`")
pytest.importorskip("prometheus_client", reason="the server needs the extra `serve`")


@pytest.mark.parametrize("path", ["/v1/rewards", "/get_reward"])
@pytest.mark.parametrize("mode", ["positive", "negative"])
def test_no_request_is_answered_with_5xx(serve: Callable[..., str], path: str, mode: str):
    document = schemathesis.openapi.from_url(f"{serve()}/openapi.json")
    answers: Counter[int] = Counter()

    @settings(max_examples=25, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(case=document[path]["POST"].as_strategy(generation_mode=schemathesis.GenerationMode(mode)))
    def ask(case: schemathesis.Case) -> None:
        answer = case.call()
        answers[answer.status_code] += 1
        assert answer.status_code < 500, answer.text

    ask()
    assert answers[422] > 0
    assert set(answers) <= ({200, 422} if mode == "positive" else {200, 401, 405, 413, 415, 422})
