"""The examples of docs/data.md are what the readers take."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from srm.data import parse_row
from srm.data.rows import parse_responses
from srm.data.schema import RawRow

PAGE = Path(__file__).resolve().parents[3] / "docs" / "data.md"
BLOCKS = re.findall(r"```json\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
EXAMPLES = [json.loads(line) for block in BLOCKS for line in block.splitlines()]


@pytest.mark.parametrize("example", EXAMPLES)
def test_every_example_can_be_scored(example: dict[str, Any]) -> None:
    assert list(parse_responses(RawRow(where="here", id="x", number=1, fields=example)))


@pytest.mark.parametrize("example", [example for example in EXAMPLES if "response" not in example and "id" not in example])
def test_the_examples_for_training(example: dict[str, Any]) -> None:
    assert parse_row(example, where="here", id="x").pairs


def test_there_are_examples_of_every_form() -> None:
    assert len(EXAMPLES) == 16
