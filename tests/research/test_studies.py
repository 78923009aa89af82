"""The small studies: commands that fail, work that is not done twice, and ways of attention that agree."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from bench.tiny import save_backbone
from research import demo, packed_attention, real_pairs, score_start
from research.claim import rivals
from research.commands import run_command
from srm import SentenceRewardModel
from srm.data import read_responses
from srm.data.synthetic import generate_pairs
from srm.scoring.lines import score_line
from srm.scoring.results import ScoredResponse


def test_a_command_that_fails_ends_the_study(tmp_path: Path) -> None:
    log = tmp_path / "train.log"
    with pytest.raises(SystemExit, match=r"(?s)srm-train\nfailed with exit code 1; its output is in .*train\.log"):
        run_command(["srm-train"], log)
    assert "--model_name_or_path is missing" in log.read_text()


def test_a_seed_with_a_report_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[Sequence[str]] = []
    report = {"settings": {"seed": 3, "output_dir": "here"}, "after": {"accuracy": 0.9}}

    def run(command: Sequence[str], log: Path) -> float:
        ran.append(command)
        (log.parent / "demo.json").write_text(json.dumps(report))
        return 1.0

    monkeypatch.setattr(demo, "run_command", run)
    for _ in range(2):
        assert demo._run(3, 40, tmp_path / "3") == {"settings": {"seed": 3}, "after": {"accuracy": 0.9}}
    assert ran == [["srm-demo", "--seed", "3", "--output_dir", str(tmp_path / "3"), "--num_pairs", "40"]]


def test_real_pairs_are_drawn_scored_and_summed_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with gzip.open(tmp_path / "pairs_test.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps({**pair.to_row(), "subset": "made"}) + "\n" for pair in generate_pairs(6))
    ran: list[str] = []

    def run(command: Sequence[str], log: Path) -> float:
        ran.append(command[0])
        if command[0] == "srm-score":
            # The chosen response comes first; the first pair is lost.
            rewards = [0.0, 1.0, *[1.0, 0.0] * 3]
            rows = read_responses(command[command.index("--input") + 1])
            scored = [ScoredResponse(reward=reward, prompt_reward=0.0, prompt_weight=1.0, sentences=()) for reward in rewards]
            lines = (score_line(row, response) for row, response in zip(rows, scored, strict=True))
            Path(command[command.index("--output") + 1]).write_text("".join(lines))
        return 1.0

    monkeypatch.setattr(real_pairs, "run_command", run)
    monkeypatch.setattr(real_pairs, "NUM_TEST", 4)
    flags = {"data": tmp_path, "output_dir": tmp_path / "work", "json": tmp_path / "result.json"}
    monkeypatch.setattr("sys.argv", ["real_pairs.py", *(word for name, value in flags.items() for word in (f"--{name}", str(value)))])
    for _ in range(2):
        real_pairs.main()
    result = json.loads((tmp_path / "result.json").read_text())
    assert [(row["subset"], row["num_pairs"], row["accuracy"]) for row in result["accuracy"]] == [("made", 4, 0.75), ("all", 4, 0.75)]
    assert result["train"]["seconds"] == result["score"]["seconds"] == 1.0
    assert ran == ["srm-train", "srm-score", "srm-score"], "a trained model is not trained again"


def test_every_way_of_attention_is_timed() -> None:
    times = packed_attention.time_attention([(5, [4, 3]), (2, [3])], rounds=1)
    assert len(times) == 3
    assert all(0 < forward < both < float("inf") for forward, both in times.values())


def test_a_wrong_way_of_attention_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_attention, "slices", lambda query, key, value, groups: packed_attention.ours(query, key, -value, groups))
    with pytest.raises(AssertionError, match="slices is wrong"):
        packed_attention.time_attention([(5, [4, 3])], rounds=1)


def test_a_score_is_compared_with_the_values_that_start_at_it(tiny_tokenizer_dir: Path, tmp_path: Path) -> None:
    pytest.importorskip("trl", reason="the classifier is TRL's")
    # Generated pairs are longer than what the usual tiny model reads.
    save_backbone(tmp_path / "base", tiny_tokenizer_dir, causal=True)
    flags = {"model_name_or_path": tmp_path / "base", "output_dir": tmp_path, "json": tmp_path / "result.json"}
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    score_start.main([*words, "--num_pairs", "8", "--num_eval_pairs", "4"])
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["classifier"]["spread"] > 0
    for measured in result["at step 0"].values():
        assert -1 <= measured["correlation of the last value with the classifier's score"] <= 1
        # It reads its score at another token.
        assert measured["mean difference of the last value to the classifier's score"] > 0.01
        assert 0 <= measured["credit"]["auc"] <= 1


def test_rivals_are_judged_on_marked_errors(tiny_backbone_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    SentenceRewardModel.from_backbone(tiny_backbone_dir, granularity="response").save_pretrained(tmp_path / "response")
    texts = {"It needs salt. You fool. Ask.": 15, "On the mat. You fool. It is warm.": 12}
    spans = tmp_path / "spans.jsonl"
    spans.write_text(
        "".join(
            json.dumps({"prompt": "Why?", "response": text, "errors": [{"type": "rude", "start": at, "end": at + 9}]}) + "\n"
            for text, at in texts.items()
        )
    )

    def call(folder: str) -> None:
        command = ["rivals", "--models", str(tmp_path / folder), "--suite", str(spans), "--output_dir", str(tmp_path / "out" / folder)]
        monkeypatch.setattr("sys.argv", [*command, "--json", str(tmp_path / "rivals.json")])
        rivals.main()

    call("response")
    found = json.loads((tmp_path / "rivals.json").read_text())
    assert found["rows"] == 2
    (judged,) = [of for name, of in found["models"].items() if name.startswith("leave_one_out:")]
    assert judged["num_responses"] == 2
    with pytest.raises(SystemExit):
        call("nothing")
