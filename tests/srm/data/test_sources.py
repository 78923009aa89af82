"""Folders, saved data sets and the hub."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from srm.data import read_comparisons
from srm.data.sources import one_split, what_is_read
from srm.errors import UserError

Write = Callable[..., str]


def pair(name: str) -> dict[str, str]:
    return {"prompt": f"prompt {name}", "chosen": f"good {name}", "rejected": f"bad {name}"}


def prompts(source: str, **arguments: Any) -> list[str]:
    return [str(row.prompt).removeprefix("prompt ") for row in read_comparisons(source, **arguments)]


def test_a_folder_is_its_files_in_order_of_name(write: Write, tmp_path: Path) -> None:
    write("pairs/b.jsonl", [pair("3")])
    write("pairs/a.jsonl.gz", [pair("1"), pair("2")])
    write("pairs/deep/c.csv", "prompt,chosen,rejected\nprompt 4,yes,no\n")
    for name in ("README.md", ".hidden.jsonl", "_SUCCESS.jsonl"):
        write(f"pairs/{name}", "no rows here")
    rows = read_comparisons(str(tmp_path / "pairs"))
    assert [row.prompt for row in rows] == ["prompt 1", "prompt 2", "prompt 3", "prompt 4"]
    assert [row.id for row in rows] == ["a-1", "a-2", "b-3", "c-4"]
    assert rows[2].where == f"{tmp_path}/pairs/b.jsonl line 1"
    # Without splits in the names, the folder is whatever split is asked for.
    assert prompts(str(tmp_path / "pairs"), split="test") == ["1", "2", "3", "4"]


@pytest.mark.parametrize(
    ("split", "expected"),
    [("train", ["1", "2"]), ("training", ["1", "2"]), ("test", ["3"]), ("validation", ["4"]), ("dev", ["4"])],
)
def test_splits_from_names(split: str, expected: list[str], write: Write, tmp_path: Path) -> None:
    write("d/data/train-00000-of-00002.jsonl", [pair("1")])
    write("d/data/train-00001-of-00002.jsonl", [pair("2")])
    write("d/test/pairs.jsonl", [pair("3")])
    write("d/my_dev.jsonl", [pair("4")])
    # A copy of a hub data set has it beside its rows.
    write("d/dataset_infos.json", "{}")
    assert prompts(str(tmp_path / "d"), split=split) == expected


def test_a_split_that_a_folder_lacks(write: Write, tmp_path: Path) -> None:
    write("d/train.jsonl", [pair("1")])
    with pytest.raises(UserError, match=r"d: the folder has no split 'test'; its file names state train\. Name one of these"):
        read_comparisons(str(tmp_path / "d"), split="test")


def test_files_without_a_split_are_not_dropped_beside_files_with_one(write: Write, tmp_path: Path) -> None:
    for name in ("part-0", "part-1", "part-2", "part-3", "train-fix"):
        write(f"parts/{name}.jsonl", [pair(name)])
    with pytest.raises(UserError) as caught:
        read_comparisons(str(tmp_path / "parts"))
    assert str(caught.value) == (
        f"{tmp_path}/parts: part-0.jsonl, part-1.jsonl, part-2.jsonl and 1 more would be left out, because no split is in the name, and "
        "train-fix.jsonl states 'train'. Rename files, move some out of the folder, or give one file."
    )


def test_a_slip_in_the_name_of_a_split(write: Write, tmp_path: Path) -> None:
    datasets.Dataset.from_list([pair("1")]).save_to_disk(tmp_path / "saved")
    for source in (write("p/a.jsonl", [pair("1")]), str(tmp_path / "p"), str(tmp_path / "saved")):
        with pytest.raises(UserError, match=r": has no split 'tset', because no name .* states one\. Leave the split out\."):
            read_comparisons(source, split="tset")
        assert prompts(source, split="test") == ["1"]


def test_the_one_split_of_a_source(write: Write, tmp_path: Path) -> None:
    file, folder, saved = write("p/train.jsonl", [pair("1")]), str(tmp_path / "p"), tmp_path / "saved"
    assert [one_split(name, None) for name in (file, folder, str(saved), "someone/pairs", "", "x" * 9999)] == ["train"] * 6
    assert [one_split(name, "train") for name in (file, folder)] == ["train"] * 2
    with pytest.raises(UserError, match=r"train\.jsonl: has no split 'test'"):
        one_split(file, "test")
    Path(file).rename(tmp_path / "p" / "test.jsonl")
    assert one_split(folder, None) == "test"
    write("p/valid.jsonl", [pair("2")])
    datasets.DatasetDict({name: datasets.Dataset.from_list([pair(name)]) for name in ("test", "validation")}).save_to_disk(saved)
    for name in (folder, str(saved)):
        with pytest.raises(UserError, match=r": the folder has the splits test, validation\. Say which by --split, such as --split test\."):
            one_split(name, None)
        assert one_split(name, "validation") == "validation"
    assert what_is_read(folder, "valid") == f"reading split valid of {folder} (it has test, validation): valid.jsonl"
    assert what_is_read(str(saved), "test") == f"reading split test of {saved} (it has test, validation)"
    assert what_is_read(str(tmp_path / "p" / "valid.jsonl"), "train") is None


def test_an_empty_folder(write: Write, tmp_path: Path) -> None:
    write("d/notes.txt", "nothing")
    with pytest.raises(UserError, match=r"d: the folder holds no data file\. Put \.jsonl, "):
        read_comparisons(str(tmp_path / "d"))


@pytest.mark.parametrize("name", ["pairs.jsonl", "./pairs", "/nowhere/pairs", "a/b/c", "~/nowhere/pairs.csv"])
def test_missing_files_do_not_ask_the_hub(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", None)
    with pytest.raises(UserError, match=r": no such file or folder\. Check the path\."):
        read_comparisons(name)


def test_the_home_folder(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write("p.jsonl", [pair("1")])
    monkeypatch.setenv("HOME", str(tmp_path))
    assert prompts("~/p.jsonl") == ["1"]


def test_a_saved_data_set(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "Hi"}]
    fields = {"prompt": chat, "chosen": [{"role": "assistant", "content": "Yes"}], "rejected": "No", "score": 1.0}
    datasets.Dataset.from_list([fields]).save_to_disk(tmp_path / "one")
    (row,) = read_comparisons(str(tmp_path / "one"), split="test")
    assert (row.prompt, row.responses, row.extra) == (chat, ("Yes", "No"), {"score": 1.0})
    assert (row.id, row.where) == ("one-1", f"{tmp_path}/one row 1")


def test_a_saved_data_set_with_splits(tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    splits = {name: datasets.Dataset.from_list([pair(name)]) for name in ("train", "test_prefs")}
    datasets.DatasetDict(splits).save_to_disk(folder)
    assert prompts(str(folder)) == ["train"]
    assert prompts(str(folder), split="test_prefs") == ["test_prefs"]
    with pytest.raises(UserError, match=r"saved: the data set has no split 'test'; it has train, test_prefs\. Name one of these\."):
        read_comparisons(str(folder), split="test")


def test_a_damaged_saved_data_set(write: Write, tmp_path: Path) -> None:
    write("saved/dataset_dict.json", '{"splits": ["train"]}')
    with pytest.raises(UserError, match=r"saved: the saved data set cannot be loaded \(.*\)\. Save it again\."):
        read_comparisons(str(tmp_path / "saved"))


def test_the_hub(data_hub: Callable[..., None]) -> None:
    data_hub("someone/pairs", "test", [pair("1"), pair("2")], config="small")
    rows = read_comparisons("someone/pairs", split="test", config="small")
    assert [row.where for row in rows] == ["someone/pairs (test) row 1", "someone/pairs (test) row 2"]
    assert [row.prompt for row in rows] == ["prompt 1", "prompt 2"]
    assert rows[1].id == "pairs-2"
    with pytest.raises(UserError, match=r"someone/pairs: .*split 'train', configuration 'small'.* could not be loaded: Unknown split"):
        read_comparisons("someone/pairs", config="small")
    with pytest.raises(UserError, match=r"configuration 'large'.* could not be loaded: BuilderConfig 'large' not found"):
        read_comparisons("someone/pairs", split="test", config="large")
    with pytest.raises(UserError, match=r"someone/nothing: not found here, and http.* has no such repository"):
        read_comparisons("someone/nothing")


@pytest.mark.parametrize(
    "error",
    [
        ConnectionError("Couldn't reach it.\nRetry"),
        FileNotFoundError("Couldn't reach it"),
        ValueError("Couldn't reach it"),
        RuntimeError("Couldn't reach it"),
    ],
)
def test_a_hub_that_cannot_help(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(UserError) as caught:
        read_comparisons("someone/pairs", config="small")
    assert str(caught.value) == (
        "someone/pairs: there is no such file or folder here, and as a data set of the Hugging Face hub (split 'train', "
        "configuration 'small') it could not be loaded: Couldn't reach it. Check the name and the connection, or give a local file."
    )


def test_without_the_package_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"someone/pairs: needs the package `datasets`\. Install it \(pip install datasets\)"):
        read_comparisons("someone/pairs")


@pytest.mark.parametrize(
    ("streaming", "message"),
    [(True, r" \(train\): the data set has no rows\."), (False, ': .* Instruction "train" corresponds to no data')],
)
def test_an_empty_data_set_of_the_hub(data_hub: Callable[..., None], streaming: bool, message: str) -> None:
    """Where it is not streamed, `datasets` says so itself."""
    data_hub("someone/pairs", "train", [])
    with pytest.raises(UserError, match=f"someone/pairs{message}"):
        read_comparisons("someone/pairs", streaming=streaming)


def test_a_file_on_the_hub_that_cannot_be_read(data_hub: Callable[..., None]) -> None:
    data_hub("someone/pairs", "train", [pair("1")], files={"data/train-00000-of-00001.parquet": b"no parquet"})
    with pytest.raises(UserError, match=r"someone/pairs: .* could not be loaded: Parquet magic bytes not found"):
        read_comparisons("someone/pairs")


def test_local_files_need_no_datasets_package(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert prompts(write("p.jsonl", [pair("1")])) == ["1"]
