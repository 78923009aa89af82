"""What `--model` names: a reward model, or a rival that makes sentence rewards out of a model that has none of its own."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, get_args, runtime_checkable

from srm.data import ResponseRow
from srm.errors import UserError
from srm.scoring.file import RowSettings, ScoredRows

__all__ = ["RIVALS", "ModelName", "Rival", "RowScorer", "read_model_name"]

Rival = Literal["leave_one_out", "shapley", "dpo"]
RIVALS: tuple[Rival, ...] = get_args(Rival)


@runtime_checkable
class RowScorer(Protocol):
    """Anything but a `SentenceRewardModel` that scores rows into a file of scores."""

    def score_rows(self, rows: Iterable[ResponseRow], settings: RowSettings) -> Iterator[ScoredRows]:
        """Rows with their scores, in order, some at a time. See `srm.scoring.file.score_rows`.

        Args:
            rows: taken as they are needed.
            settings: how they are scored.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class ModelName:
    """One `--model`.

    Attributes:
        rival: how it rewards sentences; None of a model that is scored as it is.
        path: the model's folder or hub name.
    """

    rival: Rival | None
    path: str

    def with_path(self, path: str) -> str:
        """How the model is called where `path` is enough to name its folder."""
        return path if self.rival is None else f"{self.rival}:{path}"


def read_model_name(text: str) -> ModelName:
    """A `--model` as it was given: `MODEL`, or `RIVAL:MODEL`.

    Args:
        text: what stands on the command line.

    Raises:
        UserError: no such rival, or none of its model.
    """
    rival, colon, path = text.partition(":")
    for known in RIVALS:
        if rival == known and path:
            return ModelName(rival=known, path=path)
    if not colon or (rival not in RIVALS and (Path(text).exists() or not re.fullmatch(r"[A-Za-z_-]{2,}", rival))):
        return ModelName(rival=None, path=text)
    problem = "names no model" if rival in RIVALS else "there is no folder of that name, and no such rival"
    raise UserError(f"--model {text}: {problem}. Write {', '.join(f'{known}:MODEL' for known in RIVALS)}, or MODEL alone.")
