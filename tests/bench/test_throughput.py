"""bench/throughput.py on a model of a few thousand weights: it runs whole, counts right, and refuses to time unequal providers."""

from __future__ import annotations

import dataclasses
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

TINY = (
    *("--model", "random-tiny", "--pairs", "24", "--max_length", "64", "--batch_size", "4", "--rounds", "2"),
    *("--group", "4x8x24", "--tokens_per_batch", "512", "--device", "cpu"),
)
OURS = ("shared", "shared-all-rows", "packed", "none")


def test_every_mode_end_to_end(load: Any, tmp_path: Path) -> None:
    pytest.importorskip("trl", reason="trl is one of the providers")
    pytest.importorskip("greenlet", reason="the trainers are greenlets")
    load("throughput").main([*TINY, "--json", str(tmp_path / "out.json"), "--plot", str(tmp_path / "out.png")])
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["product_tflops"] > 0
    assert set(result["modes"]["train"]["providers"]) == {*OURS, "trl", "trl-grouped", "trl-grouped-no-checkpointing"}
    for mode in ("score", "group"):
        assert set(result["modes"][mode]["providers"]) == {*OURS, "hf-padded"}
    for found in result["modes"].values():
        for name, row in found["providers"].items():
            assert len(row["rounds"]) == 2, "the warm-up must not be counted"
            assert row["reward_error"] < 0.15
            assert row["utilisation"] > 0
            against = found["shared_against"].get(name, {"low": 1, "ratio": 1, "high": 1})
            assert against["low"] <= against["ratio"] <= against["high"]
        runs = {name: row["tokens_run_per_real_token"] for name, row in found["providers"].items()}
        assert runs["shared"] == runs["shared-all-rows"] < runs["packed"] == 1 < runs["none"]
        for name, against in found["shared_against"].items():
            assert against["ideal"] == pytest.approx(runs[name] / runs["shared"])
    # 24 prompt tokens and 4 responses of about 8: 128 tokens where each response repeats the prompt, 56 where it is shared.
    assert result["modes"]["group"]["shared_against"]["packed"]["ideal"] == pytest.approx(128 / 56, rel=0.1)
    train = result["modes"]["train"]["providers"]
    for name in ("trl", "trl-grouped"):
        assert "gradient checkpointing" in train[name]["note"]
    assert train["trl-grouped-no-checkpointing"]["note"] is None
    assert train["shared"]["note"] is None


def test_cost_by_length(load: Any, tmp_path: Path) -> None:
    modes = ("--modes", "length,length-train", "--lengths", "2048,512", "--rounds", "2", "--check", "1", "--device", "cpu")
    load("throughput").main(["--model", "random-tiny", *modes, "--json", str(tmp_path / "out.json"), "--plot", str(tmp_path / "out.png")])
    result = json.loads((tmp_path / "out.json").read_text())
    for mode in ("length", "length-train"):
        lengths = result["modes"][mode]["lengths"]
        assert list(lengths) == ["512", "2048"]
        for tokens, found in lengths.items():
            assert [record["tokens"] for record in found["rounds"]] == [int(tokens)] * 2
            assert found["low"] <= found["relative"] <= found["high"]
        assert lengths["512"]["relative"] == 1
    first, second = ([record["seconds"] for record in result["modes"]["length"]["lengths"][n]["rounds"]] for n in ("512", "2048"))
    assert result["modes"]["length"]["lengths"]["2048"]["high"] == pytest.approx(max(b / a for a, b in zip(first, second, strict=True)) / 4)


def test_the_backward_pass_is_timed_under_checkpointing(load: Any) -> None:
    models = load("providers").Models("random-tiny", dtype=torch.float32, device=torch.device("cpu"))
    contender = load("throughput_length").length_contenders(models, [512], backward=True)["512"]
    contender.rewards(contender.batches[0].items)
    layer = contender.backbone.layers[0]
    calls = []
    layer.mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    contender.run(contender.batches[0])
    assert len(calls) == 2, "forward, and once more in the backward pass"
    assert layer.mlp.up_proj.weight.grad is None, "gradients must not add up over the rounds"


