"""Where a command may write: nothing that is read is replaced, by whatever name, and no place is found bad after the work."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from srm.errors import UserError
from srm.runs.places import check_files, check_folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an input, a folder of inputs and a model, which is the current one."""
    for name in ("in.jsonl", "data/a.jsonl", "model/config.json", "model/model.safetensors"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(message: str, written: dict[str, str | None], data: str = "in.jsonl") -> None:
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    files = {name: None if path is None else Path(path) for name, path in written.items()}
    with pytest.raises(UserError, match=message) as error:
        check_files(files, data={"--input": data}, models={"--model": "model"})
    assert "\n" not in str(error.value)
    assert before == {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}


WAYS: dict[str, Callable[[Path], object]] = {
    "as it is": lambda path: None,
    "link": lambda path: Path("other").symlink_to(path),
    "hard link": lambda path: Path("other").hardlink_to(path),
    "link to a link": lambda path: (Path("first").symlink_to(path), Path("other").symlink_to("first")),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("flag", ["--output", "--html"])
def test_the_input_is_not_written_by_any_name(here: Path, way: str, flag: str) -> None:
    WAYS[way](here / "in.jsonl")
    name = "other" if Path("other").exists() else "in.jsonl"
    for path in (name, str(here / name), f"data/../{name}"):
        refused(f"{flag} {path} is what --input reads", {flag: path})


def test_a_file_that_will_be_there_is_compared_too(here: Path) -> None:
    refused("is what --input reads", {"--output": "data/../new.jsonl"}, data="new.jsonl")


def test_what_lies_in_a_folder_of_inputs_would_be_read(here: Path) -> None:
    refused("lies in data, which --input reads, and would be read as data", {"--output": "data/new/out.jsonl"}, data="data")
    refused("is what --input reads", {"--output": "data"}, data="data")
    check_files({"--html": Path("data/page.html")}, data={"--input": "data"}, models={})


def test_files_of_the_model_are_not_written(here: Path) -> None:
    Path("link.json").symlink_to("model/config.json")
    for name in ("model/config.json", "model/model.safetensors", "link.json"):
        refused(f"--output {name} is a file of the model that --model names", {"--output": name})
    refused("--output model is a folder", {"--output": "model"})
    # Scores may lie beside a model's files.
    check_files({"--output": Path("model/scores.jsonl")}, data={}, models={"--model": "model"})


def test_outputs_are_not_one_another(here: Path) -> None:
    for page in ("out", "./out", "out/page.html"):
        refused("are in each other's way", {"--output": "out", "--html": page})
    Path("out").write_text("")
    Path("page").hardlink_to("out")
    refused("are in each other's way", {"--output": "out", "--html": "page"})
    check_files({"--output": Path("out"), "--html": None}, data={}, models={})


def test_what_is_no_file(here: Path) -> None:
    Path("dangling").symlink_to("nowhere/x")
    Path("loop").symlink_to("loop")
    os.mkfifo("pipe")
    refused("--html data is a folder", {"--html": "data"})
    refused("--output dangling is a link to what is not there", {"--output": "dangling"})
    refused("dangling is a link to what is not there", {"--output": "dangling/out.jsonl"})
    refused("cannot be written", {"--output": "loop"})
    for device in ("pipe", "/dev/null"):
        refused("is a device or a pipe", {"--output": device})
    refused(r"--output - is not standard output here, .*\. Give a file\.", {"--output": "-"})
    with pytest.raises(UserError, match=r"--output_dir - is not standard output here, .*\. Give a folder\."):
        check_folder("--output_dir", "-", data={}, models={}, whole=True)
    refused("lies in a file, and not in a folder", {"--output": "in.jsonl/out"}, data="model/config.json")
    refused("File name too long", {"--output": "o" * 300})


def test_a_read_only_place(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(**_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(tempfile, "TemporaryFile", read_only)
    refused(r"--html new/page.html: cannot be written \(Read-only file system\)", {"--html": "new/page.html"})
    with pytest.raises(UserError, match=r"--output_dir new: cannot be written \(Read-only file system\)"):
        check_folder("--output_dir", "new", data={}, models={}, whole=True)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_unwritable_place(here: Path) -> None:
    Path("locked").mkdir(mode=0o555)
    Path("fixed").write_text("")
    Path("fixed").chmod(0o444)
    for name in ("locked/out", "locked/new/out", "fixed"):
        refused("Permission denied", {"--output": name})


def test_a_full_disk_is_said_by_the_command(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    with pytest.raises(OSError, match="No space left"):
        check_files({"--output": Path("out")}, data={}, models={})


def test_folders_for_a_run(here: Path) -> None:
    def refused(message: str, folder: str, *, data: str = "in.jsonl", model: str = "model", whole: bool = True) -> None:
        with pytest.raises(UserError, match=message):
            check_folder("--output_dir", folder, data={"--dataset_name": data}, models={"--model": model}, whole=whole)

    Path("link").symlink_to("model")
    for folder in ("model", "link", "data/../model"):
        for whole in (True, False):
            refused("is the folder of the model that --model names", folder, whole=whole)
    refused("lies in data, which --dataset_name reads", "data/out", data="data")
    refused(r"--output_dir \. holds in.jsonl, which --dataset_name reads and the run might replace", ".")
    refused("holds data/a.jsonl, which --dataset_name reads", "data", data="data/a.jsonl")
    refused("is a file. Give a folder", "model/config.json")
    # Where only files of certain names are written, others may lie.
    check_folder("--output_dir", ".", data={"--suite": "in.jsonl"}, models={"--model": "model"}, whole=False)
    check_folder("--output_dir", "new/out", data={"--dataset_name": "org/data"}, models={"--model": "org/model"}, whole=True)
    assert not Path("new").exists(), "looking makes nothing"
