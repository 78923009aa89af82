"""srm-eval with rivals of sentence rewards beside models that have some."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

from srm import SentenceRewardModel
from srm.cli.eval import main
from srm.evaluation.implicit import ImplicitRewardModel

WORDS = ["It was warm there.", "Bread needs flour.", "No, it is wrong!", "Is this right?", "The cat sat on the mat.", "Water and salt."]
RIVALS = ("leave_one_out", "shapley")


@pytest.fixture(scope="module")
def response(awake_model: Callable[..., SentenceRewardModel], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "response"
    awake_model(granularity="response").save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def plain(tiny_backbone_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = AutoTokenizer.from_pretrained(tiny_backbone_dir)
    torch.manual_seed(1)
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=256, num_labels=1, pad_token_id=tokenizer.pad_token_id, **sizes)
    path = tmp_path_factory.mktemp("models") / "plain"
    LlamaForSequenceClassification(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def policy(tiny_policy_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "policy"
    model = AutoModelForCausalLM.from_pretrained(tiny_policy_dir)
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    model.save_pretrained(path)
    AutoTokenizer.from_pretrained(tiny_policy_dir).save_pretrained(path)
    return path


@pytest.fixture(autouse=True)
def _no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("srm.cli.eval_report._has_matplotlib", lambda console: False)


@pytest.fixture
def spans(tmp_path: Path) -> str:
    rows = [
        {
            "id": f"row-{number}",
            "prompt": f"Question {number}?",
            "response": " ".join(WORDS[: 3 + number]),
            "errors": [{"type": "Wrong", "start": 19, "end": 30}],
        }
        for number in range(4)
    ]
    return write(tmp_path / "spans.jsonl", rows)


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())


def test_rivals_in_the_table_of_credit(
    response: Path, plain: Path, policy: Path, tiny_policy_dir: Path, spans: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each on the same sentences."""
    out = tmp_path / "out"
    models = [str(response), *(f"{rival}:{path}" for path in (response, plain) for rival in RIVALS), f"dpo:{policy}"]
    command = ["--suite", spans, "--output_dir", str(out), "--draws", "100", "--html", "--ref_model", str(tiny_policy_dir), "--beta", "0.3"]
    assert main(["--model", *models, *command]) == 0
    names = ["response", *(f"{rival}:{name}" for name in ("response", "plain") for rival in RIVALS), "dpo:policy"]
    assert list(results(out)["models"])[:7] == [*names, "random"]
    table = capsys.readouterr().out
    assert all(name in table for name in names)
    scores = {name: [json.loads(line) for line in (out / "scores" / f"{name.replace(':', '--')}.jsonl").open()] for name in names}
    for name, lines in scores.items():
        assert [len(line["sentences"]) for line in lines] == [3, 4, 5, 6]
        for line in lines:
            assert line["reward"] == pytest.approx(
                line["prompt_reward"] + sum(one["weighted_reward"] for one in line["sentences"]), abs=1e-5
            )
        assert (out / f"{name.replace(':', '--')}.html").is_file()
    own, left_out, shapley = (scores[name] for name in names[:3])
    assert [line["reward"] for line in left_out] == pytest.approx([line["reward"] for line in own], abs=1e-5)
    # The prompt alone is worth the value at its end.
    assert [line["prompt_reward"] for line in shapley] == pytest.approx([line["prompt_reward"] for line in own], abs=1e-5)


def test_rivals_rank_pairs(response: Path, policy: Path, tiny_policy_dir: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"Question {i % 2}?", "chosen": " ".join(WORDS[i : i + 2]), "rejected": WORDS[5 - i]} for i in range(4)]
    out = tmp_path / "out"
    models = [str(response), f"leave_one_out:{response}", f"dpo:{policy}"]
    command = [
        "--suite",
        write(tmp_path / "pairs.jsonl", rows),
        "--output_dir",
        str(out),
        "--draws",
        "100",
        "--ref_model",
        str(tiny_policy_dir),
    ]
    assert main(["--model", *models, *command]) == 0
    found = results(out)["models"]
    assert list(found) == ["response", "leave_one_out:response", "dpo:policy", "longer", "shorter"]
    assert found["response"]["average"] == found["leave_one_out:response"]["average"], "its rewards of responses are the model's own"


