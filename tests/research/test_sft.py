"""The step before every variant of research/claim, by TRL's own command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from research.claim import compare, sft
from research.claim.data import draw
from research.claim.variants import BUDGETS, GRANULARITIES, PUBLISHED, VARIANTS
from srm.errors import UserError


def test_a_backbone_is_fine_tuned_once(data: Path, tiny_policy_dir: Path, tmp_path: Path) -> None:
    pytest.importorskip("trl", reason="the step is TRL's")
    from safetensors.torch import load_file
    from transformers import AutoTokenizer

    pairs = draw(data, tmp_path / "data", BUDGETS["dry"])["train"]
    tuned = sft.fine_tuned(str(tiny_policy_dir), pairs, tmp_path, max_length=256, on_cpu=True)
    before, after = (load_file(folder / "model.safetensors") for folder in (tiny_policy_dir, tuned))
    assert 0 < (after["model.norm.weight"] - before["model.norm.weight"]).abs().max() < 1e-5
    assert "Human: " in str(AutoTokenizer.from_pretrained(tuned).chat_template)
    done = json.loads((tmp_path / "sft" / "done.json").read_text())
    assert "--weight_decay 0.2" in done["command"]
    assert len((tmp_path / "sft" / "chosen" / "train.jsonl").read_text().splitlines()) == BUDGETS["dry"].train_pairs
    (tmp_path / "sft" / "sft.log").unlink()
    assert sft.fine_tuned(str(tiny_policy_dir), pairs, tmp_path, max_length=256, on_cpu=True) == tuned
    assert not (tmp_path / "sft" / "sft.log").exists(), "fine-tuned again"


def test_without_trl_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sft, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"--sft: .*srm-kernels\[trl\]"):
        sft.fine_tuned("model", tmp_path / "pairs.jsonl", tmp_path, max_length=256, on_cpu=True)


def test_a_step_that_fails_ends_the_comparison(tmp_path: Path) -> None:
    pytest.importorskip("trl", reason="the step is TRL's")
    with pytest.raises(SystemExit, match=r"--sft failed with exit code 1; its output is in .*chosen\.log"):
        sft.fine_tuned("model", tmp_path / "gone.jsonl", tmp_path, max_length=256, on_cpu=True)


def test_the_published_recipe_comes_with_its_first_step(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["compare.py", "--data", str(data), "--output_dir", str(tmp_path)]
    monkeypatch.setattr("sys.argv", [*words, "--variants", *PUBLISHED])
    with pytest.raises(SystemExit):
        compare.main()
    assert "'paper as published' begins with a fine-tuned backbone: add --sft" in capsys.readouterr().err
    for flags, variants in (([], VARIANTS.keys() - PUBLISHED.keys()), (["--sft"], VARIANTS.keys())):
        monkeypatch.setattr("sys.argv", [*words, *flags])
        assert set(compare._arguments().variants) == variants > GRANULARITIES.keys()


def test_every_run_trains_what_the_step_has_made(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[str, str, int]] = []

    def fine_tuned(model: str, pairs: Path, folder: Path, *, max_length: int, on_cpu: bool) -> Path:
        given.append((model, pairs.name, max_length))
        return folder / "sft" / "model"

    monkeypatch.setattr(compare, "fine_tuned", fine_tuned)
    words = ["compare.py", "--data", str(data), "--output_dir", str(tmp_path), "--budget", "dry", "--model_name_or_path", "base", "--sft"]
    monkeypatch.setattr("sys.argv", words)
    assert compare.Comparison(compare._arguments()).model == str(tmp_path / "sft" / "model")
    assert given == [("base", "train.jsonl", 256)]
    # Runs on the base itself are others.
    monkeypatch.setattr("sys.argv", words[:-1])
    with pytest.raises(SystemExit, match="Use another --output_dir"):
        compare.Comparison(compare._arguments())
