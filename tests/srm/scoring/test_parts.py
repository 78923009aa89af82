"""Several processes score one file: nothing lost, nothing repeated, in order, whoever is killed when."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from srm import SentenceRewardModel, UserError
from srm.cli.score import main
from srm.scoring import parts as module
from srm.scoring.file import RowSettings, ScoreFileSummary, meta_path, score_file
from srm.scoring.lines import read_scores
from srm.scoring.parts import parts_folder, score_parts

IDENTITY = {"model": "m"}
SETTINGS = RowSettings(overlong="error", max_length=None, packing="shared", tokens_per_batch=64)
NUM_ROWS = 50


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FEWEST_ROWS", 4)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    rows = [{"id": f"row-{i}", "prompt": f"Question {i // 3}?", "response": f"Answer {i} is here. It was warm."} for i in range(NUM_ROWS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def whole(model: SentenceRewardModel, source: Path, tmp_path: Path) -> list[dict]:
    """What one process writes."""
    output = tmp_path / "whole.jsonl"
    score_file(model, str(source), output, identity=IDENTITY, settings=SETTINGS)
    return list(read_scores(output))


def share(model: SentenceRewardModel, source: Path, output: Path, process: int, count: int, **more: object) -> ScoreFileSummary | None:
    arguments = {"num_rows": NUM_ROWS, "identity": IDENTITY, "settings": SETTINGS, **more}
    return score_parts(model, str(source), output, process=process, num_processes=count, **arguments)


def assert_same(output: Path, whole: list[dict]) -> None:
    found = list(read_scores(output))
    assert [row["id"] for row in found] == [row["id"] for row in whole]
    assert [row["reward"] for row in found] == pytest.approx([row["reward"] for row in whole], abs=1e-5)
    assert not parts_folder(output).exists()
    assert json.loads(meta_path(output).read_text()) == {**IDENTITY, **SETTINGS.decisive()}


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_shares_join_in_input_order(model: SentenceRewardModel, source: Path, whole: list[dict], tmp_path: Path, order: tuple) -> None:
    output = tmp_path / "out.jsonl"
    seen: dict[int, int] = dict.fromkeys(order, 0)
    summaries = []
    for process in order:
        assert not output.exists(), "half a file must not look whole"

        def count(rows: int, process: int = process) -> None:
            seen[process] += rows

        summaries.append(share(model, source, output, process, 3, on_scored=count))
    assert [summary is None for summary in summaries] == [True, True, False]
    assert sum(seen.values()) == NUM_ROWS
    assert max(seen.values()) - min(seen.values()) <= 8
    assert_same(output, whole)
    assert share(model, source, output, 0, 3) == ScoreFileSummary(num_scored=0, num_resumed=NUM_ROWS)
    assert_same(output, whole)


def stopped(model: SentenceRewardModel, source: Path, output: Path, process: int, count: int, after: int) -> None:
    """A process that dies after some rows, in the middle of a line."""
    written = 0

    def stop(rows: int) -> None:
        nonlocal written
        written += rows
        if written >= after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        share(model, source, output, process, count, on_scored=stop)
    for growing in parts_folder(output).glob("*.growing"):
        with growing.open("a") as file:
            file.write('{"id": "row-')


@pytest.mark.parametrize("later", [1, 2, 3])
def test_a_dead_process_is_made_up_for_by_any_number(
    model: SentenceRewardModel, source: Path, whole: list[dict], tmp_path: Path, later: int
) -> None:
    output = tmp_path / "out.jsonl"
    stopped(model, source, output, 0, 2, after=7)
    assert share(model, source, output, 1, 2) is None
    scored = 0

    def count(rows: int) -> None:
        nonlocal scored
        scored += rows

    for process in range(later):
        summary = share(model, source, output, process, later, on_scored=count)
    assert summary is not None
    assert_same(output, whole)


def test_what_is_on_disk_is_not_scored_again(model: SentenceRewardModel, source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    stopped(model, source, output, 0, 1, after=20)
    summary = share(model, source, output, 0, 1)
    assert summary is not None
    assert 0 < summary.num_scored <= NUM_ROWS - 20


def test_a_run_by_one_process_is_gone_on_with(model: SentenceRewardModel, source: Path, whole: list[dict], tmp_path: Path) -> None:
    output, written = tmp_path / "out.jsonl", 0

    def stop(rows: int) -> None:
        nonlocal written
        written += rows
        if written >= 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score_file(model, str(source), output, identity=IDENTITY, settings=SETTINGS, on_scored=stop)
    with output.open("a") as file:
        file.write('{"id": "row-1')
    scored = [share(model, source, output, process, 2) for process in range(2)]
    assert_same(output, whole)
    assert scored[1].num_scored <= NUM_ROWS - 10


def test_other_settings_or_rows_are_refused(model: SentenceRewardModel, source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    stopped(model, source, output, 0, 2, after=7)
    with pytest.raises(UserError, match=r"begun with other settings \(model was 'm', is 'n'\)"):
        share(model, source, output, 1, 2, identity={"model": "n"})
    with pytest.raises(UserError, match=r"begun on 50 responses, and the input has 49 now. Choose another --output, or delete .*parts"):
        share(model, source, output, 1, 2, num_rows=49)
    source.write_text(source.read_text().replace("row-0", "changed"))
    with pytest.raises(UserError, match=r"holds id 'row-0', and the input has 'changed' there"):
        share(model, source, output, 0, 2)
    (tmp_path / "other.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="was not written by srm-score"):
        share(model, source, tmp_path / "other.jsonl", 0, 2)


def test_a_changed_row_is_noticed_wherever_its_score_is(model: SentenceRewardModel, source: Path, tmp_path: Path) -> None:
    output, rows = tmp_path / "out.jsonl", source.read_text()

    def change(row: int) -> None:
        source.write_text(rows.replace(f"Answer {row} is", f"Answer {row} was"))

    def stop(count: int) -> None:
        if count:
            raise KeyboardInterrupt

    # Scored by one process, by an earlier group, and in a whole output.
    with pytest.raises(KeyboardInterrupt):
        score_file(model, str(source), output, identity=IDENTITY, settings=SETTINGS, on_scored=stop)
    change(0)
    with pytest.raises(UserError, match="holds the score that 'row-0' had with another prompt or response"):
        share(model, source, output, 1, 2)
    source.write_text(rows)
    assert share(model, source, output, 1, 2) is None
    change(NUM_ROWS - 1)
    with pytest.raises(UserError, match=f"holds the score that 'row-{NUM_ROWS - 1}' had with another"):
        share(model, source, output, 1, 2)
    source.write_text(rows)
    assert share(model, source, output, 0, 2) is not None
    for row in (0, NUM_ROWS - 1):
        change(row)
        with pytest.raises(UserError, match=f"holds the score that 'row-{row}' had with another prompt or response"):
            share(model, source, output, 0, 2)
    source.write_text("".join(rows.splitlines(keepends=True)[:-1]))
    with pytest.raises(UserError, match=r"holds 50 responses, and the input has only 49 now"):
        share(model, source, output, 0, 2, num_rows=49)


@pytest.mark.parametrize("text", ["{", "{}", '{"identity": [], "plan": 3}', '{"identity": {}, "plan": {"first": 1}}'])
def test_an_edited_plan_is_one_line(model: SentenceRewardModel, source: Path, tmp_path: Path, text: str) -> None:
    output = tmp_path / "out.jsonl"
    parts_folder(output).mkdir()
    (parts_folder(output) / "plan.json").write_text(text)
    with pytest.raises(UserError, match=r"plan.json: (was|is not what srm-score writes, so the file was) edited"):
        share(model, source, output, 0, 2)


def test_a_whole_output_is_kept_to_its_settings(model: SentenceRewardModel, source: Path, whole: list[dict], tmp_path: Path) -> None:
    output = tmp_path / "new" / "folder" / "out.jsonl"
    assert share(model, source, output, 0, 1) == ScoreFileSummary(num_scored=NUM_ROWS, num_resumed=0)
    with pytest.raises(UserError, match=r"begun with other settings \(model was 'm', is 'n'\)"):
        share(model, source, output, 0, 1, identity={"model": "n"})
    # What a process left that was killed between joining and cleaning up.
    parts_folder(output).mkdir()
    (parts_folder(output) / "000000.jsonl").write_text("old\n")
    assert share(model, source, output, 0, 1) == ScoreFileSummary(num_scored=0, num_resumed=NUM_ROWS)
    assert_same(output, whole)


def test_parts_that_are_done_count_as_progress(model: SentenceRewardModel, source: Path, whole: list[dict], tmp_path: Path) -> None:
    output, seen = tmp_path / "out.jsonl", []
    assert share(model, source, output, 0, 2) is None
    assert share(model, source, output, 0, 2, on_scored=seen.append) is None
    done = sum(seen)
    assert 0 < done < NUM_ROWS
    assert share(model, source, output, 1, 2, on_scored=seen.append) is not None
    assert sum(seen) == NUM_ROWS
    assert not list(tmp_path.glob("*.partial"))
    assert_same(output, whole)


def test_bad_rows_are_left_out_where_asked(model: SentenceRewardModel, source: Path, whole: list[dict], tmp_path: Path) -> None:
    with source.open("a") as file:
        file.write('{"prompt": "Hi"}\n')
    assert share(model, source, tmp_path / "out.jsonl", 0, 1, skip_bad_rows=True) is not None
    assert_same(tmp_path / "out.jsonl", whole)


def test_the_input_is_not_written_over(model: SentenceRewardModel, source: Path) -> None:
    before = source.read_bytes()
    with pytest.raises(UserError, match=r"^output .*in\.jsonl"):
        share(model, source, source, 0, 2)
    assert source.read_bytes() == before


def test_another_process_that_joins_first_leaves_nothing_behind(
    model: SentenceRewardModel, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one has joined the parts and deleted them while this one was about to read them."""
    output = tmp_path / "out.jsonl"
    assert share(model, source, output, 0, 2) is None
    copy = module.shutil.copyfileobj

    def too_late(*arguments: object) -> None:
        monkeypatch.setattr(module.shutil, "copyfileobj", copy)
        raise FileNotFoundError

    monkeypatch.setattr(module.shutil, "copyfileobj", too_late)
    assert share(model, source, output, 1, 2) is None
    assert not list(tmp_path.glob("*.partial"))
    assert not output.exists()