@pytest.mark.parametrize("rival", ["leave_one_out", "dpo"])
def test_a_second_run_goes_on(
    response: Path, policy: Path, tiny_policy_dir: Path, spans: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rival: str
) -> None:
    out = tmp_path / "out"
    model = [f"dpo:{policy}", "--ref_model", str(tiny_policy_dir)] if rival == "dpo" else [f"leave_one_out:{response}"]
    command = ["--model", *model, "--suite", spans, "--output_dir", str(out), "--draws", "100"]
    assert main(command) == 0
    [scores] = (out / "scores").glob("*.jsonl")
    lines = scores.read_text().splitlines(keepends=True)
    scores.write_text("".join(lines[:2]) + lines[2][:20])
    assert main(command) == 0
    again = scores.read_text().splitlines()
    for before, after in zip(map(json.loads, lines), map(json.loads, again), strict=True):
        assert (before["id"], before["digest"]) == (after["id"], after["digest"])
        assert after["reward"] == pytest.approx(before["reward"], abs=1e-5)
    monkeypatch.setattr(SentenceRewardModel, "forward", lambda *_: pytest.fail("scored again"))
    monkeypatch.setattr(ImplicitRewardModel, "_log_ratios", lambda *_: pytest.fail("scored again"))
    assert main(command) == 0


def test_settings_and_files_that_scores_depend_on(
    response: Path, policy: Path, tiny_policy_dir: Path, spans: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reference = tmp_path / "reference"
    shutil.copytree(tiny_policy_dir, reference)
    models = [f"shapley:{response}", f"dpo:{policy}"]
    command = ["--model", *models, "--ref_model", str(reference), "--suite", spans, "--output_dir", str(tmp_path / "out"), "--draws", "100"]
    assert main(command) == 0
    for changed, message in (
        (["--beta", "0.5"], "beta was 0.1, is 0.5"),
        (["--num_permutations", "8"], "num_permutations was 16, is 8"),
        (["--ref_model", str(policy)], "ref_model was"),
    ):
        assert main([*command, *changed]) == 1
        assert message in capsys.readouterr().err
    weights = reference / "model.safetensors"
    before, content = weights.stat(), bytearray(weights.read_bytes())
    content[-3] ^= 1
    weights.write_bytes(content)
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert main(command) == 1
    assert "reference model's model.safetensors has other contents now" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("models", "options", "message"),
    [
        (["dpo:POLICY"], [], "dpo:POLICY needs --ref_model, the model that the policy's training began with"),
        (["RESPONSE"], ["--ref_model", "POLICY"], "--ref_model is what dpo:POLICY is compared with, and no --model is one"),
        (["loo:RESPONSE"], [], "there is no folder of that name, and no such rival. Write leave_one_out:MODEL, shapley:MODEL, dpo:MODEL"),
        (["shapley:RESPONSE", "shapley:RESPONSE"], [], "--model names the same model twice"),
        (["shapley:POLICY"], [], "is a plain llama model, not a trained reward model"),
        (["dpo:RESPONSE"], ["--ref_model", "RESPONSE"], "no model could be loaded"),
        (["dpo:POLICY"], ["--ref_model", "missing/folder"], "missing/folder"),
        (["dpo:POLICY"], ["--ref_model", "POLICY", "--beta", "0"], "--beta must be above 0"),
        (["shapley:RESPONSE"], ["--num_permutations", "0"], "--num_permutations must be at least 1"),
    ],
)
def test_what_is_refused(
    response: Path,
    policy: Path,
    spans: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    models: list[str],
    options: list[str],
    message: str,
) -> None:
    def named(words: list[str]) -> list[str]:
        return [word.replace("RESPONSE", str(response)).replace("POLICY", str(policy)) for word in words]

    out = str(tmp_path / "out")
    assert main(["--model", *named(models), "--suite", spans, "--output_dir", out, "--draws", "100", *named(options)]) == 1
    assert message.replace("dpo:POLICY needs", f"dpo:{policy} needs") in capsys.readouterr().err


def test_rows_that_only_some_can_read(response: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A response of several messages has a reward, and no sentences to cut out."""
    turns = [{"role": role, "content": "It was warm."} for role in ("assistant", "user", "assistant")]
    suite = write(
        tmp_path / "s.jsonl",
        [{"prompt": "Hi", "chosen": turns, "rejected": WORDS[0]}, {"prompt": "Hi", "chosen": WORDS[1], "rejected": WORDS[2]}],
    )
    command = ["--suite", suite, "--output_dir", str(tmp_path / "out"), "--draws", "100", "--model", str(response)]
    assert main(command) == 0
    assert main([*command, f"shapley:{response}", "--overwrite"]) == 1
    assert "line 1: sentences are cut out of a text, and the response is several messages" in capsys.readouterr().err
    assert main([*command, f"shapley:{response}", "--overwrite", "--skip_bad_rows"]) == 0
    assert results(tmp_path / "out")["rows"] == 1
