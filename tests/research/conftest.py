"""The files that the studies of research/claim read."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from srm.data.synthetic import generate_pairs


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Folder with the four files, of generated pairs: 12 to train on, 24 to test, 16 of a suite in two sections and with marked errors."""
    folder = tmp_path / "data"
    folder.mkdir()
    train, test, suite = (generate_pairs(count, split=split) for count, split in ((12, "train"), (24, "test"), (16, "test")))
    files: dict[str, list[dict[str, Any]]] = {
        "pairs_train": [pair.to_row() for pair in train],
        "pairs_test": [pair.to_row() for pair in test],
        "suite_dev": [{**pair.to_row(), "section": "AB"[index % 2], "subset": pair.domain} for index, pair in enumerate(suite)],
        "error_spans": [
            {
                "prompt": pair.prompt,
                "response": pair.rejected,
                "errors": [{"type": bad["kind"], "start": bad["start"], "end": bad["end"]} for bad in pair.to_row()["damaged"]],
            }
            for pair in suite
        ],
    }
    for name, rows in files.items():
        with gzip.open(folder / f"{name}.jsonl.gz", "wt", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    return folder
