"""Folders that appear whole or not at all."""

from __future__ import annotations

import errno
import multiprocessing
import os
from pathlib import Path

import pytest
import torch

from srm.errors import UserError
from srm.runs.folders import (
    delete_run,
    find_checkpoint,
    publish_folder,
    publish_model,
    recover,
    rotate,
    staging,
    write_whole,
    writing,
)
from srm.runs.lock import hold


def make(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder


def checkpoint(run: Path, step: int, age: int = 0) -> Path:
    path = make(run / f"checkpoint-{step}", trainer_state__json="{}", rng_state__pth="", weights=str(step))
    os.utime(path, (1e9 - age, 1e9 - age))
    return path


def test_a_folder_is_published_in_one_step(tmp_path):
    staged = make(staging(tmp_path) / "checkpoint-1", weights="1")
    publish_folder(staged, tmp_path / "checkpoint-1")
    assert (tmp_path / "checkpoint-1" / "weights").read_text() == "1"
    assert not staged.exists()


def test_publishing_replaces_an_older_folder(tmp_path):
    checkpoint(tmp_path, 1)
    publish_folder(make(staging(tmp_path) / "checkpoint-1", weights="new"), tmp_path / "checkpoint-1")
    assert (tmp_path / "checkpoint-1" / "weights").read_text() == "new"
    assert not list(staging(tmp_path).iterdir())


def test_what_an_earlier_death_left_is_not_in_the_way(tmp_path):
    for name in ("checkpoint-1.replaced", "checkpoint-1.deleted"):
        make(staging(tmp_path) / name, weights="left")
    checkpoint(tmp_path, 1)
    publish_folder(make(staging(tmp_path) / "checkpoint-1", weights="new"), tmp_path / "checkpoint-1")
    assert (tmp_path / "checkpoint-1" / "weights").read_text() == "new"
    checkpoint(tmp_path, 2)
    os.utime(tmp_path / "checkpoint-1", (0, 0))
    rotate(tmp_path, 1, [])
    assert sorted(path.name for path in tmp_path.iterdir()) == [".incomplete", "checkpoint-2"]
    assert not list(staging(tmp_path).iterdir())


@pytest.fixture
def steps(monkeypatch):
    """What was waited for until it is on the disk, and what was renamed, by name and in order."""
    seen: list[str] = []
    fsync = os.fsync

    def synced(descriptor):
        seen.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    def renamed(rename):
        return lambda self, target: [seen.append(f"{self.name} -> {Path(target).name}"), rename(self, target)][1]

    monkeypatch.setattr(os, "fsync", synced)
    for name in ("rename", "replace"):
        monkeypatch.setattr(Path, name, renamed(getattr(Path, name)))
    return seen


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc to tell what is synced")
def test_nothing_is_renamed_before_it_is_on_the_disk(tmp_path, steps):
    """A power cut must not leave a name without its data."""
    (tmp_path / "run").mkdir()
    staged = make(staging(tmp_path / "run") / "staged", weights="1")
    make(staged / "shards", first="1")
    publish_folder(staged, tmp_path / "run" / "checkpoint-1")
    assert sorted(steps[:2]) == ["first", "weights"]
    assert steps[2:] == ["staged", "staged -> checkpoint-1", "run"]
    steps.clear()
    publish_model(make(staging(tmp_path / "run") / "model", config__json="1"), tmp_path / "run" / "final")
    assert steps == ["config.json", "model", "config.json -> config.json", "final"]
    steps.clear()
    write_whole(tmp_path / "notes", "text")
    partial = f"notes.{os.getpid()}.partial"
    assert steps == [partial, f"{partial} -> notes"]


def test_a_text_is_handed_over_before_it_is_waited_for(tmp_path, monkeypatch):
    sizes = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: sizes.append(os.fstat(descriptor).st_size))
    write_whole(tmp_path / "new" / "folder" / "notes", "text")
    assert sizes == [4]


def test_a_model_goes_where_nothing_is_and_over_what_is_there(tmp_path):
    final = tmp_path / "new" / "folder"
    for text in ("old", "new"):
        staged = make(tmp_path / "staged", config__json=text)
        make(staged / "tokenizer", **{text: text})
        publish_model(staged, final)
        assert not staged.exists()
        assert (final / "config.json").read_text() == text
        assert [path.name for path in (final / "tokenizer").iterdir()] == [text]


def test_a_death_between_the_two_renames_loses_nothing(tmp_path, monkeypatch):
    checkpoint(tmp_path, 1)
    staged = make(staging(tmp_path) / "checkpoint-1", weights="new")
    renames = []
    rename = Path.rename

    def dies_at_the_second(self, target):
        renames.append(self)
        if len(renames) == 2:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", dies_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        publish_folder(staged, tmp_path / "checkpoint-1")
    monkeypatch.undo()
    assert not (tmp_path / "checkpoint-1").exists()
    recover(tmp_path)
    assert (tmp_path / "checkpoint-1" / "weights").read_text() == "1"
    assert not staging(tmp_path).exists()