def test_lengths_must_be_made_of_whole_groups(load: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        load("throughput").main(["--modes", "length", "--lengths", "4000"])
    assert "multiples of 512" in capsys.readouterr().err


def test_unequal_rewards_are_not_timed(load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    throughput, providers = load("throughput"), load("providers")
    real = providers.ours_rewards
    monkeypatch.setattr(providers, "ours_rewards", lambda *args: real(*args).flip(0))
    monkeypatch.setattr(throughput, "_time", lambda *args: pytest.fail("was timed"))
    with pytest.raises(SystemExit, match="score: shared gives other rewards"):
        throughput.main([*TINY, "--modes", "score", "--providers", "shared,hf-padded"])


def test_a_provider_is_held_to_the_tokens_it_claims(load: Any) -> None:
    throughput, providers = load("throughput"), load("providers")
    models = providers.Models("random-tiny", dtype=torch.float32, device=torch.device("cpu"))
    rows = load("workloads").generated_pairs(2, vocabulary=300, max_length=64)
    contender = providers.ours(models, rows, provider="shared", budget=10_000)
    wrong = providers.Batch(items=rows, tokens=contender.batches[0].tokens - 1, real_tokens=0)
    with pytest.raises(AssertionError, match="went through the backbone"):
        throughput._run(torch.device("cpu"), contender, wrong)


def test_batches_are_spread_from_small_to_large(load: Any) -> None:
    throughput, providers = load("throughput"), load("providers")
    batches = [providers.Batch(items=i, tokens=100 - i, real_tokens=0) for i in range(40)]
    warm_up, *timed = (batch.tokens for batch in throughput.spread(batches, 4))
    assert warm_up == 100
    assert sorted(timed) == [66, 76, 86, 96]
    assert set(timed[:2]) == {76, 86}


def test_generated_pairs_are_as_long_as_real_ones(load: Any) -> None:
    rows = load("workloads").generated_pairs(3000, vocabulary=300, max_length=1024)
    assert max(row.longest for row in rows) <= 1024
    lengths = np.array([[len(row.prompt_ids), *(len(response.ids) for response in row.responses)] for row in rows])
    np.testing.assert_allclose(lengths.mean(0), [87, 235, 197], rtol=0.07)
    ends = rows[0].responses[0].sentence_ends
    assert ends[-1] == len(rows[0].responses[0].ids) - 1
    assert (np.diff(ends) > 0).all()


def test_a_prompt_of_several_rows_is_counted_once_where_it_runs_once(load: Any) -> None:
    providers, workloads = load("providers"), load("workloads")
    models = providers.Models("random-tiny", dtype=torch.float32, device=torch.device("cpu"))
    first, second = workloads.generated_pairs(2, vocabulary=300, max_length=64)
    rows = [first, dataclasses.replace(second, prompt_ids=first.prompt_ids)]
    contender = providers.ours(models, rows, provider="shared", budget=10_000)
    load("throughput")._run(torch.device("cpu"), contender, contender.batches[0])
    assert contender.batches[0].tokens == sum(row.num_tokens for row in rows) - len(first.prompt_ids)


def test_what_is_not_installed_is_left_out_aloud(load: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    throughput = load("throughput")
    monkeypatch.setattr(throughput.importlib.util, "find_spec", lambda name: None)
    arguments = throughput._arguments([])
    assert arguments.providers == [*OURS, "hf-padded"]
    assert arguments.modes == ["score", "group"]
    said = capsys.readouterr().err
    assert "trl is not installed" in said
    assert "greenlet is not installed" in said
    with pytest.raises(SystemExit):
        throughput._arguments(["--modes", "score,train"])
    assert "pip install greenlet" in capsys.readouterr().err


def test_trainers_run_in_turns_in_one_thread(load: Any) -> None:
    pytest.importorskip("greenlet", reason="the trainers are greenlets")
    trainers = load("trainers")
    models = load("providers").Models("random-tiny", dtype=torch.float32, device=torch.device("cpu"))
    rows = load("workloads").generated_pairs(8, vocabulary=300, max_length=64)
    made = [
        trainers.ours_trainer(models, rows, provider=packing, batch_size=4, pass_size=4, choose=lambda batches: batches)
        for packing in ("shared", "packed")
    ]
    threads = threading.active_count()
    for step in (1, 2):
        for contender, chosen, turns in made:
            contender.run(chosen[step - 1])
            assert turns._trainer.state.global_step == step
    assert threading.active_count() == threads
    for _, _, turns in made:
        turns.close()
        assert turns._trainer.state.global_step == 2
