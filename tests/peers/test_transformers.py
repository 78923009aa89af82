"""The oldest transformers that pyproject.toml takes: what depends on it most, and what only old releases do."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoModel

from srm import SentenceRewardModel

ROOT = Path(__file__).resolve().parents[2]
PROMPTS, RESPONSES = ["Why is bread salty?", "Where does the cat sit?"], ["It needs salt. Flour alone is dull.", "No, it is wrong!"]


def test_it_is_the_oldest_that_we_take() -> None:
    wanted = re.search(r'"transformers>=([\d.]+)', (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert wanted is not None
    assert transformers.__version__.startswith(wanted[1] + ".")


@pytest.mark.parametrize("load", [SentenceRewardModel, AutoModel])
def test_the_head_that_was_saved_is_the_head_that_scores(
    load: type, awake_model: Callable[[], SentenceRewardModel], tmp_path: Path
) -> None:
    """Up to 5.12, transformers initialises a loaded head again: every reward would be 0."""
    model = awake_model()
    model.save_pretrained(tmp_path)
    loaded = load.from_pretrained(tmp_path)
    for (name, saved), (_, found) in zip(model.head.named_parameters(), loaded.head.named_parameters(), strict=True):
        assert torch.equal(saved, found), name
    rewards = [scored.reward for scored in loaded.eval().score(PROMPTS, RESPONSES)]
    assert rewards == pytest.approx([scored.reward for scored in model.score(PROMPTS, RESPONSES)], abs=1e-6)
    assert 0 not in rewards


@pytest.mark.parametrize("part", ["modeling", "scoring/test_text.py", "training/test_trainer.py"])
def test_our_own_tests_pass(part: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"tests/srm/{part}"]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:]
