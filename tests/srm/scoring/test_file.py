from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from srm import SentenceRewardModel, UserError
from srm.cli.score import main
from srm.data import ResponseRow
from srm.evaluation.pairs import scored_rows
from srm.scoring.file import RowSettings, append_scores, check_identity, meta_path, score_file
from srm.scoring.lines import count_truncated, read_scores
from srm.scoring.results import ScoredResponse

IDENTITY = {"model": "m"}
SETTINGS = RowSettings(overlong="error", max_length=None, packing="shared", tokens_per_batch=64)


def write_rows(path: Path, count: int) -> Path:
    rows = [
        {"id": f"row-{i}", "prompt": f"Question {i // 3}?", "response": f"Answer {i} is here. It was warm there."} for i in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def score(model: SentenceRewardModel, source: Path, output: Path, settings: RowSettings = SETTINGS, **more: object):
    return score_file(model, str(source), output, **{"identity": IDENTITY, "settings": settings, **more})


def test_lines_are_in_input_order_and_equal_score(model: SentenceRewardModel, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl", 7)
    summary = score(model, source, tmp_path / "out.jsonl")
    assert (summary.num_scored, summary.num_resumed) == (7, 0)
    lines = list(read_scores(tmp_path / "out.jsonl"))
    assert [line["id"] for line in lines] == [f"row-{i}" for i in range(7)]
    expected = model.score(["Question 1?"], ["Answer 4 is here. It was warm there."])[0]
    assert lines[4]["reward"] == pytest.approx(expected.reward, abs=1e-5)
    assert [s["text"] for s in lines[4]["sentences"]] == ["Answer 4 is here. ", "It was warm there."]


def same_rows(path: Path, expected: Path) -> None:
    """Equal up to the rounding of a batch of another size: a run that resumes cuts its batches elsewhere."""
    found, wanted = list(read_scores(path)), list(read_scores(expected))
    assert [row["id"] for row in found] == [row["id"] for row in wanted]
    assert [row["reward"] for row in found] == pytest.approx([row["reward"] for row in wanted], abs=1e-5)


def test_an_interrupted_run_goes_on(model: SentenceRewardModel, tmp_path: Path) -> None:
    source, whole, output = write_rows(tmp_path / "in.jsonl", 12), tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    score(model, source, whole)
    written = 0

    def stop(count: int) -> None:
        nonlocal written
        written += count
        if written >= 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score(model, source, output, on_scored=stop)
    with output.open("a") as file:
        file.write('{"id": "row-6", "rew')
    summary = score(model, source, output)
    assert summary.num_resumed == written
    assert summary.num_scored == 12 - written
    same_rows(output, whole)
    assert score(model, source, output).num_scored == 0
    same_rows(output, whole)


def test_many_responses_to_one_prompt_are_read_and_written_in_pieces(model: SentenceRewardModel, tmp_path: Path) -> None:
    output, written, ahead = tmp_path / "out.jsonl", [], []

    def rows() -> Iterator[ResponseRow]:
        for number in range(150):
            on_disk = len(output.read_bytes().splitlines()) if output.exists() else 0
            ahead.append(number + 1 - on_disk)
            place = {"row_id": "row", "row": 1, "label": f"{number + 1}", "where": "line 1"}
            yield ResponseRow(id=f"row-{number}", prompt="Why?", response="It is warm.", **place)

    def on_scored(count: int) -> None:
        written.append(count)
        assert len(output.read_bytes().splitlines() if output.exists() else []) == sum(written), "told before it is on disk"

    assert append_scores(model, rows(), output, 0, SETTINGS, on_scored) == 150
    assert written == [0, 64, 64, 22]
    # A piece is known to be complete when a row behind it was read, and its last pass may take rows of the next piece.
    assert max(ahead) <= 2 * 64 + 1
    assert [row["id"] for row in read_scores(output)] == [f"row-{number}" for number in range(150)]


def test_kill_minus_nine(model: SentenceRewardModel, fork: Callable[..., BaseProcess], tmp_path: Path) -> None:
    source, output, saved = write_rows(tmp_path / "in.jsonl", 60), tmp_path / "out.jsonl", tmp_path / "model"
    model.save_pretrained(saved)
    command = ["--model", str(saved), "--input", str(source), "--output", str(output), "--tokens_per_batch", "1"]
    process = fork("srm.cli.score", *command, output=tmp_path / "printed")
    deadline = time.monotonic() + 120
    while (not output.exists() or output.stat().st_size < 500) and process.is_alive():
        assert time.monotonic() < deadline, "no line was written within two minutes"
        time.sleep(0.005)
    process.kill()
    process.join()
    assert 0 < sum(1 for _ in output.open("rb")) < 60
    assert main(command) == 0
    whole = tmp_path / "whole.jsonl"
    score(model, source, whole)
    same_rows(output, whole)


def test_other_settings_or_rows_are_refused(model: SentenceRewardModel, tmp_path: Path) -> None:
    source, output = write_rows(tmp_path / "in.jsonl", 4), tmp_path / "out.jsonl"
    score(model, source, output)
    with pytest.raises(UserError, match=r"was begun with other settings \(model was 'm', is 'n'\)"):
        score(model, source, output, identity={"model": "n"})
    source.write_text(source.read_text().replace("row-2", "changed"))
    with pytest.raises(UserError, match=r"out.jsonl line 3: holds id 'row-2', and the input has 'changed' there"):
        score(model, source, output)
    assert score(model, source, output, overwrite=True).num_scored == 4
    meta_path(output).unlink()
    with pytest.raises(UserError, match="was not written by srm-score"):
        score(model, source, output)


def test_a_changed_row_is_refused(model: SentenceRewardModel, tmp_path: Path) -> None:
    source, output = write_rows(tmp_path / "in.jsonl", 4), tmp_path / "out.jsonl"
    score(model, source, output)
    rows, whole = source.read_text(), output.read_bytes()
    for old, new in (("Answer 2 is", "Answer 2 was"), ("Question 0?", "Question zero?")):
        source.write_text(rows.replace(old, new))
        with pytest.raises(UserError, match=r"holds the score that 'row-\d' had with another prompt or response \(.*in.jsonl line \d\)"):
            score(model, source, output)
    # Messages are compared as such, not as the text of a template.
    source.write_text(rows.replace('"Question 0?"', '[{"role": "user", "content": "Question 0?"}]'))
    with pytest.raises(UserError, match="had with another prompt or response"):
        score(model, source, output)
    source.write_text("".join(rows.splitlines(keepends=True)[:3]))
    with pytest.raises(UserError, match=r"holds 4 responses, and the input has only 3 now\. The input has changed since\."):
        score(model, source, output)
    assert output.read_bytes() == whole, "a refusal changes nothing"
    # Rows that came at the end are scored.
    write_rows(source, 6)
    assert score(model, source, output).num_scored == 2
    assert [line["id"] for line in read_scores(output)] == [f"row-{i}" for i in range(6)]


def test_other_limits_are_other_settings(model: SentenceRewardModel, tmp_path: Path) -> None:
    """Also where the caller's identity does not say so."""
    source, output = write_rows(tmp_path / "in.jsonl", 2), tmp_path / "out.jsonl"
    score(model, source, output)
    with pytest.raises(UserError, match=r"begun with other settings \(max_length was None, is 150\)"):
        score(model, source, output, replace(SETTINGS, max_length=150))
    assert score(model, source, output, replace(SETTINGS, tokens_per_batch=8, packing="none")).num_resumed == 2


BROKEN = {
    "cut": lambda line: line[: len(line) // 2] + "\n",
    "empty": lambda line: "\n",
    "no object": lambda line: "[1]\n",
    "no digest": lambda line: json.dumps({**json.loads(line), "digest": None}).replace('"digest": null', '"x": 1') + "\n",
    "no number": lambda line: re.sub(r'"reward": [-\d.e]+', '"reward": "high"', line),
    "NaN": lambda line: re.sub(r'"reward": [-\d.e]+', '"reward": NaN', line),
    "too large": lambda line: re.sub(r'"reward": [-\d.e]+', f'"reward": {10**400}', line),
    "too many digits": lambda line: re.sub(r'"reward": [-\d.e]+', f'"reward": {"9" * 5000}', line),
    "deep": lambda line: "[" * 100_000 + "\n",
    "sentences": lambda line: json.dumps({**json.loads(line), "sentences": [{"text": "a"}]}) + "\n",
}


@pytest.mark.parametrize("how", BROKEN)
def test_an_edited_line_is_one_line(model: SentenceRewardModel, tmp_path: Path, how: str) -> None:
    source, output = write_rows(tmp_path / "in.jsonl", 3), tmp_path / "out.jsonl"
    score(model, source, output)
    lines = output.read_text().splitlines(keepends=True)
    output.write_text(lines[0] + BROKEN[how](lines[1]) + lines[2])
    with pytest.raises(UserError, match=r"out.jsonl line 2: is not what srm-score writes"):
        score(model, source, output)


@pytest.mark.parametrize("text", ["", "{", "[]", '"a"', "\xff", "[" * 100_000])
def test_an_edited_record_is_one_line(model: SentenceRewardModel, tmp_path: Path, text: str) -> None:
    source, output = write_rows(tmp_path / "in.jsonl", 1), tmp_path / "out.jsonl"
    score(model, source, output)
    meta_path(output).write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"meta.json: is not what srm-score writes, so the file was edited or cut"):
        score(model, source, output)


def test_readers_check_ids_and_counts(model: SentenceRewardModel, tmp_path: Path) -> None:
    source, output = write_rows(tmp_path / "in.jsonl", 3), tmp_path / "out.jsonl"
    score(model, source, output)
    lines = output.read_text().splitlines(keepends=True)

    def read() -> list[str]:
        return [row.id for group in scored_rows(str(source), output) for row, _ in group]

    assert read() == ["row-0", "row-1", "row-2"]
    for found, message in (
        (lines[:2], "ends after 2 responses, and the input has more"),
        ([*lines, lines[2]], "holds more than the 3 responses"),
        ([lines[0], lines[0], lines[1], lines[2]], "line 2: holds id 'row-0', and the input has 'row-1' there"),
        ([lines[1], lines[0], lines[2]], "line 1: holds id 'row-1'"),
    ):
        output.write_text("".join(found))
        with pytest.raises(UserError, match=message):
            read()


def test_overwriting_begins_with_new_settings(model: SentenceRewardModel, tmp_path: Path) -> None:
    source, output = write_rows(tmp_path / "in.jsonl", 2), tmp_path / "new" / "folder" / "out.jsonl"
    # Also where there is nothing to overwrite.
    assert score(model, source, output, overwrite=True).num_scored == 2
    assert score(model, source, output, overwrite=True, identity={"model": "n"}).num_scored == 2
    assert json.loads(meta_path(output).read_text()) == {"model": "n", **SETTINGS.decisive()}
    # A setting that one of the two does not know is another setting.
    for other, message in (({"model": "n", "limit": 3}, "limit was None, is 3"), ({}, "model was 'n', is None")):
        with pytest.raises(UserError, match=message):
            score(model, source, output, identity=other)


def test_settings_that_there_are_not_are_refused() -> None:
    with pytest.raises(UserError, match="`overlong` must be one of error, truncate_prompt, truncate_response, got 'drop'"):
        replace(SETTINGS, overlong="drop")
    with pytest.raises(UserError, match="`packing` must be one of shared, packed, none, got 'foo'"):
        replace(SETTINGS, packing="foo")


def test_bad_rows_are_left_out_where_asked(model: SentenceRewardModel, tmp_path: Path) -> None:
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"id": "a", "prompt": "Hi", "response": "Crème brûlée. 🙂"}\n{"prompt": "Hi"}\n', encoding="utf-8")
    with pytest.raises(UserError, match=r"in.jsonl line 2"):
        score(model, source, output)
    assert score(model, source, output, overwrite=True, skip_bad_rows=True).num_scored == 1
    # Text is written as it is, for people and for grep.
    assert "Crème brûlée. " in output.read_text(encoding="utf-8")


def test_too_long_a_row_is_named_or_cut(model: SentenceRewardModel, tmp_path: Path) -> None:
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    rows = [{"prompt": "Hi", "response": "Short."}, {"prompt": "Hi", "response": "This one is long. " * 40}]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match=r"in.jsonl line 2: prompt and response are \d+ tokens, max_length is 100"):
        score(model, source, output, replace(SETTINGS, max_length=100))
    score(model, source, output, replace(SETTINGS, max_length=100, overlong="truncate_response"), overwrite=True)
    short, long = read_scores(output)
    assert 0 < len(long["sentences"]) < 40
    assert ("truncated" in short, long["truncated"], count_truncated(output)) == (False, True, 1)
    assert ScoredResponse.from_dict(long).truncated
    output.write_text(output.read_text().replace('"truncated": true', '"truncated": 1'))
    with pytest.raises(UserError, match="line 2: is not what srm-score writes"):
        count_truncated(output)


