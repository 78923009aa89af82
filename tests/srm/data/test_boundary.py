"""Whatever is wrong with a row is that row's fault: it is named, and can be left out."""

from __future__ import annotations

import datetime
import gzip
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet
from transformers import PreTrainedTokenizerFast

from srm.data import read_comparisons, read_prompts, read_responses
from srm.data.answers import AnswerTokens
from srm.data.boundary import check_row
from srm.data.read import first_pass
from srm.data.schema import BadRow, RowProblem
from srm.data.template import ChatFormat
from srm.errors import UserError

Write = Callable[..., str]
Make = Callable[..., PreTrainedTokenizerFast]

GOOD = {"prompt": "Why?", "chosen": "It is.", "rejected": "No."}
LINE = json.dumps(GOOD)
DIGITS = "1" * 5000
DEEP = "[" * 100_000
# A line that is no usable row, and a word of what is said about it.
BAD_LINES = {
    "more digits than": '{"prompt": "a", "chosen": "b", "rejected": "c", "score": ' + DIGITS + "}",
    "nested too deeply": DEEP,
    "nested too deeply ": '{"prompt": "a", "chosen": "b", "rejected": "c", "x": ' + DEEP,
    "names the key 'chosen' twice": '{"prompt": "a", "chosen": "b", "chosen": "d", "rejected": "c"}',
    "half a surrogate pair": '{"id": "\\ud800", "prompt": "a", "chosen": "b", "rejected": "c"}',
    "`subset` holds half a surrogate": '{"subset": "\\udc00", "prompt": "a", "chosen": "b", "rejected": "c"}',
    "`x.y[0]` holds half": '{"x": {"y": ["\\udc00"]}, "prompt": "a", "chosen": "b", "rejected": "c"}',
    "the name of a column": '{"\\ud800": 1, "prompt": "a", "chosen": "b", "rejected": "c"}',
    "`margin` must be finite": '{"prompt": "a", "chosen": "b", "rejected": "c", "margin": NaN}',
    "`margin` must be finite, got inf": '{"prompt": "a", "chosen": "b", "rejected": "c", "margin": 1e999}',
    "fits into 64 bits": '{"prompt": "a", "chosen": "b", "rejected": "c", "margin": 1' + "0" * 400 + "}",
    "must be a number, got": '{"prompt": "a", "chosen": "b", "rejected": "c", "margin": "' + "x" * 5000 + '"}',
    "`id` must be": '{"id": [1], "prompt": "a", "chosen": "b", "rejected": "c"}',
    "malformed JSON": '{"prompt": "a"\x00}',
}


@pytest.mark.parametrize("said", BAD_LINES)
def test_a_bad_line_is_named_and_can_be_left_out(said: str, write: Write) -> None:
    path = write("p.jsonl", f"{LINE}\n{BAD_LINES[said]}\n{LINE}\n")
    with pytest.raises(BadRow) as caught:
        read_comparisons(path)
    assert f"{path} line 2: " in str(caught.value)
    assert said.strip() in str(caught.value)
    assert len(str(caught.value)) < 800
    assert "\n" not in str(caught.value)
    assert [row.id for row in read_comparisons(path, skip_bad_rows=True)] == ["p-1", "p-3"]
    # A margin says nothing about scores.
    assert len(list(read_responses(path, skip_bad_rows=True))) == (6 if '"margin"' in BAD_LINES[said] else 4)


