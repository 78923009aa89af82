"""Folders that appear whole or not at all, so that a run killed at any moment can go on from its last checkpoint.

Everything is written under `<output_dir>/.incomplete` and renamed into place when it is complete and on the disk. Nothing that
looks for `checkpoint-*` ever meets a half-written one, and an older checkpoint is deleted only after the next is in place.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import logging as transformers_logging

from srm.errors import UserError
from srm.runs.lock import hold, lock_file

__all__ = [
    "checkpoints",
    "claim",
    "delete_run",
    "find_checkpoint",
    "no_bar",
    "publish_folder",
    "publish_model",
    "recover",
    "rotate",
    "staging",
    "write_whole",
    "writing",
]

_STAGING = ".incomplete"
_REPLACED = ".replaced"
_PARTIAL = ".partial"
_CHECKPOINT = re.compile(r"checkpoint-\d+")
# Without these no loader takes the folder for a model, so they go last.
_GATES = ("config.json", "adapter_config.json")
_RECORDS = "srm_*.yaml"
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json")


def staging(output_dir: str | os.PathLike[str]) -> Path:
    """Where unfinished writes of `output_dir` live: inside it, because a rename must not cross file systems."""
    return Path(output_dir) / _STAGING


def publish_folder(staged: Path, final: Path) -> None:
    """Make `staged` appear as `final` in one step; an existing `final` stays until then.

    Args:
        staged: the whole folder, on the same disk.
        final: what it is to be called.
    """
    _sync(staged)
    replaced = staged.with_name(final.name + _REPLACED)
    if final.exists():
        # A folder cannot be renamed over another. `recover` puts this one back if we die between the two renames.
        shutil.rmtree(replaced, ignore_errors=True)
        final.rename(replaced)
    staged.rename(final)
    _sync_entry(final.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def publish_model(staged: Path, final: Path) -> None:
    """Move a saved model's files into a folder that holds other things too.

    Whoever loads `final` meanwhile finds the old model, no model, or the new one, never a mixture.

    Args:
        staged: the model's files.
        final: the folder.
    """
    _sync(staged)
    final.mkdir(parents=True, exist_ok=True)
    for gate in _GATES:
        (final / gate).unlink(missing_ok=True)
    new = sorted((path for path in staged.iterdir()), key=lambda path: path.name in _GATES)
    names = {path.name for path in new}
    for pattern in _WEIGHTS:
        for old in final.glob(pattern):
            # Left from a model with other shards, it would be loaded instead of the new weights.
            if old.name not in names:
                old.unlink()
    for path in new:
        if path.is_dir():
            shutil.rmtree(final / path.name, ignore_errors=True)
        path.replace(final / path.name)
    _sync_entry(final)
    staged.rmdir()


def checkpoints(output_dir: str | os.PathLike[str]) -> list[Path]:
    """The folders `checkpoint-N` of a run, in no order; other names are the user's own."""
    return [path for path in Path(output_dir).glob("checkpoint-*") if _CHECKPOINT.fullmatch(path.name) and path.is_dir()]


def rotate(output_dir: str | os.PathLike[str], limit: int | None, keep: Iterable[str | os.PathLike[str]]) -> None:
    """Delete the oldest checkpoints until `limit` are left.

    Args:
        output_dir: the run's folder.
        limit: how many stay; None or 0: no limit.
        keep: checkpoints that stay in any case.
    """
    if not limit or limit < 0:
        return
    spared = {Path(path).resolve() for path in keep}
    # By age, not by number: after a resume from an earlier checkpoint the numbers of an abandoned run may be higher.
    by_age = sorted(checkpoints(output_dir), key=lambda path: path.stat().st_mtime_ns)
    excess = len(by_age) - limit
    for checkpoint in by_age:
        if excess > 0 and checkpoint.resolve() not in spared:
            _discard(checkpoint)
            excess -= 1


def _discard(checkpoint: Path) -> None:
    """Delete a checkpoint so that it vanishes in one step, too."""
    doomed = staging(checkpoint.parent) / f"{checkpoint.name}.deleted"
    doomed.parent.mkdir(exist_ok=True)
    shutil.rmtree(doomed, ignore_errors=True)
    checkpoint.rename(doomed)
    shutil.rmtree(doomed)


def write_whole(file: Path, text: str) -> None:
    """Write a file so that a kill, or a power cut, leaves all of `text` or what the file held before.

    Args:
        file: the file.
        text: what it is to hold.
    """
    # The process id, because several may write the same at the same time.
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f"{file.name}.{os.getpid()}{_PARTIAL}")
    with partial.open("w", encoding="utf-8") as opened:
        opened.write(text)
        opened.flush()
        os.fsync(opened.fileno())
    partial.replace(file)


def recover(output_dir: str | os.PathLike[str]) -> None:
    """Undo what a killed run left half done: put a checkpoint back that was about to be replaced, drop unfinished writes.

    Args:
        output_dir: the run's folder.

    Raises:
        UserError: a live run writes there, whose unfinished writes these are.
    """
    with hold(output_dir):
        for partial in Path(output_dir).glob(f"*{_PARTIAL}"):
            partial.unlink(missing_ok=True)
        folder = staging(output_dir)
        if not folder.is_dir():
            return
        for replaced in folder.glob(f"*{_REPLACED}"):
            final = Path(output_dir) / replaced.name.removesuffix(_REPLACED)
            if not final.exists():
                replaced.rename(final)
        shutil.rmtree(folder)


def delete_run(output_dir: str | os.PathLike[str]) -> None:
    """Delete the checkpoints of an earlier run, so that none of them can be resumed in place of the new run's.

    Args:
        output_dir: the run's folder.

    Raises:
        UserError: as `recover`.
    """
    with hold(output_dir):
        recover(output_dir)
        for checkpoint in checkpoints(output_dir):
            _discard(checkpoint)
        shutil.rmtree(staging(output_dir), ignore_errors=True)


