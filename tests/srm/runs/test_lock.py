"""One writer an output, whoever else starts, dies or is forked."""

from __future__ import annotations

import errno
import multiprocessing
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from filelock import FileLock

from srm.errors import UserError
from srm.runs import lock as module
from srm.runs.lock import hold, hold_together, lock_file

if "fork" not in multiprocessing.get_all_start_methods():
    pytest.skip("this system does not fork processes", allow_module_level=True)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PATIENCE", 0.15)


def _hold_until_killed(output: Path, ranks: dict[str, int], ready: object) -> None:
    with hold(output, **ranks):
        ready.set()
        threading.Event().wait(60)


@contextmanager
def holder(output: Path, **ranks: int) -> Iterator[BaseProcess]:
    """A live process that holds `output`."""
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=_hold_until_killed, args=(output, ranks, ready), daemon=True)
    process.start()
    assert ready.wait(60)
    yield process
    process.kill()
    process.join()


def test_a_second_run_is_told_who_writes(tmp_path):
    with holder(tmp_path / "out") as first:
        with pytest.raises(UserError) as refused, hold(tmp_path / "out"):
            pass
        line = str(refused.value)
        assert "\n" not in line
        assert line.startswith(f"{tmp_path / 'out'}: another run is writing there (process {first.pid} on ")
        assert re.search(r"since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d\S+\)\. Wait for its end, stop it, or choose another output\.$", line)
        # Told again, and not by what the refused one wrote.
        with pytest.raises(UserError, match=f"process {first.pid} "), hold(tmp_path / "out"):
            pass


def test_the_kernel_releases_what_a_killed_process_held(tmp_path):
    with holder(tmp_path / "out") as first:
        first.kill()
        first.join()
        with hold(tmp_path / "out"):
            assert f'"pid": {os.getpid()}' in lock_file(tmp_path / "out").read_text()
    assert lock_file(tmp_path / "out").read_text() == "", "a note that names no live process"


def test_links_and_relative_paths_are_one_output(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "link").symlink_to("out")
    (tmp_path / "dangling.jsonl").symlink_to("new.jsonl")
    monkeypatch.chdir(tmp_path / "out")
    with holder(tmp_path / "out"):
        for name in (tmp_path / "link", Path("."), Path("../out"), tmp_path / "link" / ".." / "out"):
            with pytest.raises(UserError, match="another run is writing there"), hold(name):
                pass
    assert lock_file(tmp_path / "dangling.jsonl") == lock_file(tmp_path / "new.jsonl") == tmp_path / ".new.jsonl.lock"


def test_a_deleted_folder_stays_locked(tmp_path):
    (tmp_path / "out").mkdir()
    with holder(tmp_path / "out"):
        (tmp_path / "out").rmdir()
        with pytest.raises(UserError, match="another run is writing there"), hold(tmp_path / "out"):
            pass


def test_a_thread_may_hold_what_it_holds_and_another_may_not(tmp_path):
    refused = []

    def other() -> None:
        with pytest.raises(UserError, match=f"process {os.getpid()} "), hold(tmp_path / "out"):
            pass
        refused.append(True)

    with hold(tmp_path / "out"):
        with hold(tmp_path / "out"):
            pass
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert refused
    with holder(tmp_path / "out"):
        pass


def test_a_forked_worker_keeps_nothing(tmp_path):
    """A loader's worker may outlive the process that was killed."""
    context = multiprocessing.get_context("fork")
    stop = context.Event()
    with hold(tmp_path / "out"):
        worker = context.Process(target=stop.wait, args=(60,), daemon=True)
        worker.start()
    with holder(tmp_path / "out"):
        stop.set()
        worker.join()


def test_ranks_of_one_group_do_not_keep_each_other_out(tmp_path):
    out = tmp_path / "out"
    with holder(out, rank=0, num_ranks=3), holder(out, rank=2, num_ranks=3) as last:
        with hold(out, rank=1, num_ranks=3):
            pass
        # A second group of the same size, a run by one process, and a group of another size.
        for ranks in ({"rank": 0, "num_ranks": 3}, {"rank": 2, "num_ranks": 3}, {}, {"rank": 1, "num_ranks": 2}):
            with pytest.raises(UserError, match="another run is writing there"), hold(out, **ranks):
                pass
        assert last.is_alive()
    with hold(out):
        pass


