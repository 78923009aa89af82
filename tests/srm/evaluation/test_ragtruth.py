"""RAGTruth's two files, in rows written by hand in the form of its README."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from srm.errors import UserError
from srm.evaluation.spans import has_spans, read_spans

LABEL = {"start": 6, "end": 9, "text": "Bad", "meta": "", "label_type": "Evident Conflict", "implicit_true": False, "due_to_null": False}


def response(number: int, **changes: Any) -> dict[str, Any]:
    row = {"id": str(number), "source_id": "9", "model": "m", "temperature": 0.7, "labels": [LABEL], "split": "test", "quality": "good"}
    return {**row, "response": "Good. Bad.", **changes}


def put(folder: Path, *responses: dict[str, Any]) -> str:
    source = {"source_id": "9", "task_type": "QA", "source": "MARCO", "source_info": "", "prompt": "Why?"}
    for name, rows in (("response", responses), ("source_info", [source])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


def test_good_responses_of_the_test_split(tmp_path: Path) -> None:
    rows = [
        response(0),
        response(1, split="train"),
        response(2, quality="truncated"),
        response(3, labels=[]),
        response(4, labels=[{**LABEL, "implicit_true": True}]),
    ]
    source = put(tmp_path, *rows)
    assert has_spans(source)
    spans = read_spans(source)
    # What the prompt does not say and is true all the same is marked too, and counts, as in its own baseline.
    assert [(row.id, row.prompt, len(row.errors)) for row in spans] == [("0", "Why?", 1), ("3", "Why?", 0), ("4", "Why?", 1)]
    assert spans[0].errors == ({"start": 6, "end": 9, "kind": "Evident Conflict"},)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (response(0, source_id="8"), "`source_id` '8' is not in source_info.jsonl"),
        (response(0, labels=[{**LABEL, "start": 5, "end": 8}]), "`labels`: the response has ' Ba' where the label says 'Bad'"),
        (response(0, labels=[{**LABEL, "end": 90}]), "`labels`: the response has 'Bad.' where the label says 'Bad'"),
        (response(0, labels=None), "`labels` must be a list of objects"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    source = put(tmp_path, response(1), row)
    with pytest.raises(UserError, match=message) as error:
        read_spans(source)
    assert "response.jsonl line 2" in str(error.value)
    assert [row.id for row in read_spans(source, skip_bad_rows=True)] == ["1"]


def test_nothing_of_the_test_split(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"response\.jsonl has no row with split 'test' and quality 'good'"):
        read_spans(put(tmp_path, response(0, split="train")))