@pytest.mark.parametrize("change", [{"overlong": "truncate_response"}, {"overlong": "truncate_prompt"}, {"max_length": 1000}])
def test_a_run_that_stopped_at_too_long_a_row_goes_on_as_its_message_advises(
    model: SentenceRewardModel, tmp_path: Path, change: dict[str, Any]
) -> None:
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    rows: list[dict[str, str]] = [{"prompt": f"Question {i}?", "response": "Short."} for i in range(10)]
    rows.append({"prompt": "Why is that so? " * 12, "response": "It is warm there."})
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    strict = replace(SETTINGS, max_length=100)
    with pytest.raises(UserError, match=r"in.jsonl line 11"):
        score(model, source, output, strict)
    with pytest.raises(UserError, match="max_length was 100, is 90"):
        score(model, source, output, replace(strict, max_length=90))
    lenient = replace(strict, **change)
    if change == {"overlong": "truncate_response"}:
        # The prompt alone is too long; the record is that of the new settings all the same.
        with pytest.raises(UserError, match="the prompt alone"):
            score(model, source, output, lenient)
    else:
        summary = score(model, source, output, lenient)
        assert summary.num_resumed + summary.num_scored == 11
        assert summary.num_resumed > 0
    with pytest.raises(UserError, match=f"{next(iter(change))} was"):
        score(model, source, output, strict)


