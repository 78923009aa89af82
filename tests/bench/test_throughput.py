"""bench/throughput.py on a model of a few thousand weights: it runs whole, counts right, and refuses to time unequal providers."""

from __future__ import annotations

import dataclasses
import json
import statistics
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


def test_random_weights_in_bf16_are_those_of_the_peer(load: Any) -> None:
    """The rotary frequencies stay fp32, as in a model that is loaded."""
    models = load("providers").Models("random-tiny", dtype=torch.bfloat16, device=torch.device("cpu"))
    ours, theirs = models.copy_of_backbone(), models.peer().base_model
    assert ours.rotary_emb.inv_freq.dtype == torch.float32
    assert torch.equal(ours.rotary_emb.inv_freq, theirs.rotary_emb.inv_freq)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


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


def test_groups_forward_and_backward(load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SRM_PACKED_ATTENTION", "sdpa")
    words = ("--modes", "group,group-train", "--providers", "shared,packed", "--json", str(tmp_path / "out.json"))
    load("throughput").main([*TINY, *words])
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["attention"] == "sdpa"
    group, both = (result["modes"][mode] for mode in ("group", "group-train"))
    assert group["unit"] == both["unit"] == "responses"
    weights = load("providers").Models("random-tiny", dtype=torch.float32, device=torch.device("cpu")).num_weights
    for name in ("shared", "packed"):
        forward, backward = group["providers"][name], both["providers"][name]
        assert [one["tokens"] for one in forward["rounds"]] == [one["tokens"] for one in backward["rounds"]]
        seconds = statistics.median(one["seconds"] / one["tokens"] for one in backward["rounds"])
        assert backward["utilisation"] * seconds == pytest.approx(6 * weights / result["product_tflops"] / 1e12, rel=0.01)


def test_both_passes_are_run(load: Any) -> None:
    providers = load("providers")
    models = providers.Models("random-tiny", dtype=torch.float32, device=torch.device("cpu"))
    rows = load("workloads").generated_groups(1, size=4, prompt=24, response=8, vocabulary=300)
    contender = providers.ours_both_passes(models, rows, provider="shared", budget=512)
    backwards: list[int] = []
    contender.backbone.layers[0].mlp.register_full_backward_hook(lambda *_: backwards.append(1))
    contender.run(contender.batches[0])
    assert backwards == [1]
    assert contender.backbone.layers[0].mlp.up_proj.weight.grad is None, "gradients must not add up over the rounds"


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


@pytest.mark.parametrize("absent", [["trl"], ["greenlet"], ["trl", "greenlet"]])
def test_without_trl_or_greenlet_training_beside_trl_is_left_out_aloud(
    load: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, absent: list[str]
) -> None:
    throughput = load("throughput")
    monkeypatch.setattr(throughput.importlib.util, "find_spec", lambda name: None if name in absent else "there")
    arguments = throughput._arguments([])
    assert arguments.providers == [*OURS, "hf-padded"]
    assert arguments.modes == ["train", "score", "group"]
    assert f"{' and '.join(absent)} not installed: training beside trl is left out" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        throughput._arguments(["--providers", "shared,trl"])
    assert f"pip install {' '.join(absent)}" in capsys.readouterr().err


def test_a_stopped_run_goes_on_with_the_modes_that_are_left(load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    throughput = load("throughput")
    command = [*TINY, "--modes", "score,group", "--providers", "shared", "--resume", "--json", str(tmp_path / "out.json")]
    measured: list[str] = []

    def measure(mode: str, arguments: Any, models: Any, limit: float, product: list[float]) -> dict[str, Any]:
        measured.append(mode)
        product.append(1e12)
        if measured == ["score", "group"]:
            raise KeyboardInterrupt
        return {"unit": "pairs", "providers": {}, "shared_against": {}}

    monkeypatch.setattr(throughput, "_measure", measure)
    with pytest.raises(KeyboardInterrupt):
        throughput.main(command)
    assert list(json.loads((tmp_path / "out.json").read_text())["modes"]) == ["score"]
    throughput.main([*command, "--minutes", "3"])
    assert measured == ["score", "group", "group"]
    throughput.main(command)
    assert measured == ["score", "group", "group"], "all was there"
    throughput.main([*command, "--batch_size", "2"])
    assert measured[3:] == ["score", "group"], "other settings are another measurement"


def test_a_mode_without_memory_does_not_end_the_others(load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    throughput = load("throughput")

    def measure(mode: str, arguments: Any, models: Any, limit: float, product: list[float]) -> dict[str, Any]:
        if mode == "score":
            raise torch.OutOfMemoryError("out of memory")
        product.append(1e12)
        return {"unit": "responses", "providers": {}, "shared_against": {}}

    monkeypatch.setattr(throughput, "_measure", measure)
    with pytest.raises(SystemExit, match="out of GPU memory in score"):
        throughput.main([*TINY, "--modes", "score,group", "--json", str(tmp_path / "out.json")])
    assert list(json.loads((tmp_path / "out.json").read_text())["modes"]) == ["group"]


def test_random_weights_are_drawn_on_the_device(load: Any) -> None:
    models = load("providers").Models("random-smollm2-135m", dtype=torch.bfloat16, device=torch.device("meta"))
    assert models.backbone.device.type == "meta"
    assert models.num_weights == pytest.approx(106e6, rel=0.01)
    assert models.peer().device.type == "meta"


@pytest.mark.parametrize("kind", ["greenlets", "threads"])
def test_trainers_run_in_turns(load: Any, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    if kind == "greenlets":
        pytest.importorskip("greenlet", reason="where greenlet is installed, trainers are greenlets")
    monkeypatch.setattr(load("turns"), "HAS_GREENLETS", kind == "greenlets")
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
    assert threading.active_count() == threads + (0 if kind == "greenlets" else 2)
    for _, _, turns in made:
        turns.close()
        assert turns._trainer.state.global_step == 2
        assert not turns._training.is_running


@pytest.mark.parametrize("kind", ["_Greenlet", "_Thread"])
def test_what_a_training_raises_is_raised_at_its_turn(load: Any, kind: str) -> None:
    if kind == "_Greenlet":
        pytest.importorskip("greenlet")

    def train() -> None:
        training.pause()
        raise ValueError("no such row")

    training = getattr(load("turns"), kind)(train)
    assert not training.is_running
    training.resume()
    assert training.is_running
    with pytest.raises(ValueError, match="no such row"):
        training.resume()