def test_overwriting_is_left_to_one_process(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.jsonl"
    output.write_text("")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["--model", "unused", "--input", str(source), "--output", str(output), "--overwrite"]) == 1
    assert "several processes cannot agree on when to delete it" in capsys.readouterr().err


@pytest.mark.slow
def test_launched_killed_and_launched_again(
    model: SentenceRewardModel, source: Path, fork: Callable[..., BaseProcess], tmp_path: Path
) -> None:
    saved, output = tmp_path / "model", tmp_path / "out.jsonl"
    model.save_pretrained(saved)
    command = ["--model", str(saved), "--input", str(source), "--output", str(output), "--tokens_per_batch", "1"]
    places = ["--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
    launch = [sys.executable, "-m", "accelerate.commands.launch", *places, "-m", "srm.cli.score", *command]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    # One of two processes, killed with -9 in the middle of its share; the other finishes its own.
    victim, other = (
        fork("srm.cli.score", *command, output=tmp_path / f"printed_{rank}", RANK=str(rank), WORLD_SIZE="2") for rank in range(2)
    )
    deadline = time.monotonic() + 240
    while not any(path.stat().st_size > 300 for path in parts_folder(output).glob("000000.*")):
        assert victim.is_alive()
        assert time.monotonic() < deadline, "no line was written"
        time.sleep(0.005)
    victim.kill()
    other.join(240)
    assert other.exitcode == 0
    assert not output.exists()
    done = subprocess.run(launch, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert [row["id"] for row in read_scores(output)] == [f"row-{i}" for i in range(NUM_ROWS)]
    assert not parts_folder(output).exists()
