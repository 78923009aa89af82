"""srm-eval from the command line: what it writes, what it refuses, and that batches change nothing."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

from srm import SentenceRewardModel
from srm.cli.eval import main
from srm.evaluation.rewardbench import HUB_SUITES
from srm.evaluation.score_suite import score_suite
from srm.evaluation.sections import rows_won
from srm.evaluation.suites import read_suite

WORDS = ["It was warm there.", "Bread needs flour.", "No, it is wrong!", "Is this right?", "The cat sat on the mat.", "Water and salt."]
Build = Callable[..., Path]


def pairs(count: int) -> list[dict[str, Any]]:
    """Pairs of one to four sentences, four prompts in three subsets of two sections."""
    return [
        {
            "id": f"pair-{i}",
            "section": ("Chat", "Code")[i % 2],
            "subset": ("one", "two", "three")[i % 3],
            "prompt": f"Question {i % 4}?",
            "chosen": " ".join(WORDS[(i + j) % 6] for j in range(1 + i % 4)),
            "rejected": " ".join(WORDS[(i + j + 2) % 6] for j in range(1 + (i + 1) % 3)),
        }
        for i in range(count)
    ]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def classifier(tiny_backbone_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = AutoTokenizer.from_pretrained(tiny_backbone_dir)
    torch.manual_seed(1)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=256, num_labels=1, pad_token_id=tokenizer.pad_token_id, **sizes)
    path = tmp_path_factory.mktemp("models") / "plain"
    LlamaForSequenceClassification(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture
def no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes a second, and most tests do not look at it."""
    monkeypatch.setattr("srm.cli.eval_report._has_matplotlib", lambda console: False)


def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())


