"""research/claim/compare.py on a tiny model and generated pairs: every run once, the table whole, and no run twice."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from research.claim import compare as script
from research.claim import runs, summary
from research.claim.data import draw
from research.claim.variants import BUDGETS
from srm.cli import train


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Trains in this process, where a new one would take its time to start; the output folders of the runs so far."""
    folders: list[str] = []

    def run(command: list[str], log: Path) -> float:
        folders.append(Path(command[command.index("--output_dir") + 1]).parent.name)
        assert train.main(command[1:]) == 0
        return 1.0

    monkeypatch.setattr(runs, "run_command", run)
    return folders


@pytest.fixture
def compare(data: Path, tiny_backbone_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """compare(*variants): run the command; the JSON that it wrote."""
    tiny = dataclasses.replace(BUDGETS["dry"], learning_rates=(1e-5, 1e-3), tune_pairs=4, seeds=(0, 1))
    monkeypatch.setitem(script.BUDGETS, "cpu", tiny)

    def run(*names: str) -> dict[str, Any]:
        result = tmp_path / "results" / "claim_cpu.json"
        folders = ("--data", str(data), "--output_dir", str(tmp_path / "work"), "--json", str(result))
        monkeypatch.setattr("sys.argv", ["compare.py", *folders, "--model_name_or_path", str(tiny_backbone_dir), "--variants", *names])
        plots: list[tuple[Any, ...]] = []
        with monkeypatch.context() as patch:
            # One is drawn after each run, which would take most of the time here.
            patch.setattr(summary, "plot", lambda *arguments: plots.append(arguments))
            script.main()
        summary.plot(*plots[-1])
        assert result.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
        assert "| longer wins |" in result.with_suffix(".md").read_text()
        return json.loads(result.read_text())

    return run


def test_all_variants_are_trained_once_and_compared(compare, trained, tmp_path, monkeypatch):
    first = compare("sentence", "response")
    # Three granularities at two rates on fewer pairs, then two variants on two seeds.
    assert len(trained) == len(set(trained)) == 6 + 4
    assert sum("4pairs" in name for name in trained) == 6
    rows = first["rows"]
    assert {"sentence", "response", "longer wins", "shorter wins", "credit: random"} <= rows.keys()
    for name in ("sentence", "response"):
        for measure in ("test", "suite", "credit", "suite/A", "suite/B"):
            found = rows[name][measure]
            assert 0 <= found["low"] <= found["estimate"] <= found["high"] <= 1
            assert len(rows[name]["seeds"][measure]) == 2
            assert found["estimate"] == pytest.approx(sum(rows[name]["seeds"][measure]) / 2)
    gain = rows["sentence"]["minus_response"]["suite"]["estimate"]
    assert gain == pytest.approx(rows["sentence"]["suite"]["estimate"] - rows["response"]["suite"]["estimate"])
    best = {name: max(rates, key=rates.get) for name, rates in first["tuning_accuracy"].items()}
    assert all(float(best[run["variant"]]) == run["learning_rate"] for run in first["runs"])
    assert not list((tmp_path / "work").glob("runs/*/model")), "weights were left behind"

    trained.clear()
    assert compare("sentence", "response")["rows"] == rows
    assert trained == []
    # An ablation has the first seed alone, and is compared with that seed of the response level.
    rows = compare("sentence", "response", "no RoPE")["rows"]
    gain = rows["no RoPE"]["minus_response"]["suite"]["estimate"]
    assert gain == pytest.approx(rows["no RoPE"]["suite"]["estimate"] - rows["response"]["seeds"]["suite"][0])


def test_a_stopped_run_goes_on_where_it_was(compare, trained, monkeypatch):
    scored = runs.score_responses

    def stopped(model, source, output, **settings):
        if output.name == "suite.jsonl":
            raise KeyboardInterrupt
        scored(model, source, output, **settings)

    monkeypatch.setattr(runs, "score_responses", stopped)
    with pytest.raises(KeyboardInterrupt):
        compare("no RoPE")
    assert trained[-1].startswith("no_RoPE")
    trained.clear()
    monkeypatch.setattr(runs, "score_responses", scored)
    assert "no RoPE" in compare("no RoPE")["rows"]
    assert trained == []


def test_tuning_and_results_share_no_prompt(data, tmp_path):
    files = draw(data, tmp_path / "drawn", BUDGETS["gpu"])
    prompts = {name: {json.loads(line)["prompt"] for line in file.read_text().splitlines()} for name, file in files.items()}
    assert prompts["tune"]
    assert prompts["test"]
    assert not prompts["tune"] & prompts["test"]
    assert len(prompts["tune"] | prompts["test"]) == 24


def test_long_rows_are_left_out_but_not_among_the_marked(data, tmp_path):
    files = draw(data, tmp_path / "drawn", dataclasses.replace(BUDGETS["gpu"], max_chars=1))
    assert files["train"].read_text() == ""
    assert len(files["spans"].read_text().splitlines()) == 16
