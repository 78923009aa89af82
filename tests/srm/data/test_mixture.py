"""Several sources in one: the forms that trl's `datasets:` takes, on files and on what `datasets` itself loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from srm.data import DataPart, read_mixture
from srm.data.mixture import set_aside
from srm.errors import UserError


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """a.jsonl of 4 rows, b.jsonl of 10, and a folder with two splits."""
    (tmp_path / "folder").mkdir()
    for name, count in (("a", 4), ("b", 10), ("folder/train", 3), ("folder/test", 2)):
        rows = ({"prompt": f"{name} {index}?", "chosen": "Yes.", "rejected": "No.", "margin": 1.0} for index in range(count))
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def part(files: Path, path: str, **more: Any) -> DataPart:
    return DataPart.of({"path": path if path == "json" else str(files / path), **more}, "datasets, entry 1")


def prompts(*parts: DataPart, **more: Any) -> list[Any]:
    return [row.prompt for row in read_mixture(parts, **more)]


@pytest.mark.parametrize("streaming", [False, True])
def test_sources_follow_each_other(files, streaming):
    read = prompts(part(files, "a.jsonl"), part(files, "folder", split="test"), streaming=streaming)
    assert read == ["a 0?", "a 1?", "a 2?", "a 3?", "folder/test 0?", "folder/test 1?"]
    assert prompts(part(files, "a.jsonl"), part(files, "b.jsonl"), max_pairs=5, streaming=streaming)[-1] == "b 0?"


@pytest.mark.parametrize("streaming", [False, True])
def test_kinds_of_files_that_datasets_loads(files, streaming):
    name = str(files / "b.jsonl")
    for given in (name, [name], {"train": name}):
        assert prompts(part(files, "json", data_files=given), streaming=streaming) == [f"b {index}?" for index in range(10)]
    assert prompts(part(files, "json", data_files={"x": name}, split="x[:2]")) == ["b 0?", "b 1?"]
    assert len(prompts(part(files, "json", data_dir=str(files / "folder"), split="train"))) == 3
    assert prompts(part(files, "folder", split="train[1:]")) == ["folder/train 1?", "folder/train 2?"]


def test_columns_are_kept_or_missed(files):
    (row,) = read_mixture([part(files, "a.jsonl", columns=["prompt", "chosen", "rejected"])], max_pairs=1)
    assert row.pairs == ((0, 1, None),)
    with pytest.raises(UserError, match=r"a\.jsonl line 1.* has no column 'id', which `columns` asks for; it has prompt, chosen"):
        read_mixture([part(files, "a.jsonl", columns=["prompt", "id"])])


def test_fractions_take_the_first_rows_of_each(files):
    # As many as there can be without one row twice: all 4 of a, so 12 of both, which b has 8 for.
    read = prompts(part(files, "a.jsonl", fraction=1), part(files, "b.jsonl", fraction=2))
    assert read == [f"a {index}?" for index in range(4)] + [f"b {index}?" for index in range(8)]
    assert len(prompts(part(files, "a.jsonl", fraction=0), part(files, "b.jsonl", fraction=0.5))) == 10


@pytest.mark.parametrize(
    ("fractions", "streaming", "said"),
    [
        ((1, None), False, "`fraction` is set for 1 of 2 sources"),
        ((1, 1), True, "streaming does not tell"),
        ((0, 0), False, "at least one `fraction` must be above 0"),
    ],
)
def test_fractions_that_make_no_mixture(files, fractions, streaming, said):
    parts = [part(files, "a.jsonl", fraction=fraction) for fraction in fractions]
    with pytest.raises(UserError, match=said):
        read_mixture(parts, streaming=streaming)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("a.jsonl", "must be a mapping with a path"),
        ({"name": "x"}, "must be a mapping with a path"),
        ({"path": ""}, "must be a mapping with a path"),
        ({"path": "a", "colums": ["x"]}, r"unknown setting 'colums'; did you mean columns\? It takes path, name"),
        ({"path": "a", "columns": "x"}, "columns must be a list of names, got 'x'"),
        ({"path": "a", "fraction": -1}, "fraction must be a number from 0 up, got -1"),
        ({"path": "a", "fraction": float("nan")}, "fraction must be a number from 0 up"),
        ({"path": "a", "data_files": 3}, "data_files must be a file, a list of files"),
        ({"path": "a", "split": 3}, "split must be text, got 3"),
    ],
)
def test_entries_that_are_none(entry, said):
    with pytest.raises(UserError, match=rf"datasets, entry 2:? ?.*{said}"):
        DataPart.of(entry, "datasets, entry 2")


def test_a_part_of_a_single_file_is_no_split(files):
    with pytest.raises(UserError, match=r"a single file is one split, and 'train\[:2\]' is a part of one\. Give path: json and data_files"):
        prompts(part(files, "a.jsonl", split="train[:2]"))


def test_a_configuration_that_is_not_there_is_one_line(files):
    with pytest.raises(UserError, match=r"configuration 'english'\) it could not be loaded"):
        prompts(part(files, "folder", name="english"))


def test_files_that_are_not_there_are_one_line(files):
    with pytest.raises(UserError, match=r"json: .*data_files 'gone\.jsonl'\) it could not be loaded"):
        prompts(part(files, "json", data_files="gone.jsonl"))


def test_a_streamed_row_that_cannot_be_read_stops_with_its_place(files):
    (files / "c.jsonl").write_text((files / "a.jsonl").read_text() + "{]\n")
    with pytest.raises(UserError, match=r"json \(train\): the row after row \d+ cannot be read"):
        prompts(part(files, "json", data_files=str(files / "c.jsonl")), streaming=True)


def test_a_test_set_is_drawn_once(files):
    rows = read_mixture([part(files, "b.jsonl")])
    train, test = set_aside(rows, 0.25, seed=3)
    # A share is rounded up, as by `datasets`.
    assert (len(train), len(test)) == (7, 3)
    assert sorted([*train, *test], key=rows.index) == rows
    assert set_aside(rows, 0.25, seed=3) == (train, test)
    assert set_aside(rows, 0.25, seed=4) != (train, test)
    assert len(set_aside(rows, 4, seed=3)[1]) == 4
    for size in (10, 0.99):
        with pytest.raises(UserError, match="leaves 0 to train on"):
            set_aside(rows, size, seed=3)
