"""What a run was started with, kept in its output directory, so that a resume can say what is not as it was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srm.errors import UserError
from srm.runs.folders import write_whole
from srm.runs.settings import settings_changes, to_yaml

if TYPE_CHECKING:
    from srm.data import EncodedComparison
    from srm.training.arguments import DataArguments, ModelArguments, RewardConfig

__all__ = ["changes_since", "write_record", "write_settings"]

_SETTINGS = "srm_train.yaml"
_ROWS = "srm_train_rows.json"
# These say where and how loudly, not what is trained.
_NO_MATTER = ("output_dir", "disable_tqdm", "report_to", "run_name", "logging_steps", "save_total_limit")


def write_record(settings: tuple[ModelArguments, DataArguments, RewardConfig], rows: Sequence[EncodedComparison]) -> None:
    """Write the settings, as a file for `--config`, and a fingerprint of the encoded training rows."""
    folder = Path(settings[-1].output_dir)
    write_settings(folder, *settings)
    write_whole(folder / _ROWS, json.dumps(_fingerprint(rows)) + "\n")


def write_settings(folder: Path, *settings: Any) -> None:
    """Write settings as a file for `--config`.

    Args:
        folder: where.
        *settings: dataclasses.
    """
    write_whole(folder / _SETTINGS, "# srm-train --config THIS_FILE repeats the run.\n" + to_yaml(*settings))


def changes_since(settings: tuple[ModelArguments, DataArguments, RewardConfig], rows: Sequence[EncodedComparison]) -> Iterator[str]:
    """One line for each thing that differs from the record in the output directory; none where there is no record."""
    folder = Path(settings[-1].output_dir)
    yield from settings_changes(folder / _SETTINGS, *settings, ignored=_NO_MATTER)
    if (folder / _ROWS).is_file():
        was, is_now = _record(folder / _ROWS), _fingerprint(rows)
        if was != is_now:
            old, new = (f"{record['rows']:,} of {record['tokens']:,} tokens" for record in (was, is_now))
            yield f"the training rows were {old}, are {new}, and not the same"


def _record(file: Path) -> dict[str, Any]:
    try:
        record = json.loads(file.read_bytes())
        whole = isinstance(record, dict) and all(type(record.get(name)) is int for name in ("rows", "tokens"))
    except (ValueError, RecursionError):
        whole = False
    if not whole:
        raise UserError(f"{file}: is not what srm-train wrote, so it was edited or cut. Delete it to go on without comparing the rows.")
    return record


def _fingerprint(rows: Sequence[EncodedComparison]) -> dict[str, Any]:
    digest = hashlib.sha256()
    for row in rows:
        for ids in (row.prompt_ids, *(part for response in row.responses for part in (response.ids, response.sentence_ends))):
            # The length first, so that tokens cannot move from one response to the next unnoticed.
            digest.update(len(ids).to_bytes(8, "little") + ids.tobytes())
        if openings := [response.opening for response in row.responses if response.opening]:
            digest.update(repr(openings).encode())
        digest.update(repr(row.pairs).encode())
    return {"rows": len(rows), "tokens": sum(row.num_tokens for row in rows), "sha256": digest.hexdigest()}
