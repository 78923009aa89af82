"""What the readers do with many rows: limits, dropped rows, real data."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from srm.data import read_comparisons, read_prompts, read_responses
from srm.data.read import first_pass
from srm.errors import UserError

Write = Callable[..., str]


def pair(number: int) -> dict[str, Any]:
    return {"id": number, "prompt": f"prompt {number}", "chosen": "yes", "rejected": "no"}


def ranking(number: int, length: int) -> dict[str, Any]:
    return {"id": number, "prompt": "p", "responses": [f"answer {index}" for index in range(length)]}


@pytest.mark.parametrize(
    ("rows", "max_pairs", "ids"),
    [
        ([pair(1), pair(2), pair(3)], 2, "12"),
        ([pair(1), pair(2), pair(3)], 3, "123"),
        ([pair(1), pair(2), pair(3)], 9, "123"),
        ([pair(1), pair(2), pair(3)], None, "123"),
        # Three responses make three pairs.
        ([pair(1), ranking(2, 3), pair(3)], 4, "12"),
        ([pair(1), ranking(2, 3), pair(3)], 3, "1"),
        ([ranking(1, 3), pair(2)], 1, "1"),
    ],
)
def test_max_pairs(rows: list[dict[str, Any]], max_pairs: int | None, ids: str, write: Write) -> None:
    assert "".join(row.id for row in read_comparisons(write("p.jsonl", rows), max_pairs=max_pairs)) == ids


def test_max_pairs_leaves_the_rest_unread(write: Write) -> None:
    path = write("p.jsonl", [pair(1), pair(2), {"broken": 1}])
    assert len(read_comparisons(path, max_pairs=2)) == 2
    with pytest.raises(UserError):
        read_comparisons(path)


def test_max_pairs_must_be_positive(write: Write) -> None:
    with pytest.raises(ValueError, match="`max_pairs` must be at least 1, got 0"):
        read_comparisons(write("p.jsonl", [pair(1)]), max_pairs=0)


BROKEN = b'{"id": 1, "prompt": "a", "chosen": "b", "rejected": "c"}\n{oops\n{"prompt": "a", "chosen": "", "rejected": "c"}\n'


def test_bad_rows_stop_the_reader(write: Write) -> None:
    with pytest.raises(UserError, match=r"p\.jsonl line 2: malformed JSON"):
        read_comparisons(write("p.jsonl", BROKEN))


def test_dropped_rows_are_reported(write: Write, caplog: pytest.LogCaptureFixture) -> None:
    path = write("p.jsonl", BROKEN)
    with caplog.at_level(logging.WARNING, logger="srm.data.read"):
        assert [row.id for row in read_comparisons(path, skip_bad_rows=True)] == ["1"]
    (record,) = caplog.records
    assert record.getMessage() == (
        f"{path}: dropped 2 of 3 rows that cannot be used: {path} line 2: malformed JSON (Expecting property name enclosed in double "
        f"quotes at column 2); {path} line 3: `chosen` is empty"
    )


def test_the_report_lists_the_first_few(write: Write, caplog: pytest.LogCaptureFixture) -> None:
    path = write("p.jsonl", [pair(0), *({"row": number} for number in range(9))])
    read_comparisons(path, skip_bad_rows=True)
    message = caplog.records[0].getMessage()
    assert "dropped 9 of 10 rows" in message
    assert "line 6" in message
    assert "line 7" not in message
    assert message.endswith("; and 4 more")


def test_rows_dropped_before_an_early_stop_are_reported(write: Write, caplog: pytest.LogCaptureFixture) -> None:
    read_comparisons(write("p.jsonl", [{"row": 1}, pair(1), {"row": 2}]), skip_bad_rows=True, max_pairs=1)
    assert "dropped 1 of 2 rows" in caplog.records[0].getMessage()


def test_no_warning_without_bad_rows(write: Write, caplog: pytest.LogCaptureFixture) -> None:
    read_comparisons(write("p.jsonl", [pair(1)]), skip_bad_rows=True)
    assert not caplog.records


def test_no_usable_row_at_all(write: Write) -> None:
    path = write("p.jsonl", [{"question": "a"}, {"question": "b"}])
    with pytest.raises(UserError) as caught:
        read_comparisons(path, skip_bad_rows=True)
    start = f"{path}: none of the 2 rows can be used. The first: {path} line 1: there are no responses (columns found: question;"
    assert str(caught.value).startswith(start)


@pytest.mark.parametrize("damage", [b"", b"\n"])
def test_an_empty_file_is_no_bad_row(damage: bytes, write: Write) -> None:
    with pytest.raises(UserError, match="the file has no rows"):
        read_comparisons(write("p.jsonl", damage), skip_bad_rows=True)


def test_responses_of_every_form(write: Write, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"prompt": "p", "response": "r"}, {"oops": 1}, pair(7), ranking(8, 3)]
    path = write("p.jsonl", rows)
    read = list(read_responses(path, skip_bad_rows=True))
    assert [row.id for row in read] == ["p-1", "7/chosen", "7/rejected", "8/1", "8/2", "8/3"]
    assert [row.row for row in read] == [1, 3, 3, 4, 4, 4]
    assert "dropped 1 of 4 rows" in caplog.records[0].getMessage()


def test_real_pairs(shared_data: Path) -> None:
    rows = read_comparisons(str(shared_data / "pairs_test.jsonl.gz"))
    assert len(rows) == len({row.id for row in rows}) == 7356
    kinds = Counter(type(row.prompt).__name__ for row in rows)
    assert kinds == {"str": 6901, "list": 455}
    assert all(row.prompt[-1]["role"] == "user" for row in rows if isinstance(row.prompt, list))
    assert all({"source", "subset"} == row.extra.keys() for row in rows)


def test_real_sections(shared_data: Path) -> None:
    rows = read_comparisons(str(shared_data / "suite_dev.jsonl.gz"))
    assert len(rows) == 2739
    assert {row.extra["section"] for row in rows} == {"Chat", "Chat Hard", "Safety", "Reasoning"}


def test_real_responses(shared_data: Path) -> None:
    rows = list(read_responses(str(shared_data / "error_spans.jsonl.gz")))
    assert len(rows) == 245
    for row in rows:
        assert all(0 <= error["start"] < error["end"] <= len(row.response) for error in row.extra["errors"])


def test_a_folder_of_real_data_has_its_splits(shared_data: Path, tmp_path: Path) -> None:
    for name in ("pairs_train.jsonl.gz", "pairs_test.jsonl.gz"):
        (tmp_path / name).symlink_to((shared_data / name).resolve())
    assert len(read_comparisons(str(tmp_path), split="train", max_pairs=100)) == 100


def test_prompts_of_conversations(write: Callable[..., str]) -> None:
    user, other = ({"role": "user", "content": text} for text in ("Why?", "How?"))
    yes, no = ({"role": "assistant", "content": text} for text in ("Yes.", "No."))
    source = write(
        "pairs.jsonl", [{"chosen": [user, yes, other, no], "rejected": [user, no, user, no]}, {"prompt": [user, yes], "chosen": "a"}]
    )
    assert read_prompts(source) == [[user], [user, yes]]
    with pytest.raises(UserError, match="line 1: its responses answer different messages, so there is no one prompt"):
        read_prompts(write("apart.jsonl", [{"chosen": [user, yes], "rejected": [other, no]}]))


def test_prompts_need_no_responses(write: Write) -> None:
    with pytest.raises(
        UserError, match=r"line 1: there is no `prompt` \(columns found: Prompt; expected prompt alone, .*; rename 'Prompt'"
    ):
        read_prompts(write("p.jsonl", [{"Prompt": "Why?"}]))
    assert read_prompts(write("p.jsonl", [ranking(1, 2), {"chosen": "Is it? Yes", "rejected": "Is it? No"}])) == ["p", "Is it?"]


@pytest.mark.parametrize(
    ("rows", "id", "second"),
    [
        ([{"id": "a", "response": "x"}, {"id": "b", "response": "y"}, {"id": "a", "response": "z"}], "a", 3),
        ([{"id": 1, "response": "x"}, {"id": "1", "response": "y"}], "1", 2),
        ([{"id": "a", "responses": ["x", "y"]}, {"id": "a/2", "response": "z"}], "a/2", 2),
        ([{"id": "a/chosen", "response": "z"}, {"id": "a", "chosen": "x", "rejected": "y"}], "a/chosen", 2),
        # A row without an id is called after its file and number.
        ([{"id": "p-2", "response": "x"}, {"response": "y"}], "p-2", 2),
    ],
)
def test_an_id_belongs_to_one_row(rows: list[dict[str, Any]], id: str, second: int, write: Write, caplog: pytest.LogCaptureFixture) -> None:
    path = write("p.jsonl", [{"prompt": "p", **row} for row in rows])
    with pytest.raises(UserError) as caught:
        first_pass(path)
    assert str(caught.value) == (
        f"{path} line {second}: the id {id!r} is that of row 1 too. Rename one, or delete the column `id`, or pass --skip_bad_rows "
        "to drop such rows and list them."
    )
    assert first_pass(path, skip_bad_rows=True).left_out == {second}
    assert caplog.records[0].getMessage().endswith(f"line {second}: the id {id!r} is that of row 1 too")


def test_ids_over_the_files_of_a_folder(write: Write, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(f"d/{name}.jsonl", [{"prompt": "p", "response": "r"}, {"id": "x", "prompt": "p", "response": "r"}])
    with pytest.raises(UserError, match=r"b\.jsonl line 2: the id 'x' is that of row 2 too"):
        first_pass(str(tmp_path / "d"))