def test_surrogate_pairs_are_text(write: Write) -> None:
    (row,) = read_comparisons(write("p.jsonl", '{"id": "\\ud83d\\ude00", "prompt": "a", "chosen": "\\ud83d\\ude00", "rejected": "c"}\n'))
    assert (row.id, row.responses[0]) == ("😀", "😀")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.json",
            f"[{LINE}, {BAD_LINES['more digits than']}]",
            "more digits than can be read. Fix the file, or write its rows as JSON Lines",
        ),
        ("a.json", DEEP, "nested too deeply"),
        ("a.jsonl", "", "the file has no rows"),
        ("a.jsonl", "\n \n", "the file has no rows"),
        ("a.jsonl", LINE.encode("utf-16"), "line 1: not UTF-8"),
        ("a.jsonl", LINE.encode("utf-16-le"), "malformed JSON"),
        ("a.jsonl", '{"prompt": "é"}'.encode("latin-1"), "not UTF-8 (byte 0xe9 at position 13)"),
        ("a.csv", "prompt,chosen,rejected\né,b,c\n".encode("latin-1"), "not UTF-8"),
        ("a.csv", "prompt,chosen,rejected\n".encode("utf-16"), "not UTF-8"),
        ("a.csv", "prompt,prompt,chosen,rejected\na,b,c,d\n", "names a column twice"),
        ("a.csv", "prompt,chosen,rejected\n", "the file has no rows"),
        ("a.csv", f"prompt,responses\na,{DEEP}\n", "nested too deeply"),
        ("a.csv", f"prompt,chosen,rejected,margin\na,b,c,1{'0' * 400}\n", "`margin` must be finite"),
        ("a.parquet", b"PAR1" + b"\x00" * 40 + b"PAR1", "not a sound Parquet file"),
        ("a.parquet", b"", "not a sound Parquet file"),
    ],
)
def test_files_that_cannot_be_read_are_one_line(name: str, content: Any, message: str, write: Write) -> None:
    with pytest.raises(UserError, match=name) as caught:
        read_comparisons(write(name, content))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_text_in_brackets_stays_text(write: Write) -> None:
    cells = [f"[{DIGITS}]", DEEP, '[{""x"": 1, ""x"": 2}]']
    path = write("p.csv", "prompt,chosen,rejected\n" + "".join(f'p,"{cell}",x\n' for cell in cells))
    assert [row.responses[0] for row in read_comparisons(path)] == [cell.replace('""', '"') for cell in cells]


def table(write: Write, columns: list[Any], names: list[str]) -> str:
    sink = io.BytesIO()
    parquet.write_table(pa.Table.from_arrays(columns, names=names), sink)
    return write("p.parquet", sink.getvalue())


def broken_text() -> pa.Array:
    """["good", bytes that are no UTF-8], which Parquet files of other programs hold."""
    return pa.StringArray.from_buffers(2, pa.py_buffer(b"\x00\x00\x00\x00\x04\x00\x00\x00\x06\x00\x00\x00"), pa.py_buffer(b"good\xff\xfe"))


@pytest.mark.parametrize(
    "column",
    [
        broken_text(),
        pa.array([0, 2**62], pa.timestamp("us")),
        pa.array(["good", b"\xff"], pa.binary()),
        pa.array([{"a": 1}, None], pa.struct([("a", pa.int64())])),
    ],
    ids=["text", "time", "bytes", "struct"],
)
def test_odd_prompts_in_parquet_spoil_their_row_alone(column: Any, write: Write) -> None:
    path = table(write, [column, pa.array(["b", "b"]), pa.array(["c", "c"])], ["prompt", "chosen", "rejected"])
    with pytest.raises(BadRow, match=r"p\.parquet row [12]: "):
        read_comparisons(path)


def test_a_value_that_python_cannot_hold_spoils_its_row_alone(write: Write) -> None:
    good = pa.array(["a", "a"])
    path = table(write, [good, pa.array(["b", "b"]), pa.array(["c", "c"]), broken_text()], ["prompt", "chosen", "rejected", "subset"])
    with pytest.raises(BadRow, match=r"p\.parquet row 2: cannot be used \(UnicodeDecodeError: "):
        read_comparisons(path)
    assert [row.extra["subset"] for row in read_comparisons(path, skip_bad_rows=True)] == ["good"]


def test_typed_columns_of_parquet(write: Write) -> None:
    text = pa.array(["a", "d"]).dictionary_encode()
    extra = pa.array([datetime.datetime(2020, 1, 1), None])
    path = table(
        write, [text, pa.array(["b", "b"], pa.large_string()), pa.array(["c", "c"]), extra], ["prompt", "chosen", "rejected", "at"]
    )
    assert [row.prompt for row in read_comparisons(path)] == ["a", "d"]


def test_two_columns_of_one_name(write: Write) -> None:
    columns = [pa.array([text]) for text in "abcd"]
    with pytest.raises(UserError, match="two columns of the name 'chosen'"):
        read_comparisons(table(write, columns, ["prompt", "chosen", "chosen", "rejected"]))


def test_cut_files(write: Write, tmp_path: Path) -> None:
    whole = gzip.compress((LINE + "\n").encode() * 5000)
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[:-20])
    sound = Path(table(write, [pa.array(["a"] * 100) for _ in range(3)], list(GOOD))).read_bytes()
    (tmp_path / "cut.parquet").write_bytes(sound[:-8])
    write("cut.jsonl", f"{LINE}\n{LINE[:20]}")
    for name, message in (
        ("cut.jsonl.gz", "cut short"),
        ("cut.parquet", "not a sound Parquet file"),
        ("cut.jsonl", "line 2: malformed JSON"),
    ):
        with pytest.raises(UserError, match=message):
            list(read_responses(str(tmp_path / name)))


