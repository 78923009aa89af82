"""What a run was started with, kept in its output directory, so that a resume can say what is not as it was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from srm.errors import UserError
from srm.modeling.card import without_place
from srm.runs.folders import write_whole
from srm.runs.settings import settings_changes, to_yaml

if TYPE_CHECKING:
    from srm.data import EncodedComparison
    from srm.training.arguments import DataArguments, ModelArguments, RewardConfig

__all__ = ["AtFirstStep", "changes_since", "earlier_data", "write_record", "write_settings"]

_SETTINGS = "srm_train.yaml"
_ROWS = "srm_train_rows.json"
# These say where and how loudly, not what is trained.
_NO_MATTER = ("output_dir", "disable_tqdm", "report_to", "run_name", "logging_steps", "save_total_limit")


def write_record(settings: tuple[ModelArguments, DataArguments, RewardConfig], rows: Sequence[EncodedComparison]) -> None:
    """Write the settings, as a file for `--config`, and a fingerprint of the encoded training rows, with the data before them."""
    folder = Path(settings[-1].output_dir)
    record = {**_fingerprint(rows), "data": without_place(settings[1].title), "earlier": earlier_data(settings, rows)}
    write_settings(folder, *settings)
    write_whole(folder / _ROWS, json.dumps(record) + "\n")


class AtFirstStep(TrainerCallback):
    """Calls `then` once, when the first step begins: a checkpoint that is resumed from has loaded, and nothing is left to refuse the run.

    Args:
        then: what to do.
    """

    def __init__(self, then: Callable[[], None]) -> None:
        self._then: Callable[[], None] | None = then

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        """Trainer calls it.

        Args:
            *args: not used.
            **kwargs: not used.
        """
        if self._then is not None:
            then, self._then = self._then, None
            then()


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
        if not _is_same(was, is_now):
            old, new = (f"{record['rows']:,} of {record['tokens']:,} tokens" for record in (was, is_now))
            yield f"the training rows were {old}, are {new}, and not the same"


def earlier_data(settings: tuple[ModelArguments, DataArguments, RewardConfig], rows: Sequence[EncodedComparison]) -> list[str]:
    """What the run in the output directory was trained on before `rows`, where those are others: for the model's card."""
    file = Path(settings[-1].output_dir) / _ROWS
    if not file.is_file():
        return []
    was = _record(file)
    earlier = list(was.get("earlier", []))
    if not _is_same(was, _fingerprint(rows)):
        earlier.append(f"{was.get('data') or 'other data'} ({was['rows']:,} rows)")
    return earlier


def _is_same(was: dict[str, Any], is_now: dict[str, Any]) -> bool:
    return all(was.get(name) == value for name, value in is_now.items())


def _record(file: Path) -> dict[str, Any]:
    try:
        record = json.loads(file.read_bytes())
        whole = isinstance(record, dict) and all(type(record.get(name)) is int for name in ("rows", "tokens"))
        # Older records have neither.
        whole = whole and isinstance(record.get("data", ""), str) and isinstance(record.get("earlier", []), list)
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