def claim(
    output_dir: str, resume: str | None, *, overwrite: bool, writes: bool, wait: Callable[[], None], ignored: Collection[str] = ()
) -> str | None:
    """Take a folder for a run, before its first write there; every process of the run calls this.

    Args:
        output_dir: the run's folder, which the run holds (`hold_together`).
        resume: as in `find_checkpoint`.
        overwrite: start anew in a folder that is not empty; the checkpoints there are deleted.
        writes: whether this process writes the shared files.
        wait: returns once all processes have called it.
        ignored: names in the folder that count as nothing.

    Returns:
        The checkpoint to go on from, or None to start at step 0.

    Raises:
        UserError: as `find_checkpoint`; nothing has been deleted then.
    """
    if writes and resume is not None and Path(output_dir).is_dir():
        recover(output_dir)
    wait()
    checkpoint = find_checkpoint(output_dir, resume, overwrite=overwrite, ignored=ignored)
    # All have looked before one writes.
    wait()
    if writes and overwrite:
        delete_run(output_dir)
    return checkpoint


def find_checkpoint(output_dir: str, resume: str | None, *, overwrite: bool, ignored: Collection[str] = ()) -> str | None:
    """The checkpoint to go on from, or None to start at step 0. Looks, and changes nothing; call `recover` first where a run died.

    Args:
        output_dir: the run's folder.
        resume: None, "true" for the last checkpoint in `output_dir`, or a checkpoint's folder. "true" where there is no checkpoint
            yet starts at step 0, because a run may be killed before its first one.
        overwrite: allow a folder that is not empty.
        ignored: names in it that count as nothing.

    Raises:
        UserError: `output_dir` is not empty and neither `resume` nor `overwrite` says what to do with it, or it holds a model or
            checkpoints of something else; `resume` is no checkpoint, or one that `overwrite` would delete.
    """
    folder = Path(output_dir)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output_dir {output_dir} is a file. Give a folder.")
    wanted = (resume or "false").lower()
    is_own = wanted == "true" or (wanted != "false" and Path(str(resume)).resolve().parent == folder.resolve())
    if is_own and overwrite:
        raise UserError(
            "--resume_from_checkpoint goes on with the run in --output_dir, --overwrite_output_dir deletes it. Drop one of them."
        )
    if wanted == "true":
        last = _last_checkpoint(folder)
        if last is None:
            _refuse_foreign(folder)
        return last and _resumable(last)
    if wanted != "false":
        checkpoint = _resumable(str(resume))
        if not is_own:
            _refuse_foreign(folder)
        return checkpoint
    if overwrite:
        _refuse_foreign(folder)
        return None
    if folder.is_dir() and any(path != lock_file(folder) and path.name not in ignored for path in folder.iterdir()):
        last = _last_checkpoint(folder)
        found = f"holds a run up to {Path(last).name}" if last else "is not empty"
        raise UserError(
            f"--output_dir {output_dir} {found}. Go on with --resume_from_checkpoint true, start anew with --overwrite_output_dir, "
            "or give another folder."
        )
    return None


def _refuse_foreign(folder: Path) -> None:
    """Raise where a run would replace or delete what none of our commands wrote: each leaves its settings in its folder."""
    if not folder.is_dir() or any(folder.glob(_RECORDS)):
        return
    found = [path for pattern in (*_GATES, *_WEIGHTS) for path in sorted(folder.glob(pattern))] + checkpoints(folder)
    if found:
        raise UserError(
            f"--output_dir {folder} holds {found[0].name}, and no settings of a run that wrote it (srm_train.yaml or srm_rl.yaml). "
            "Give another folder, or empty this one yourself."
        )


def _resumable(checkpoint: str) -> str:
    """`checkpoint` itself, if it holds more than a model: a finished run's folder would resume without its optimizer."""
    folder = Path(checkpoint)
    if not (folder / "trainer_state.json").is_file() or not folder.resolve().name.startswith("checkpoint-"):
        raise UserError(
            f"--resume_from_checkpoint {checkpoint}: no checkpoint there. "
            "Give a folder checkpoint-N, or true for the last one of --output_dir."
        )
    if not any(folder.glob("rng_state*")):
        raise UserError(
            f"--resume_from_checkpoint {checkpoint}: holds the model only (--save_only_model), not where the run stood. "
            "Start a new run from it with --model_name_or_path."
        )
    return checkpoint


def _last_checkpoint(folder: Path) -> str | None:
    return get_last_checkpoint(str(folder)) if folder.is_dir() else None


@contextmanager
def no_bar() -> Iterator[None]:
    """Without transformers' bar for each shard that is written or read, which tears a run's own bar apart."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


@contextmanager
def writing(what: str, folder: str | os.PathLike[str], way_out: str) -> Iterator[None]:
    """Turn a full disk into one clear line.

    Args:
        what: is being written.
        folder: where.
        way_out: what the user can do.

    Raises:
        UserError: the disk, or the user's quota, is full.
    """
    try:
        yield
    except Exception as error:
        if not _is_disk_full(error):
            raise
        raise UserError(f"no space left on the disk of {folder}: {what} could not be written. {way_out}") from error


def _is_disk_full(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        # safetensors passes on only the text; torch.save reports a failed write as a position that did not move.
        if "No space left on device" in str(error) or ("inline_container" in str(error) and "unexpected pos" in str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def _sync(folder: Path) -> None:
    """Wait until every file under `folder` is on the disk: a rename must not outrun the data it names."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    _sync_entry(folder)


def _sync_entry(folder: Path) -> None:
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
