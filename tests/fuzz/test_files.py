"""Files of odd and damaged rows through the commands: a score for every row that can be used, its own, or one line."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from srm import SentenceRewardModel
from srm.cli import eval as eval_command
from srm.cli import rl, score, train
from srm.data import encode_comparisons, read_comparisons, read_prompts, read_responses
from srm.data.boundary import check_row
from srm.data.read import first_pass
from srm.data.schema import ResponseRow
from srm.errors import UserError
from srm.scoring.results import ScoredResponse
from srm.scoring.run import score_all
from srm.scoring.text import encode_groups, read_off_group
from tests.fuzz.harness import figures, fuzz, run, watched, wrong
from tests.fuzz.strategies import File, files, mixed, name, plain

pairs = st.fixed_dictionaries({"prompt": plain, "chosen": plain, "rejected": plain}, optional={"subset": name, "section": name})


def put(place: Path, file: File) -> str:
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    (place / file.name).write_bytes(file.content)
    return str(place / file.name)


def refuse_constant(name: str) -> None:
    raise wrong(f"the output holds {name}, which is no JSON")


def check_scores(model: SentenceRewardModel, source: str, output: Path, *, skip: bool) -> None:
    """Each line of the output is the score of its row alone."""

    def check(prompt: Any, responses: Any) -> None:
        check_row(model.encoder.format, model.encoder.answers, prompt, responses)

    left_out = first_pass(source, skip_bad_rows=skip, check=check).left_out
    rows = list(read_responses(source, left_out=left_out))
    lines = [json.loads(line, parse_constant=refuse_constant) for line in output.read_text(encoding="utf-8").split("\n") if line]
    if [line["id"] for line in lines] != [row.id for row in rows]:
        raise wrong(f"ids {[line['id'] for line in lines]} for {[row.id for row in rows]}")
    for line, row in zip(lines, rows, strict=True):
        figures["rows scored"] += 1
        alone = score_alone(model, row)
        if not math.isclose(line["reward"], alone.reward, rel_tol=1e-3, abs_tol=1e-4):
            raise wrong(f"{row.where}: reward {line['reward']}, alone {alone.reward}")
        if [sentence["text"] for sentence in line["sentences"]] != [sentence.text for sentence in alone.sentences]:
            raise wrong(f"{row.where}: other sentences than alone")


def score_alone(model: SentenceRewardModel, row: ResponseRow) -> ScoredResponse:
    # Not `model.score`, which refuses the empty prompt of two texts that share no word.
    groups = encode_groups(model, row.prompt, [row.response], where=[row.where], max_length=None)
    (scores,) = score_all(model, groups, tokens_per_batch=8192, packing="none")
    return read_off_group(groups[0], scores)[0]


@fuzz(examples=250, weight=4, file=files(), skip=st.sampled_from([True, True, False]), show=st.booleans())
def test_srm_score(file: File, skip: bool, show: bool, model: SentenceRewardModel, model_dir: Path, place: Path) -> None:
    source, output = put(place / "score", file), place / "score" / "out.jsonl"
    more = [*(["--skip_bad_rows"] if skip else []), *(["--show", "--html", str(place / "score" / "page.html")] if show else [])]
    result = run(score.main, ["--model", str(model_dir), "--input", source, "--output", str(output), *more], "srm-score")
    if result.code == 0:
        check_scores(model, source, output, skip=skip)


@fuzz(examples=100, weight=2, file=st.one_of(files(), files(st.one_of(pairs, pairs, mixed))), skip=st.sampled_from([True, True, False]))
def test_srm_eval(file: File, skip: bool, model: SentenceRewardModel, model_dir: Path, place: Path) -> None:
    source, output = put(place / "eval", file), place / "eval" / "out"
    argv = ["--model", str(model_dir), "--suite", source, "--output_dir", str(output), "--draws", "100"]
    argv += ["--skip_bad_rows"] if skip else []
    if run(eval_command.main, argv, "srm-eval").code == 0:
        check_scores(model, str(output / "responses.jsonl"), output / "scores" / f"{model_dir.name}.jsonl", skip=False)
        json.loads((output / "results.json").read_text(encoding="utf-8"), parse_constant=refuse_constant)


@fuzz(examples=500, weight=3, file=files(), skip=st.sampled_from([True, True, False]))
def test_readers(file: File, skip: bool, model: SentenceRewardModel, place: Path) -> None:
    """What srm-train and srm-rl do before they train."""
    source = put(place / "read", file)

    def check(prompt: Any, responses: Any) -> None:
        check_row(model.encoder.format, model.encoder.answers, prompt, responses)

    for read in (_encoded_comparisons(model), lambda path, skip: read_prompts(path, skip_bad_rows=skip, check=check)):
        with watched():
            try:
                read(source, skip)
                figures["exit 0"] += 1
            except UserError:
                figures["exit 1"] += 1


def _encoded_comparisons(model: SentenceRewardModel) -> Callable[[str, bool], Any]:
    def read(path: str, skip: bool) -> None:
        comparisons = {comparison.where: comparison for comparison in read_comparisons(path, skip_bad_rows=skip)}
        rows, _ = encode_comparisons(
            list(comparisons.values()), model.encoder, max_length=None, overlong="error", skip_bad_rows=skip, progress=False
        )
        for row in rows:
            (alone,), _ = encode_comparisons([comparisons[row.where]], model.encoder, max_length=None, progress=False)
            if [response.ids.tolist() for response in row.responses] != [response.ids.tolist() for response in alone.responses]:
                raise wrong(f"{row.where}: other tokens than alone")

    return read


@fuzz(examples=4, weight=2, file=st.one_of(files(), files(st.one_of(pairs, pairs, mixed))), skip=st.sampled_from([True, True, False]))
def test_srm_train(file: File, skip: bool, tiny_backbone_dir: Path, model: SentenceRewardModel, place: Path) -> None:
    source = put(place / "train", file)
    argv = ["--model_name_or_path", str(tiny_backbone_dir), "--dataset_name", source, "--output_dir", str(place / "train" / "out")]
    argv += ["--max_steps", "1", "--save_strategy", "no", "--disable_tqdm", "true", "--per_device_train_batch_size", "2"]
    run(train.main, [*argv, *(["--skip_bad_rows"] if skip else [])], "srm-train")


@fuzz(examples=3, weight=1, file=files(), skip=st.sampled_from([True, True, False]))
def test_srm_rl(file: File, skip: bool, tiny_policy_dir: Path, model_dir: Path, model: SentenceRewardModel, place: Path) -> None:
    source = put(place / "rl", file)
    argv = ["--model_name_or_path", str(tiny_policy_dir), "--reward_model_path", str(model_dir), "--dataset_name", source]
    argv += ["--output_dir", str(place / "rl" / "out"), "--max_steps", "1", "--save_steps", "9", "--max_completion_length", "4"]
    run(rl.main, [*argv, "--per_device_train_batch_size", "4", *(["--skip_bad_rows"] if skip else [])], "srm-rl")
