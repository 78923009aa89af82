"""The rows that every run shares, drawn once with a fixed seed into files of their own."""

from __future__ import annotations

import gzip
import hashlib
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from research.claim.variants import Budget

__all__ = ["draw"]

Row = dict[str, Any]


def draw(source: Path, target: Path, budget: Budget) -> dict[str, Path]:
    """Write what `budget` takes of the files in `source` to `target`; files that are there already are kept.

    source: pairs_train, pairs_test, suite_dev and error_spans, each .jsonl.gz (docs/results.md says what is in them).
    """
    target.mkdir(parents=True, exist_ok=True)
    takes: dict[str, tuple[str, int | None, Callable[[Row], bool]]] = {
        "train": ("pairs_train", budget.train_pairs, lambda row: True),
        # Halves of one file: learning rates are chosen on the one, results are reported on the other.
        "tune": ("pairs_test", budget.test_pairs, _is_for_tuning),
        "test": ("pairs_test", budget.test_pairs, lambda row: not _is_for_tuning(row)),
        "suite": ("suite_dev", budget.suite_pairs, lambda row: True),
        "spans": ("error_spans", budget.span_responses, lambda row: True),
    }
    files = {}
    for name, (file, count, wanted) in takes.items():
        files[name] = target / f"{name}.jsonl"
        if not files[name].exists():
            # Contexts of the marked answers are long, and what is known about them is rare: no limit there.
            limit = None if name == "spans" else budget.max_chars
            rows = [row for row in _read(source / f"{file}.jsonl.gz") if wanted(row) and (limit is None or _chars(row) <= limit)]
            if count is not None and count < len(rows):
                rows = random.Random(f"claim {name}").sample(rows, count)
            part = files[name].with_suffix(".part")
            part.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
            part.rename(files[name])
    return files


def _read(path: Path) -> list[Row]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def _is_for_tuning(row: Row) -> bool:
    """By prompt, so that no prompt is on both sides."""
    return hashlib.sha256(json.dumps(row["prompt"]).encode()).digest()[0] % 2 == 0


def _chars(row: Row) -> int:
    return sum(_length(row[name]) for name in ("prompt", "chosen", "rejected"))


def _length(text: str | list[dict[str, str]]) -> int:
    return len(text) if isinstance(text, str) else sum(len(message["content"]) for message in text)