def test_a_half_written_checkpoint_is_never_found(tmp_path):
    checkpoint(tmp_path, 1)
    make(staging(tmp_path) / "checkpoint-2", weights="half")
    assert find_checkpoint(str(tmp_path), "true", overwrite=False) == str(tmp_path / "checkpoint-1")
    (tmp_path / "notes.17.partial").write_text("half")
    make(staging(tmp_path) / "checkpoint-1.replaced", weights="older")
    recover(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-1"]
    assert (tmp_path / "checkpoint-1" / "weights").read_text() == "1"


def test_a_model_is_no_model_until_its_config_arrives(tmp_path, monkeypatch):
    final = make(tmp_path / "out", config__json="old", model__safetensors="old", notes="mine")
    make(final / "checkpoint-1", weights="1")
    for name in ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"):
        (staging(final) / "model").mkdir(parents=True, exist_ok=True)
        (staging(final) / "model" / name).write_text("new")
    (staging(final) / "model" / "config.json").write_text("new")
    seen = []
    replace = Path.replace

    def watched(self, target):
        seen.append((self.name, (final / "config.json").exists(), (final / "model.safetensors").exists()))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", watched)
    publish_model(staging(final) / "model", final)
    # Neither the old config nor the old single-file weights, which would win over shards, stand beside new files at any time.
    assert [name for name, *_ in seen][-1] == "config.json"
    assert not any(config or weights for _, config, weights in seen)
    assert (final / "notes").read_text() == "mine"
    assert (final / "checkpoint-1" / "weights").exists()


def test_a_text_is_all_there_or_as_it_was(tmp_path, monkeypatch):
    write_whole(tmp_path / "notes", "old")
    monkeypatch.setattr(Path, "replace", lambda self, target: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_whole(tmp_path / "notes", "new")
    assert (tmp_path / "notes").read_text() == "old"
    monkeypatch.undo()
    write_whole(tmp_path / "notes", "new")
    assert (tmp_path / "notes").read_text() == "new"


def test_rotation_keeps_the_newest_and_the_spared(tmp_path):
    best, *_, newest = [checkpoint(tmp_path, step, age=100 - step) for step in (1, 2, 3, 4)]
    rotate(tmp_path, 2, [newest, best])
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-4"]


def test_rotation_goes_by_age_not_by_number(tmp_path):
    """After a resume from an earlier checkpoint, the numbers of the abandoned run are higher."""
    checkpoint(tmp_path, 8, age=50)
    checkpoint(tmp_path, 4, age=30)
    new = checkpoint(tmp_path, 6, age=0)
    (tmp_path / "checkpoint-notes").write_text("mine")
    os.utime(tmp_path / "checkpoint-notes", (0, 0))
    rotate(tmp_path, 2, [new])
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-6", "checkpoint-notes"]


@pytest.mark.parametrize("limit", [None, 0, -1, 3])
def test_no_limit_deletes_nothing(tmp_path, limit):
    for step in (1, 2, 3):
        checkpoint(tmp_path, step)
    rotate(tmp_path, limit, [])
    assert len(list(tmp_path.glob("checkpoint-*"))) == 3


def test_output_directories(tmp_path):
    run = tmp_path / "run"
    assert find_checkpoint(str(run), None, overwrite=False) is None
    assert find_checkpoint(str(run), "true", overwrite=False) is None
    run.mkdir()
    assert find_checkpoint(str(run), None, overwrite=False) is None
    (run / "notes").write_text("")
    with pytest.raises(UserError, match=r"is not empty\. Go on with --resume_from_checkpoint true, start anew with --overwrite_output_dir"):
        find_checkpoint(str(run), None, overwrite=False)
    # Killed before the first checkpoint: resuming starts at step 0.
    assert find_checkpoint(str(run), "true", overwrite=False) is None
    checkpoint(run, 5)
    checkpoint(run, 10)
    with pytest.raises(UserError, match="holds a run up to checkpoint-10"):
        find_checkpoint(str(run), None, overwrite=False)
    (run / "srm_train.yaml").write_text("")
    assert find_checkpoint(str(run), None, overwrite=True) is None
    assert find_checkpoint(str(run), "True", overwrite=False) == str(run / "checkpoint-10")
    assert find_checkpoint(str(run), str(run / "checkpoint-5"), overwrite=False) == str(run / "checkpoint-5")
    with pytest.raises(UserError, match="checkpoint-7: no checkpoint there"):
        find_checkpoint(str(run), str(run / "checkpoint-7"), overwrite=False)
    # A finished run's own folder has a state, too, but no optimizer.
    (run / "trainer_state.json").write_text("{}")
    with pytest.raises(UserError, match="no checkpoint there"):
        find_checkpoint(str(run), str(run), overwrite=False)
    (run / "checkpoint-10" / "rng_state.pth").unlink()
    with pytest.raises(UserError, match="holds the model only"):
        find_checkpoint(str(run), "true", overwrite=False)
    for resume in ("true", str(run / "checkpoint-5")):
        with pytest.raises(UserError, match="Drop one of them"):
            find_checkpoint(str(run), resume, overwrite=True)
    with pytest.raises(UserError, match="is a file"):
        find_checkpoint(str(run / "notes"), None, overwrite=False)


@pytest.mark.parametrize("name", ["config.json", "adapter_config.json", "model.safetensors", "checkpoint-7"])
def test_what_no_run_of_ours_wrote_is_not_overwritten(tmp_path, name):
    run, other = tmp_path / "run", tmp_path / "other"
    checkpoint(other, 5)
    if name == "checkpoint-7":
        checkpoint(run, 7)
    else:
        make(run, **{name.replace(".", "__"): "mine"})
    message = f"holds {name}, and no settings of a run that wrote it"
    for resume, overwrite in ((None, True), (str(other / "checkpoint-5"), False), *([("true", False)] if name != "checkpoint-7" else [])):
        with pytest.raises(UserError, match=message):
            find_checkpoint(str(run), resume, overwrite=overwrite)
    (run / "srm_rl.yaml").write_text("")
    assert find_checkpoint(str(run), None, overwrite=True) is None
    assert find_checkpoint(str(run), str(other / "checkpoint-5"), overwrite=False) == str(other / "checkpoint-5")


def test_a_lock_does_not_fill_a_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == tmp_path)
    with hold(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == [f".{tmp_path.name}.lock"]
        assert find_checkpoint(str(tmp_path), None, overwrite=False) is None


def test_a_live_run_s_unfinished_writes_are_left_alone(tmp_path):
    run = tmp_path / "run"
    staged = make(staging(run) / "checkpoint-3", weights="3")
    context = multiprocessing.get_context("fork")
    ready, stop = context.Event(), context.Event()

    def live() -> None:
        with hold(run):
            ready.set()
            stop.wait(60)

    process = context.Process(target=live, daemon=True)
    process.start()
    assert ready.wait(60)
    for undo in (recover, delete_run):
        with pytest.raises(UserError, match=f"another run is writing there \\(process {process.pid} on"):
            undo(run)
    assert (staged / "weights").read_text() == "3"
    stop.set()
    process.join()
    recover(run)
    assert not staging(run).exists()


def test_overwriting_deletes_checkpoints_and_nothing_else(tmp_path):
    checkpoint(tmp_path, 5)
    (tmp_path / "checkpoint-mine").mkdir()
    # A death left this one without its name.
    make(staging(tmp_path) / "checkpoint-3.replaced", weights="3")
    for name in ("notes", "checkpoint-notes"):
        (tmp_path / name).write_text("mine")
    delete_run(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-mine", "checkpoint-notes", "notes"]
    delete_run(tmp_path)


def full_disk(how: str) -> None:
    if how == "torch":
        # What torch.save raises when a write comes up short.
        torch.save({"a": torch.zeros(100_000)}, "/dev/full")
    elif how == "python":
        with open("/dev/full", "w") as file:
            file.write("x" * 100_000)
    elif how == "quota":
        raise OSError(errno.EDQUOT, "Disk quota exceeded")
    elif how == "wrapped":
        raise RuntimeError("could not save") from OSError(errno.ENOSPC, "No space left on device")
    elif how == "on the way out":
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        finally:
            raise KeyError("closing")
    else:
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="needs /dev/full")
@pytest.mark.parametrize("how", ["torch", "python", "quota", "wrapped", "on the way out", "safetensors"])
def test_a_full_disk_is_one_line(how):
    with (
        pytest.raises(UserError, match=r"no space left on the disk of out: checkpoint-3 could not be written\. Free some\."),
        writing("checkpoint-3", "out", "Free some."),
    ):
        full_disk(how)


def test_other_errors_stay_what_they_are():
    with pytest.raises(ZeroDivisionError), writing("x", "out", ""):
        _ = 1 / 0
    # torch names the file that wrote in every error of a checkpoint.
    with pytest.raises(RuntimeError, match="no such file"), writing("x", "out", ""):
        raise RuntimeError("[enforce fail at inline_container.cc:659] no such file")