def test_places_that_are_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "gone.jsonl").symlink_to(tmp_path / "nowhere")
    (tmp_path / "folder.jsonl").mkdir()
    places = {
        str(tmp_path / "pipe.jsonl"): "a pipe or a device cannot be read twice",
        "/dev/null": "a pipe or a device cannot be read twice",
        str(tmp_path / "gone.jsonl"): "a link to .*nowhere, which is not there",
        str(tmp_path / "folder.jsonl"): "holds no data file",
        "/" + "x" * 5000 + ".jsonl": "cannot be opened",
        "a\0b.jsonl": "cannot be opened|no such file",
        "~nobody-of-that-name/p.jsonl": "cannot be opened",
        " ": "the name of the data is empty",
    }
    for place, message in places.items():
        with pytest.raises(UserError, match=message):
            read_comparisons(place)


def test_a_dangling_link_in_a_folder_is_no_missing_data(write: Write, tmp_path: Path) -> None:
    write("d/a.jsonl", [GOOD])
    (tmp_path / "d" / "b.jsonl").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"b\.jsonl: a link to .*nowhere"):
        read_comparisons(str(tmp_path / "d"))


def test_a_name_that_is_no_text(write: Write, tmp_path: Path) -> None:
    write("d/a.jsonl", [GOOD])
    try:
        (tmp_path / "d" / "a.jsonl").rename(os.fsdecode(os.fsencode(tmp_path / "d") + b"/\xff.jsonl"))
    except OSError:
        pytest.skip("this file system knows UTF-8 names only")
    with pytest.raises(UserError, match="the name of the file is no UTF-8"):
        read_comparisons(str(tmp_path / "d"))


# What templates of published models do with messages that they do not expect.
REFUSALS = {
    "System role not supported": "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}",
    "TypeError": "{{ messages[0]['content'] + 1 }}",
    "'nothing' is undefined": "{{ nothing.at.all }}",
    "ZeroDivisionError": "{{ 1 / 0 }}",
    "RecursionError": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
}


@pytest.mark.parametrize("reason", REFUSALS)
def test_a_template_that_fails_on_a_row(reason: str, make_tokenizer: Make, write: Write, caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = make_tokenizer("chatml")
    on_system = "{% if messages[0]['role'] == 'system' %}" + REFUSALS[reason] + "{% endif %}"
    tokenizer.chat_template = on_system + tokenizer.chat_template
    form = ChatFormat(tokenizer)
    answers = AnswerTokens(tokenizer, form)
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    path = write("p.jsonl", [GOOD, {**GOOD, "prompt": messages}, GOOD])

    def check(prompt: Any, responses: Any) -> None:
        check_row(form, answers, prompt, responses)

    with pytest.raises(BadRow, match=r"p\.jsonl line 2: the chat template refuses the messages") as caught:
        first_pass(path, check=check)
    assert reason in str(caught.value)
    found = first_pass(path, skip_bad_rows=True, check=check)
    assert (found.num_responses, found.left_out) == (4, {2})
    assert "dropped 1 of 3" in caplog.text
    caplog.clear()
    assert [row.row for row in read_responses(path, left_out=found.left_out)] == [1, 1, 3, 3]
    assert caplog.text == ""
    assert len(read_prompts(path, skip_bad_rows=True, check=check)) == 2


def test_a_text_that_no_tokens_come_from(make_tokenizer: Make, write: Write) -> None:
    # This tokenizer knows ASCII only and drops the rest.
    tokenizer = make_tokenizer("chatml", byte_level=False)
    tokenizer.backend_tokenizer.pre_tokenizer = None
    form = ChatFormat(tokenizer)
    answers = AnswerTokens(tokenizer, form)
    with pytest.raises(RowProblem, match="makes no token of the response"):
        check_row(form, answers, "Why?", ["é" * 9000])
    check_row(form, answers, "Why?", ["é" * 9000 + "a"])
    # Half a surrogate pair inside a message that the template writes.
    with pytest.raises(UnicodeEncodeError):
        check_row(form, answers, "\ud800", [])