@pytest.mark.parametrize("rank", [0, 1])
def test_any_rank_that_lives_keeps_others_out(tmp_path, rank):
    with holder(tmp_path / "out", rank=rank, num_ranks=2) as left:
        with pytest.raises(UserError, match=f"process {left.pid} "), hold(tmp_path / "out"):
            pass
        # The rank that died may be started again.
        with hold(tmp_path / "out", rank=1 - rank, num_ranks=2):
            pass


def test_python_calls_that_write_hold_their_output(tmp_path):
    """Each refuses before it touches its other arguments, which are missing here."""
    from accelerate import Accelerator

    from srm.rl.arguments import RLConfig
    from srm.rl.trainer import RLTrainer
    from srm.scoring.file import RowSettings, score_file
    from srm.scoring.parts import score_parts
    from srm.training import RewardConfig, SentenceRewardTrainer

    out, nothing = str(tmp_path / "out"), object()
    trainer = object.__new__(SentenceRewardTrainer)
    trainer.args = RewardConfig(output_dir=out, use_cpu=True)
    policy = object.__new__(RLTrainer)
    policy.config, policy.accelerator = (
        RLConfig(output_dir=out, model_name_or_path="a", reward_model_path="b", dataset_name="c"),
        Accelerator(),
    )
    settings = {"identity": {}, "settings": RowSettings(overlong="error", max_length=None, packing=None, tokens_per_batch=1)}
    calls = {
        "train": lambda: super(SentenceRewardTrainer, trainer).train(),
        "rl": policy.train,
        "score_file": lambda: score_file(nothing, "in.jsonl", Path(out), **settings),
        "score_parts": lambda: score_parts(nothing, "in.jsonl", Path(out), process=1, num_processes=2, num_rows=3, **settings),
    }
    with holder(tmp_path / "out") as first:
        for call in calls.values():
            with pytest.raises(UserError, match=f"process {first.pid} "):
                call()


def test_a_group_is_refused_as_one(tmp_path):
    with holder(tmp_path / "out") as first:
        with pytest.raises(UserError, match=f"process {first.pid} "), hold_together(tmp_path / "out", writes=True):
            pass
        # A process that writes no shared file is not asked for the lock.
        with hold_together(tmp_path / "out", writes=False):
            pass
    with hold_together(tmp_path / "out", writes=True), pytest.raises(UserError, match="another run"), holder_of_another_run(tmp_path):
        pass


@contextmanager
def holder_of_another_run(folder: Path) -> Iterator[None]:
    """What a run with two processes sees of the run that is there."""
    with hold(folder / "out", rank=1, num_ranks=2):
        yield


def test_the_lock_lies_inside_a_volume(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    assert lock_file(tmp_path / "out") == tmp_path / ".out.lock"
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == tmp_path / "out")
    assert lock_file(tmp_path / "out") == tmp_path / "out" / ".out.lock"
    monkeypatch.undo()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    assert lock_file(tmp_path / "out") == tmp_path / "out" / ".out.lock"


@pytest.mark.parametrize(("number", "message"), [(errno.EACCES, "Permission denied"), (errno.EROFS, "Read-only file system")])
def test_no_place_for_a_lock_is_one_line(tmp_path, monkeypatch, number, message):
    def acquire(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(FileLock, "acquire", acquire)
    with pytest.raises(UserError, match=f"cannot be written there .*{message}"), hold(tmp_path / "out"):
        pass


def test_a_disk_without_locks_is_said(tmp_path, monkeypatch, caplog):
    def acquire(*_: object) -> None:
        raise OSError(errno.ENOSYS, "not there")

    monkeypatch.setattr(FileLock, "acquire", acquire)
    with hold(tmp_path / "out"):
        pass
    assert "its disk has no file locks, so nothing keeps a second run from writing there too" in caplog.text