def test_models_beside_the_baselines(sentence: Path, classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    suite, out = write(tmp_path / "suite.jsonl", pairs(24)), tmp_path / "out"
    command = ["--model", str(sentence), str(classifier), "--suite", suite, "--output_dir", str(out), "--draws", "100", "--html"]
    assert main(command) == 0
    found = results(out)
    assert list(found["models"]) == ["sentence", "plain", "longer", "shorter"]
    # What the library says about the same rows, in memory.
    rows = read_suite(suite)
    model = SentenceRewardModel.from_pretrained(sentence)
    rewards = [[response.reward for response in row] for row in score_suite(model, rows)]
    won = rows_won(rows, rewards)
    sections = {name: [bool(w) for w, row in zip(won, rows.rows, strict=True) if row.section == name] for name in ("Chat", "Code")}
    for name, values in sections.items():
        assert found["models"]["sentence"]["sections"][name]["estimate"] == pytest.approx(sum(values) / len(values))
    longer = [len(row["chosen"]) > len(row["rejected"]) for row in pairs(24)]
    assert found["models"]["longer"]["average"]["estimate"] == pytest.approx((sum(longer[::2]) + sum(longer[1::2])) / 24)
    assert {(c["first"], c["second"]) for c in found["comparisons"]} == {
        ("sentence", "plain"),
        ("sentence", "longer"),
        ("plain", "longer"),
    }
    assert found["prompts"] == 4
    lines = list(csv.DictReader((out / "results.csv").open()))
    assert {(line["model"], line["level"]) for line in lines} >= {("plain", "section"), ("shorter", "subset")}
    assert (out / "results.png").read_bytes().startswith(b"\x89PNG")
    for name in ("sentence", "plain"):
        page = (out / f"{name}.html").read_text()
        assert "pair-23" in page
        assert (out / "scores" / f"{name}.jsonl").read_text().count("\n") == 48
    table = capsys.readouterr().out
    assert all(word in table for word in ("suite: 24 rows", "sentence", "plain", "longer", "shorter", "Chat", "average", "McNemar"))


@pytest.mark.usefixtures("no_figure")
def test_a_second_run_scores_nothing_again(sentence: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite, out = write(tmp_path / "suite.jsonl", pairs(6)), tmp_path / "out"
    command = ["--model", str(sentence), "--suite", suite, "--output_dir", str(out), "--draws", "100"]
    assert main(command) == 0
    scores = out / "scores" / "sentence.jsonl"
    whole, first = scores.read_text(), results(out)
    # An interrupted run: seven lines, and half of one.
    lines = whole.splitlines(keepends=True)
    scores.write_text("".join(lines[:7]) + lines[7][:20])
    assert main(command) == 0
    assert [json.loads(line)["id"] for line in scores.open()] == [json.loads(line)["id"] for line in lines]
    assert results(out)["models"]["sentence"]["sections"] == first["models"]["sentence"]["sections"]
    monkeypatch.setattr(SentenceRewardModel, "forward", lambda *_: pytest.fail("scored again"))
    assert main(command) == 0


@pytest.mark.usefixtures("no_figure")
def test_rows_that_are_too_long_are_named_by_the_users_file_or_counted(
    sentence: Path, classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = pairs(4)
    rows[2]["rejected"] = "It was warm there. " * 60
    suite, out = write(tmp_path / "suite.jsonl", rows), tmp_path / "out"
    models = [str(sentence), str(classifier), f"leave_one_out:{sentence}", f"leave_one_out:{classifier}"]
    command = ["--model", *models, "--suite", suite, "--output_dir", str(out), "--draws", "100", "--max_length", "120", "--html"]
    assert main(command) == 1
    told = " ".join(capsys.readouterr().err.split())
    assert "suite.jsonl line 3: prompt and response are" in told
    assert "responses.jsonl" not in told
    assert main([*command, "--overlong", "truncate_response"]) == 0
    assert "plain: 1 of 8 responses were cut to --max_length 120 (--overlong truncate_response)" in " ".join(
        capsys.readouterr().err.split()
    )
    assert list(results(out)["truncated"].values()) == [1, 1, 1, 1]


@pytest.mark.usefixtures("no_figure")
def test_another_suite_needs_another_folder(sentence: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    command = ["--model", str(sentence), "--output_dir", str(out), "--draws", "100", "--suite"]
    assert main([*command, write(tmp_path / "a.jsonl", pairs(4))]) == 0
    other = write(tmp_path / "b.jsonl", pairs(5))
    assert main([*command, other]) == 1
    assert "holds other rows, of another suite or --max_pairs" in capsys.readouterr().err
    assert main([*command, other, "--overwrite"]) == 0
    assert results(out)["rows"] == 5


@pytest.mark.usefixtures("no_figure")
@pytest.mark.parametrize("kind", ["sentence", "classifier"])
def test_a_model_that_changed_in_place_is_noticed(
    request: pytest.FixtureRequest, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = tmp_path / "model", tmp_path / "out"
    shutil.copytree(request.getfixturevalue(kind), model)
    command = ["--model", str(model), "--suite", write(tmp_path / "s.jsonl", pairs(3)), "--output_dir", str(out), "--draws", "100"]
    assert main(command) == 0
    weights = model / "model.safetensors"
    before, content = weights.stat(), bytearray(weights.read_bytes())
    content[-3] ^= 1
    weights.write_bytes(content)
    # Neither size nor time tells.
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert main(command) == 1
    assert "was begun with other settings (model's model.safetensors has other contents now)" in capsys.readouterr().err
    content[-3] ^= 1
    weights.write_bytes(content)
    assert main(command) == 0, "a file that was only copied or touched is the same"
    (model / "chat_template.jinja").write_text((model / "chat_template.jinja").read_text() + " ")
    assert main(command) == 1
    assert "model's chat_template.jinja has other contents now" in capsys.readouterr().err
    assert main([*command, "--overwrite"]) == 0


@pytest.mark.usefixtures("no_figure")
@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda lines: [*lines, lines[-1]], "holds 7 responses, and the input has only 6 now"),
        (lambda lines: [*lines[:2], lines[1], *lines[3:]], "line 3: holds id 'pair-0/rejected', and the input has 'pair-1/chosen' there"),
        (lambda lines: [lines[0].replace("}", ""), *lines[1:]], "line 1: is not what srm-score writes, so the file was edited or cut"),
    ],
)
def test_scores_of_other_rows_give_no_result(
    sentence: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], edit: Callable[[list[str]], list[str]], message: str
) -> None:
    out = tmp_path / "out"
    command = ["--model", str(sentence), "--suite", write(tmp_path / "s.jsonl", pairs(3)), "--output_dir", str(out), "--draws", "100"]
    assert main(command) == 0
    scores = out / "scores" / "sentence.jsonl"
    scores.write_text("".join(edit(scores.read_text().splitlines(keepends=True))))
    assert main(command) == 1
    assert message in capsys.readouterr().err


def test_marked_errors(sentence: Path, build: Build, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {
            "id": f"row-{i}",
            "prompt": f"Question {i}?",
            "response": " ".join(WORDS[:3]),
            "errors": [{"type": "Wrong", "start": 19, "end": 30}, *([{"type": "Rude", "start": 0, "end": 2}] if i % 2 else [])],
        }
        for i in range(6)
    ]
    suite, out = write(tmp_path / "spans.jsonl", rows), tmp_path / "out"
    models = [sentence, build("response", granularity="response"), build("token", granularity="token")]
    command = ["--model", *map(str, models), "--suite", suite, "--output_dir", str(out), "--draws", "100", "--html"]
    assert main(command) == 0
    found = results(out)
    assert list(found["models"])[:4] == ["sentence", "response", "token", "random"]
    assert found["models"]["random"]["auc"]["estimate"] == 0.5
    assert set(found["models"]["response"]["by_kind"]) == {"Rude", "Wrong"}
    assert (out / "results.png").read_bytes().startswith(b"\x89PNG")
    assert "row-5" in (out / "token.html").read_text()
    assert [(c["first"], c["second"]) for c in found["comparisons"]] == [
        ("sentence", "response"),
        ("sentence", "token"),
        ("response", "token"),
    ]
    assert "Sentence credit, 6 responses" in capsys.readouterr().out


def test_a_response_level_model_is_differenced_at_sentence_ends(build: Build) -> None:
    """Its sentence rewards are what each sentence adds to the reward of the response so far."""
    model = SentenceRewardModel.from_pretrained(build("response", granularity="response"))
    whole = model.score(["Hi"], [" ".join(WORDS[:3])])[0]
    encoded = model.encoder.encode_response("Hi", " ".join(WORDS[:3]))
    assert model.tokenizer is not None
    beginnings = [model.tokenizer.decode(encoded.ids[: end + 1]) for end in encoded.sentence_ends]
    so_far = [model.score(["Hi"], [text])[0].reward for text in beginnings]
    assert whole.reward == pytest.approx(so_far[-1], abs=1e-5)
    differences = [after - before for before, after in zip([whole.prompt_reward, *so_far], so_far, strict=False)]
    assert [sentence.reward for sentence in whole.sentences] == pytest.approx(differences, abs=1e-5)


def test_a_classifier_has_no_credit(classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"prompt": "Hi", "response": "Good. Bad.", "errors": [{"type": "lie", "start": 6, "end": 10}]}
    assert main(["--model", str(classifier), "--suite", write(tmp_path / "s.jsonl", [row]), "--output_dir", str(tmp_path / "out")]) == 1
    assert "plain: gives one reward a response and none to sentences" in capsys.readouterr().err


@pytest.mark.usefixtures("no_figure")
def test_names_tell_models_apart(sentence: Path, tmp_path: Path) -> None:
    for run in ("first", "second"):
        shutil.copytree(sentence, tmp_path / run / "model")
    models = [str(tmp_path / run / "model") for run in ("first", "second")]
    out = tmp_path / "out"
    assert main(["--model", *models, "--suite", write(tmp_path / "s.jsonl", pairs(3)), "--output_dir", str(out), "--draws", "100"]) == 0
    assert list(results(out)["models"]) == ["first", "second", "longer", "shorter"]
    assert results(out)["comparisons"][0]["average"] == {"estimate": 0.0, "low": 0.0, "high": 0.0}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--suite", "missing.jsonl"], "missing.jsonl: no such file"),
        (["--model", "MODEL", "MODEL"], "--model names the same model twice"),
        (["--max_pairs", "0"], "--max_pairs must be at least 1"),
    ],
)
def test_mistakes_are_one_line(
    sentence: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    suite = write(tmp_path / "s.jsonl", pairs(3))
    base = ["--model", str(sentence), "--suite", suite, "--output_dir", str(tmp_path / "out")]
    assert main([*base, *(str(sentence) if option == "MODEL" else option for option in options)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("srm-eval: ")
    assert error.count("\n") == 1
    assert message in error


@pytest.mark.parametrize("name", ["rewardbench", "rewardbench2", "rmbench"])
def test_suites_of_the_hub(
    sentence: Path, tmp_path: Path, data_hub: Callable[..., None], capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """From the hub's fields to the table; the hub is one on this machine, with a few rows."""
    texts = {"chosen": WORDS[:3], "rejected": WORDS[3:]}
    rows: dict[str, list[dict[str, Any]]] = {
        "rewardbench": [
            {"id": i, "prompt": f"Question {i}?", "chosen": WORDS[i], "rejected": WORDS[i + 1], "subset": subset}
            for i, subset in enumerate(["math-prm", "hep-go", "donotanswer"])
        ],
        "rewardbench2": [
            {"id": "1", "prompt": "Why?", "chosen": WORDS[:1], "rejected": WORDS[1:4], "num_correct": 1, "subset": "Math"},
            {"id": "ref:0", "prompt": "One?", "chosen": WORDS[:1], "rejected": WORDS[3:], "num_correct": 1, "subset": "Ties"},
            {"id": "tied:0", "prompt": "Some?", **texts, "num_correct": 3, "subset": "Ties"},
        ],
        "rmbench": [{"id": f"row-{i}", "prompt": f"Question {i}?", **texts, "domain": d} for i, d in enumerate(["chat", "safety-refuse"])],
    }
    data_hub(*HUB_SUITES[name], rows[name])
    out = tmp_path / "out"
    assert main(["--model", str(sentence), "--suite", name, "--output_dir", str(out), "--draws", "100", "--html"]) == 0
    found, table = results(out), capsys.readouterr().out
    sections = {"rewardbench": {"Safety", "Reasoning"}, "rewardbench2": {"Math", "Ties"}, "rmbench": {"chat", "safety"}}[name]
    assert set(found["weights"]) == set(found["models"]["sentence"]["sections"]) == sections
    assert f"{name}: {len(rows[name])} rows" in table
    if name == "rmbench":
        assert set(found["models"]["sentence"]["styles"]) == {"easy", "normal", "hard"}
        assert "Style matrix of sentence" in table
        # Every right text in every style meets every wrong one: "longer" does not depend on the row.
        won = [[len(a) > len(b) for b in texts["rejected"]] for a in texts["chosen"]]
        assert found["models"]["longer"]["matrix"] == won
    else:
        assert "Style" not in table
    assert (out / "sentence.html").exists()


def test_without_matplotlib_there_is_no_figure(
    sentence: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None if name == "matplotlib" else find(name, *rest))
    out = tmp_path / "out"
    assert (
        main(["--model", str(sentence), "--suite", write(tmp_path / "s.jsonl", pairs(3)), "--output_dir", str(out), "--draws", "100"]) == 0
    )
    assert "no figure: matplotlib is not installed" in capsys.readouterr().err
    assert not (out / "results.png").exists()
    assert results(out)["rows"] == 3


def test_several_processes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["--model", "m", "--suite", "s", "--output_dir", str(tmp_path)]) == 1
    assert "runs as one process" in capsys.readouterr().err


def test_a_plain_decoder_is_refused(tiny_backbone_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    suite = write(tmp_path / "s.jsonl", pairs(3))
    assert main(["--model", str(tiny_backbone_dir), "--suite", suite, "--output_dir", str(tmp_path / "out")]) == 1
    assert "is a plain llama model, not a trained reward model" in capsys.readouterr().err


@pytest.mark.usefixtures("no_figure")
def test_the_project_s_real_suite(sentence: Path, shared_data: Path, tmp_path: Path) -> None:
    """Its sections, on a few rows of each."""
    model, out = tmp_path / "model", tmp_path / "out"
    # Their texts are longer than the tiny model's positions, which are rotations and so as many as one likes.
    shutil.copytree(sentence, model)
    config = (model / "config.json").read_text()
    (model / "config.json").write_text(config.replace('"max_position_embeddings": 256', '"max_position_embeddings": 20000'))
    options = ["--max_pairs", "12", "--draws", "100"]
    command = ["--model", str(model), "--suite", str(shared_data / "suite_dev.jsonl.gz"), "--output_dir", str(out), *options]
    assert main(command) == 0
    assert set(results(out)["weights"]) == {"Chat", "Chat Hard", "Safety", "Reasoning"}


def test_a_suite_of_several_splits_is_refused(sentence: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "suite").mkdir()
    for name in ("train", "test"):
        write(tmp_path / "suite" / f"{name}.jsonl", pairs(2))
    assert main(["--model", str(sentence), "--suite", str(tmp_path / "suite"), "--output_dir", str(tmp_path / "out")]) == 1
    assert "suite: the folder has the splits test, train. Say which by --split" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