def test_command_prints_accuracy_of_pairs(model: SentenceRewardModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved, source, output = tmp_path / "model", tmp_path / "pairs.jsonl", tmp_path / "out.jsonl"
    model.save_pretrained(saved)
    pairs = [
        {"id": "a", "subset": "one", "prompt": "Hi", "chosen": "It is warm there. Bread needs salt.", "rejected": "No."},
        {"id": "b", "subset": "two", "prompt": "Hi", "chosen": "Yes.", "rejected": "It is wrong, wrong!"},
    ]
    source.write_text("".join(json.dumps(row) + "\n" for row in pairs))
    command = ["--model", str(saved), "--input", str(source), "--output", str(output)]
    assert main(command) == 0
    ids = [line["id"] for line in read_scores(output)]
    assert ids == ["a/chosen", "a/rejected", "b/chosen", "b/rejected"]
    reward = {line["id"]: line["reward"] for line in read_scores(output)}
    won = [reward["a/chosen"] > reward["a/rejected"], reward["b/chosen"] > reward["b/rejected"]]
    table = capsys.readouterr().out
    for row in (f"one . 1 . {won[0]:.1%} . 100.0%", f"two . 1 . {won[1]:.1%} . 0.0%", f"all . 2 . {sum(won) / 2:.1%} . 50.0%"):
        assert " ".join(row.split(" . ")) in " ".join(table.replace("│", " ").split())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"prompt": "a", "response": ', "in.jsonl line 1"),
        ('{"prompt": "a"}', "in.jsonl line 1"),
        ('{"prompt": "a", "response": ""}', "in.jsonl line 1"),
        ("", "in.jsonl"),
    ],
)
def test_bad_input_is_one_line(
    model: SentenceRewardModel, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text(text)
    model.save_pretrained(tmp_path / "model")
    capsys.readouterr()
    assert main(["--model", str(tmp_path / "model"), "--input", str(source), "--output", str(tmp_path / "out.jsonl")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("srm-score: ")
    assert error.count("\n") == 1
    assert message in error


def test_a_model_that_is_no_reward_model(tiny_backbone_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_rows(tmp_path / "in.jsonl", 1)
    assert main(["--model", str(tiny_backbone_dir), "--input", str(source), "--output", str(tmp_path / "out.jsonl")]) == 1
    assert "is a plain llama model, not a trained reward model" in capsys.readouterr().err


def test_no_digest_is_shown(tmp_path: Path) -> None:
    before, now = {"gone": "1" * 64, "weights": "a" * 64, "input": "sha256:" + "3" * 64}, {"new": "2" * 64, "weights": "b" * 64}
    with pytest.raises(UserError) as caught:
        check_identity(tmp_path / "out.jsonl", before, now)
    assert "other settings (gone is gone; input is gone; new is new; and 1 more)" in str(caught.value)
    with pytest.raises(UserError, match=r"\(weights has other contents now\)"):
        check_identity(tmp_path / "out.jsonl", {"weights": "a" * 64}, {"weights": "b" * 64})
