"""Each file format, sound and broken."""

from __future__ import annotations

import csv
import gzip
import io
import json
import tempfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from srm.data import read_comparisons, read_responses
from srm.data.files import SUFFIXES
from srm.errors import UserError

ROWS: list[dict[str, Any]] = [
    {"id": "a", "prompt": "Why?\nTell me, please.", "chosen": 'Yes, "so".', "rejected": "No — é 😀.", "margin": 1.5, "subset": "x"},
    {"id": "b", "prompt": "[Is] it?", "chosen": "[1] Yes", "rejected": "No", "margin": None, "subset": "y"},
]
CHAT = {"prompt": [{"role": "user", "content": "Hi, you"}], "chosen": [{"role": "assistant", "content": "Hello."}], "rejected": "Go."}
Write = Callable[..., str]


def to_csv(rows: list[dict[str, Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\r\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: json.dumps(value) if isinstance(value, list) else value for name, value in row.items()})
    return text.getvalue().encode()


def to_parquet(rows: list[dict[str, Any]]) -> bytes:
    sink = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue()


def to_jsonl(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


WRITERS: dict[str, Callable[[list[dict[str, Any]]], bytes]] = {
    ".jsonl": to_jsonl,
    ".jsonl.gz": to_jsonl,
    ".json": lambda rows: json.dumps(rows, indent=2).encode(),
    ".json.gz": lambda rows: json.dumps(rows).encode(),
    ".csv": to_csv,
    ".csv.gz": to_csv,
    ".parquet": to_parquet,
}


def test_every_suffix_is_tested() -> None:
    assert set(WRITERS) == set(SUFFIXES)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_format_gives_the_same_rows(suffix: str, write: Write) -> None:
    rows = read_comparisons(write(f"pairs{suffix}", WRITERS[suffix](ROWS)))
    assert [row.prompt for row in rows] == [row["prompt"] for row in ROWS]
    assert [row.responses for row in rows] == [(row["chosen"], row["rejected"]) for row in ROWS]
    assert [row.pairs for row in rows] == [((0, 1, 1.5),), ((0, 1, None),)]
    assert [row.id for row in rows] == ["a", "b"]
    assert rows[0].extra == {"subset": "x"}
    assert f"pairs{suffix} " in rows[1].where


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_messages_in_every_format(suffix: str, write: Write) -> None:
    (row,) = read_comparisons(write(f"chat{suffix}", WRITERS[suffix]([CHAT])))
    assert row.prompt == CHAT["prompt"]
    assert row.responses == ("Hello.", "Go.")
    assert row.id == "chat-1"


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_rankings_in_every_format(suffix: str, write: Write) -> None:
    ranking = {"prompt": "Why?", "responses": ["a", "b", "c"], "scores": [1, 3, 3]}
    (row,) = read_comparisons(write(f"lists{suffix}", WRITERS[suffix]([ranking])))
    assert row.responses == ("a", "b", "c")
    assert set(row.pairs) == {(1, 0, None), (2, 0, None)}


@pytest.mark.parametrize(
    ("name", "where"),
    [("p.jsonl", "line 2"), ("p.json", "row 2"), ("p.csv", "line 4"), ("p.parquet", "row 2")],
)
def test_where_a_row_is(name: str, where: str, write: Write) -> None:
    path = write(name, WRITERS[Path(name).suffix](ROWS))
    # In the CSV file the first row takes two lines, so the second begins on line 4.
    assert read_comparisons(path)[1].where == f"{path} {where}"


def test_ids_default_to_name_and_number(write: Write) -> None:
    rows = [{"prompt": "a", "chosen": "b", "rejected": "c"}] * 2
    assert [row.id for row in read_comparisons(write("my.pairs.jsonl", rows))] == ["my-1", "my-2"]


def test_json_lines_under_the_name_json(write: Write) -> None:
    assert [row.id for row in read_comparisons(write("p.json", to_jsonl(ROWS)))] == ["a", "b"]


@pytest.mark.parametrize("name", ["p.jsonl", "p.json", "p.csv"])
def test_a_byte_order_mark_is_no_problem(name: str, write: Write) -> None:
    path = write(name, b"\xef\xbb\xbf" + WRITERS[Path(name).suffix](ROWS))
    assert [row.id for row in read_comparisons(path)] == ["a", "b"]


def test_blank_lines_and_no_final_line_break(write: Write) -> None:
    path = write("p.jsonl", b"\n" + to_jsonl(ROWS).replace(b"\n", b"\r\n\n").rstrip())
    assert [row.where.split()[-1] for row in read_comparisons(path)] == ["2", "4"]


def test_unicode_line_separators_do_not_end_a_line(write: Write) -> None:
    rows = [{"prompt": "a\u2028b\x85c", "chosen": "b", "rejected": "c"}]
    assert read_comparisons(write("p.jsonl", rows))[0].prompt == "a\u2028b\x85c"


def test_a_csv_cell_may_be_long(write: Write) -> None:
    long = "word " * 60_000
    assert read_comparisons(write("p.csv", to_csv([{"prompt": "a", "chosen": long, "rejected": "b"}])))[0].responses[0] == long


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.jsonl", b'{"prompt": "a"\n', "p.jsonl line 1: malformed JSON (Expecting ',' delimiter at column 15). Fix or delete the line"),
        ("p.jsonl", to_jsonl(ROWS) + b"{]\n", "p.jsonl line 3: malformed JSON"),
        ("p.jsonl", to_jsonl(ROWS)[:-20], "p.jsonl line 2: malformed JSON"),
        ("p.jsonl", b"[" * 100_000, "p.jsonl line 1: malformed JSON (nested too deeply)"),
        ("p.jsonl", b'"text"\n', 'p.jsonl line 1: a row must be an object {"prompt": ..., ...}, got str'),
        ("p.jsonl", b'{"prompt": "caf\xe9"}\n', "p.jsonl line 1: not UTF-8 (byte 0xe9 at position 16). Save the file as UTF-8"),
        ("p.jsonl", b"", "p.jsonl: the file has no rows"),
        ("p.jsonl", b"\n \n", "p.jsonl: the file has no rows"),
        ("p.jsonl.gz", b"", "p.jsonl.gz: the file has no rows"),
        ("p.json", b"[]", "p.json: the file has no rows"),
        ("p.json", b'[{"prompt": "a"},\n{]', "p.json line 2: malformed JSON (Expecting property name enclosed in double quotes at col"),
        ("p.json", b'["caf\xe9"]', "p.json: not UTF-8 (byte 6 of the file)"),
        ("p.json", b'[{"prompt": "a"}, 3]', "p.json row 1: there are no responses (columns found: prompt;"),
        ("p.csv", b"", "p.csv: the file has no rows"),
        ("p.csv", b"prompt,chosen,rejected\n", "p.csv: the file has no rows"),
        ("p.csv", b"prompt,chosen,rejected\na,b\n", "p.csv line 2: the row has 2 cells, the header has 3. Quote cells that hold commas"),
        ("p.csv", b'prompt,chosen,rejected\na,b,c\na,"b,c\n', "p.csv line 3: malformed CSV (unexpected end of data). Close the quotes"),
        ("p.csv", b"prompt,chosen,chosen\na,b,c\n", "p.csv line 1: the header names a column twice (prompt, chosen, chosen)"),
        ("p.csv", b"prompt,chosen,rejected\na,caf\xe9,c\n", "p.csv: not UTF-8 (byte 0xe9"),
        ("p.csv", b"prompt,chosen,rejected,margin\na,b,c,lots\n", "p.csv line 2: `margin` must be a number, got 'lots'"),
        ("p.csv", b"prompt,chosen,rejected,margin\na,b,c,nan\n", "p.csv line 2: `margin` must be finite, got nan"),
        ("p.csv", b'prompt,responses\na,"b,c"\n', "p.csv line 2: `responses` must be a JSON list, and is not (Expecting value at col"),
        ("p.csv", b"prompt;chosen;rejected\na;b;c\n", "p.csv line 1: semicolons part the columns (prompt;chosen;rejected), and it must be"),
        ("p.csv", b"prompt\tchosen\trejected\na\tb, c\td\n", "p.csv line 1: tabs part the columns"),
        (
            "p.jsonl",
            b'[\n{"prompt": "a"}\n]',
            "line 1: malformed JSON (Expecting value at column 2); if the file is one JSON list, ren",
        ),
        ("p.jsonl", b'[{"prompt": "a"}]', "got list; if the file is one JSON list, rename it to .json. Fix"),
        ("p.parquet", b"PAR1 and then nothing", "p.parquet: not a sound Parquet file, 0 rows could be read"),
        ("p.parquet", to_parquet(ROWS)[:-30], "p.parquet: not a sound Parquet file"),
        ("p.parquet", b"", "p.parquet: not a sound Parquet file"),
        ("p.txt", b"hello", "p.txt: unknown kind of file. Give one of .jsonl, .jsonl.gz, .json,"),
        ("p.parquet.gz", b"hello", "p.parquet.gz: unknown kind of file"),
    ],
)
def test_broken_files(name: str, content: bytes, message: str, write: Write) -> None:
    with pytest.raises(UserError) as caught:
        read_comparisons(write(name, content))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[: len(data) // 2], "p.jsonl.gz: the gzip file is cut short. Copy or download it again."),
        (lambda data: data[:-4], "p.jsonl.gz: the gzip file is cut short."),
        (lambda data: b"no gzip at all", "p.jsonl.gz: not a sound gzip file (Not a gzipped file"),
        (lambda data: data[:40] + bytes(20) + data[60:], "p.jsonl.gz: not a sound gzip file"),
    ],
)
def test_broken_gzip(damage: Callable[[bytes], bytes], message: str, tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl.gz"
    path.write_bytes(damage(gzip.compress(to_jsonl(ROWS))))
    with pytest.raises(UserError) as caught:
        read_comparisons(str(path), skip_bad_rows=True)
    assert message in str(caught.value)


def test_a_file_that_may_not_be_read(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise PermissionError(13, "Permission denied")

    path = write("p.jsonl", ROWS)
    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(UserError, match=r"p\.jsonl: cannot be read \(Permission denied\)\. Check the path and its permissions\."):
        read_comparisons(path)


@pytest.mark.parametrize("name", ["p.jsonl", "p.jsonl.gz", "p.csv", "p.parquet"])
def test_reading_is_a_stream(name: str, write: Write) -> None:
    rows = [{"prompt": f"{number} " + "x" * 2000, "chosen": "b", "rejected": "c"} for number in range(3000)]
    path = write(name, WRITERS[name[1:]](rows))
    tracemalloc.start()
    num_rows = sum(1 for _ in read_responses(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert num_rows == 6000
    # The file's text is 6 MB; a batch of Parquet rows is 0.5 MB.
    assert peak < 2e6


def test_answers_in_json_stay_text_in_a_csv_file(write: Write) -> None:
    answer = '[{"name": "x", "value": 1}]'
    (row,) = read_comparisons(write("p.csv", to_csv([{"prompt": "List them.", "chosen": answer, "rejected": "[]"}])))
    assert row.responses == (answer, "[]")


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1).filter(str.strip)
PAIR = st.tuples(TEXT, TEXT, TEXT).filter(lambda row: row[1] != row[2])


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
@settings(max_examples=40, deadline=None)
@given(texts=st.lists(PAIR, min_size=1, max_size=4))
def test_any_text_survives(suffix: str, texts: list[tuple[str, str, str]]) -> None:
    rows = [dict(zip(("prompt", "chosen", "rejected"), row, strict=True)) for row in texts]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"p{suffix}"
        path.write_bytes(WRITERS[suffix](rows))
        read = read_comparisons(str(path))
    assert [(row.prompt, *row.responses) for row in read] == texts
