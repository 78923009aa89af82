"""What srm-score shows of the file it wrote: rows in the terminal, a page."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from srm import SentenceRewardModel
from srm.cli import score
from srm.scoring.lines import read_scores


@pytest.fixture(scope="module")
def model_dir(awake_model: Callable[..., SentenceRewardModel], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    awake_model().save_pretrained(path)
    return path


ROWS: list[dict[str, Any]] = [
    {
        "id": "a",
        "section": "Chat",
        "subset": "zoo",
        "prompt": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Is it warm?"}],
        "chosen": "It was warm there. Yes.",
        "rejected": "It was warm there. You fool.",
        "damaged": [{"start": 19, "end": 28, "kind": "rude"}],
    },
    {"id": "b", "prompt": "Why?", "response": "The cat sat. On the mat.", "errors": [{"start": 0, "end": 3, "type": "fact"}]},
    {"id": "c", "prompt": "Why?", "response": "Bread needs flour.", "errors": "none", "damaged": 3},
    {"id": "d", "prompt": "Which?", "responses": ["It is wrong.", "It is right."], "errors": [{"start": 0, "end": 3, "type": "fact"}]},
]


def run(model_dir: Path, folder: Path, *flags: str) -> Path:
    source, output = folder / "rows.jsonl", folder / "scores.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    assert score.main(["--model", str(model_dir), "--input", str(source), "--output", str(output), *flags]) == 0
    return output


def test_show(model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    output = run(model_dir, tmp_path, "--show", "2")
    shown = capsys.readouterr().out
    rewards = [line["reward"] for line in read_scores(output)]
    assert f"chosen, reward {rewards[0]:+.2f}" in shown
    assert f"rejected, reward {rewards[1]:+.2f}" in shown
    assert f"response, reward {rewards[2]:+.2f}" in shown
    assert "system: Be kind." in shown
    assert re.search(r"You fool\. +<< rude", shown)
    assert re.search(r"The cat sat\. +<< fact", shown)
    assert "Bread" not in shown
    # Again, all is scored already; three rows where no number is given.
    run(model_dir, tmp_path, "--show")
    shown = capsys.readouterr().out
    assert "Bread needs flour." in shown
    assert "It is right." not in shown
    # Rows b and c answer one prompt, on one scale; the pair has its own.
    assert shown.count("Why?") == 1
    assert shown.count("colour: reward from the response's median") == 2


def test_html(model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = run(model_dir, tmp_path, "--html", str(tmp_path / "new" / "page.html"))
    assert str(tmp_path / "new" / "page.html") in capsys.readouterr().out.replace("\n", "")
    page = (tmp_path / "new" / "page.html").read_text(encoding="utf-8")
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL).group(1))
    assert [pair["id"] for pair in data["pairs"]] == ["a", "b", "c", "d/1", "d/2"]
    pair, single, *plain = data["pairs"]
    assert (pair["section"], pair["subset"]) == ("Chat", "zoo")
    assert [response["reward"] for row in data["pairs"] for response in row["responses"]] == [
        line["reward"] for line in read_scores(output)
    ]
    marks = [[kinds for _, _, parts in row["responses"][-1]["sentences"] for _, kinds in parts if kinds] for row in data["pairs"]]
    assert marks == [["rude"], ["fact"], [], [], []]
    assert single["margin"] is None
    assert [table["title"] for table in data["tables"]] == ["Pairs ranked rightly"]
    assert data["tables"][0]["rows"][-1][:2] == ["all", "1"]
    assert len(plain) == 3


def test_a_page_of_ours_is_written_anew_and_a_page_of_others_only_on_request(
    model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    run(model_dir, tmp_path, "--html", str(page))
    run(model_dir, tmp_path, "--html", str(page))
    page.write_text("<!doctype html>\n<html>mine</html>")
    command = ["--model", str(model_dir), "--input", str(tmp_path / "rows.jsonl"), "--output", str(tmp_path / "scores.jsonl")]
    assert score.main([*command, "--html", str(page)]) == 1
    assert "page.html: exists and is no page of srm-score" in capsys.readouterr().err
    run(model_dir, tmp_path, "--html", str(page), "--overwrite")
    assert "It is right." in page.read_text()


def test_a_record_that_does_not_fit_is_refused_before_the_model_is_loaded(
    model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(model_dir, tmp_path)
    monkeypatch.setattr(score, "load_model", lambda *_: pytest.fail("loaded"))
    command = ["--model", str(model_dir), "--input", str(tmp_path / "rows.jsonl"), "--output", str(tmp_path / "scores.jsonl")]
    assert score.main([*command, "--max_length", "100"]) == 1
    assert "was begun with other settings (max_length was None, is 100)" in capsys.readouterr().err


def test_the_last_line_counts_what_was_cut(model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps({"prompt": "Hi", "response": "It is warm. " * count}) + "\n" for count in (1, 60, 1)))
    command = ["--model", str(model_dir), "--input", str(source), "--output", str(output), "--max_length", "100"]
    assert score.main(command) == 1
    assert score.main([*command, "--overlong", "truncate_response"]) == 0
    told = " ".join(capsys.readouterr().err.split())
    assert "1 of 3 responses were cut to --max_length 100 (--overlong truncate_response)" in told
    assert ["truncated" in line for line in read_scores(output)] == [False, True, False]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--html", "page.html"], "--html: 6 responses are too many for one page, the limit is 3."),
        (["--show", "-1"], "--show must be at least 0 and at most 2,147,483,647, got -1."),
    ],
)
def test_what_cannot_be_shown_is_said_before_scoring(
    model_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    flags: list[str],
    message: str,
) -> None:
    monkeypatch.setattr(score, "_MOST_ON_A_PAGE", 3)
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    assert score.main(["--model", str(model_dir), "--input", str(source), "--output", str(tmp_path / "out.jsonl"), *flags]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize(
    ("flags", "world", "message"),
    [
        (["--address", "auto"], "1", "--address is for --engine ray. Add that, or leave the flag out."),
        (["--num_workers", "2"], "1", "--num_workers is for --engine ray. Add that, or leave the flag out."),
        (["--engine", "ray"], "2", "--engine ray starts its workers itself. Start it without accelerate launch or torchrun."),
        (["--engine", "ray", "--device", "cuda:1"], "1", "--device cuda:1: Ray gives each worker its GPU."),
        (["--engine", "ray", "--num_workers", "0"], "1", "--num_workers must be at least 1"),
        (["--engine", "ray"], "1", "--engine ray: ray is not installed. Run: pip install 'srm-kernels[ray]'"),
    ],
)
def test_what_cannot_run_on_ray_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, flags: list[str], world: str, message: str
) -> None:
    monkeypatch.setenv("WORLD_SIZE", world)
    # As where the extra is not installed.
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "Hi", "response": "Yes."}\n')
    command = ["--model", "unused", "--input", str(tmp_path / "rows.jsonl"), "--output", str(tmp_path / "scores.jsonl")]
    assert score.main([*command, *flags]) == 1
    assert message in capsys.readouterr().err


def test_parts_of_several_processes_are_not_gone_on_with_on_ray(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "Hi", "response": "Yes."}\n')
    (tmp_path / "scores.jsonl.parts").mkdir()
    command = ["--model", "unused", "--input", str(tmp_path / "rows.jsonl"), "--output", str(tmp_path / "scores.jsonl")]
    assert score.main([*command, "--engine", "ray"]) == 1
    assert "scores.jsonl.parts: several processes have begun" in capsys.readouterr().err


def test_of_several_splits_the_user_names_one(model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, output = tmp_path / "rows", tmp_path / "scores.jsonl"
    source.mkdir()
    for name in ("train", "test"):
        (source / f"{name}.jsonl").write_text(json.dumps({"id": name, "prompt": "Hi", "response": "Yes."}) + "\n")
    command = ["--model", str(model_dir), "--input", str(source), "--output", str(output)]
    assert score.main(command) == 1
    assert f"{source}: the folder has the splits test, train. Say which by --split" in capsys.readouterr().err
    assert score.main([*command, "--split", "test"]) == 0
    assert [line["id"] for line in read_scores(output)] == ["test"]
    # The only one need not be named.
    (source / "train.jsonl").unlink()
    assert score.main(command) == 0


def test_another_way_to_write_the_input_is_no_other_setting(
    model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(model_dir, tmp_path)
    monkeypatch.chdir(tmp_path)
    for name in ("rows.jsonl", "./rows.jsonl", f"../{tmp_path.name}/rows.jsonl"):
        assert score.main(["--model", str(model_dir), "--input", name, "--output", "scores.jsonl"]) == 0
    assert "6 of them by an earlier run" in capsys.readouterr().err


def test_a_model_that_is_not_there_is_said_before_settings_are_compared(
    model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(model_dir, tmp_path)
    typo = tmp_path / "typo"
    assert score.main(["--model", str(typo), "--input", str(tmp_path / "rows.jsonl"), "--output", str(tmp_path / "scores.jsonl")]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"srm-score: {typo}")
    assert "other settings" not in said
