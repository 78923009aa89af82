"""One run of the comparison: train a variant with srm-train, then score everything. A finished step is never done twice."""

from __future__ import annotations

import json
import shlex
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from research.claim.variants import VARIANTS, Budget
from research.commands import run_command
from srm import SentenceRewardModel
from srm.evaluation.score_suite import score_responses
from srm.scoring.file import RowSettings

__all__ = ["Run", "finish", "scores_of"]


@dataclass(frozen=True, kw_only=True)
class Run:
    """A variant at one learning rate on one seed. suites: names of the files it is scored on. max_pairs: for tuning, the first so many."""

    variant: str
    learning_rate: float
    seed: int
    suites: tuple[str, ...]
    max_pairs: int | None = None

    @property
    def name(self) -> str:
        words = "".join(c if c.isalnum() else "_" for c in self.variant).strip("_")
        part = "" if self.max_pairs is None else f"-{self.max_pairs}pairs"
        return f"{words}-lr{self.learning_rate:g}-seed{self.seed}{part}"


def scores_of(run: Run, folder: Path, suite: str) -> Path:
    """Where the scores of `run` on `suite` stand."""
    return folder / run.name / f"{suite}.jsonl"


def finish(run: Run, folder: Path, data: dict[str, Path], *, model: str, budget: Budget) -> None:
    """Train and score `run` under `folder`, whatever of it is missing; its weights are deleted at the end.

    Args:
        data: the training pairs (`train`), and the responses to score by suite.
    """
    home = folder / run.name
    if (home / "done").exists():
        return
    home.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    if not (home / "train.json").exists():
        command = _train_command(run, home, data["train"], model, budget)
        seconds = run_command(command, home / "train.log")
        (home / "train.json").write_text(json.dumps({"command": shlex.join(command), "seconds": seconds}, indent=2) + "\n")
    _score(run, folder, data, budget.score_max_length)
    (home / "done").touch()
    # Half a gigabyte each, and everything that is asked of it has been answered.
    shutil.rmtree(home / "model")
    print(f"{run.name}: {time.monotonic() - start:.0f} s", flush=True)


def _score(run: Run, folder: Path, data: dict[str, Path], max_length: int) -> None:
    scorer = SentenceRewardModel.from_pretrained(folder / run.name / "model", dtype="bfloat16").eval()
    scorer.to("cuda" if torch.cuda.is_available() else "cpu")
    settings = RowSettings(overlong="truncate_response", max_length=max_length, packing="shared", tokens_per_batch=8192)
    for suite in run.suites:
        score_responses(scorer, data[suite], scores_of(run, folder, suite), identity={"run": run.name}, settings=settings)


def _train_command(run: Run, home: Path, pairs: Path, model: str, budget: Budget) -> list[str]:
    limit = [] if run.max_pairs is None else ["--max_pairs", str(run.max_pairs)]
    return [
        *("srm-train", "--model_name_or_path", model, "--dataset_name", str(pairs), "--output_dir", str(home / "model"), *limit),
        *("--seed", str(run.seed), "--learning_rate", f"{run.learning_rate:g}", *shlex.split(VARIANTS[run.variant])),
        *(
            "--max_length",
            str(budget.max_length),
            *shlex.split(budget.flags),
            "--save_strategy",
            "no",
            "--report_to",
            "none",
            "--overwrite_output_dir",
        ),
    ]
