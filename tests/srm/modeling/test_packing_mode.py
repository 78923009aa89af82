"""What a backbone can run is proved once on the loaded model, and every surface goes by the answer."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModel, AutoTokenizer

from srm import SentenceRewardModel, UserError
from srm.cli import score as srm_score
from srm.cli import train as srm_train
from srm.data import encode_comparisons, read_comparisons
from srm.modeling import model as module
from srm.packing import PromptGroup, ResponseIds, UnsupportedBackboneError, pack
from srm.serving import create_app
from srm.training import RewardConfig, SentenceRewardTrainer

PROMPTS = ["Where does the cat sit?", "Why?"]
RESPONSES = ["The cat sat on the mat. It was warm there.", "Bread needs salt."]
PAIR = {"prompt": PROMPTS[0], "chosen": RESPONSES[0], "rejected": "No, it is wrong!"}
ENCODERS: dict[str, dict[str, Any]] = {
    "bert": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16},
    "t5": {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_heads": 2, "num_layers": 1},
}


@pytest.fixture
def backbone(tiny_tokenizer_dir: Path, tmp_path: Path) -> Callable[..., Path]:
    """backbone(architecture, **settings): a random one of one layer, saved with the tiny tokenizer."""

    def save(architecture: str, **settings: Any) -> Path:
        tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer_dir)
        torch.manual_seed(0)
        path = tmp_path / architecture
        AutoModel.from_config(CONFIG_MAPPING[architecture](vocab_size=len(tokenizer), **settings)).save_pretrained(path)
        tokenizer.save_pretrained(path)
        return path

    return save


@pytest.fixture
def mamba(backbone: Callable[..., Path], awake_model: Callable[..., SentenceRewardModel]) -> SentenceRewardModel:
    """A decoder that cannot run packed: its tokens mix outside attention."""
    return awake_model(backbone("mamba", hidden_size=16, state_size=4, num_hidden_layers=1, initializer_range=0.2))


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    path.write_text((json.dumps(PAIR) + "\n") * 2)
    return path


def trainer_of(model: SentenceRewardModel, pairs: Path, folder: Path, **settings: Any) -> SentenceRewardTrainer:
    rows = encode_comparisons(read_comparisons(str(pairs)), model.encoder, max_length=200, progress=False)[0]
    usual = {"output_dir": str(folder), "use_cpu": True, "disable_tqdm": True, "save_strategy": "no", "report_to": "none", "max_steps": 1}
    return SentenceRewardTrainer(model, RewardConfig(**usual, **settings), rows)


def score_tokens(model: SentenceRewardModel, **settings: Any) -> Any:
    prompt_ids = [model.encoder.encode_prompt(prompt) for prompt in PROMPTS]
    return model.score_tokens(prompt_ids, [one.ids.tolist() for one in model.encoder.encode_responses(RESPONSES)], **settings)


def use_everywhere(model: SentenceRewardModel, pairs: Path, folder: Path) -> None:
    model.score(PROMPTS, RESPONSES)
    score_tokens(model)
    with model.stream(PROMPTS[0]) as stream:
        stream.feed(RESPONSES[0])
    trainer_of(model, pairs, folder).train()
    create_app(model)
    model.eval().score(PROMPTS, RESPONSES)


@pytest.mark.parametrize("packs", [True, False])
def test_a_model_is_proved_once(
    packs: bool, model: SentenceRewardModel, mamba: SentenceRewardModel, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proofs: list[str] = []

    def counted(name: str, proof: Callable[..., None]) -> Callable[..., None]:
        return lambda backbone: (proofs.append(name), proof(backbone))[1]

    for name in ("check_decoder", "probe"):
        monkeypatch.setattr(module, name, counted(name, getattr(module, name)))
    used = model if packs else mamba
    if packs:
        use_everywhere(used, pairs, tmp_path / "run")
    else:
        used.score(PROMPTS, RESPONSES)
        score_tokens(used)
        trainer_of(used, pairs, tmp_path / "run", packing="none").train()
        create_app(used)
        used.score(PROMPTS, RESPONSES)
    assert proofs == ["check_decoder", "probe"]
    # The answer is the loaded model's: another one is proved for itself.
    used.save_pretrained(tmp_path / "saved")
    SentenceRewardModel.from_pretrained(tmp_path / "saved").score(PROMPTS, RESPONSES)
    assert proofs == ["check_decoder", "probe"] * 2


def test_padded_needs_no_proof_of_packing(model: SentenceRewardModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(backbone: object) -> None:
        raise AssertionError("packing was proved, and nothing runs packed")

    monkeypatch.setattr(module, "probe", never)
    model.score(PROMPTS, RESPONSES, packing="none")
    with model.stream(PROMPTS[0]) as stream:
        stream.feed(RESPONSES[0])


@pytest.mark.parametrize("mode", ["shared", "packed"])
def test_a_packed_batch_is_refused_also_by_forward(mode: Any, mamba: SentenceRewardModel) -> None:
    """Who packs a batch by hand has asked for packing, and nobody proved it before."""
    groups = [PromptGroup(prompt_ids=[5, 6], responses=[ResponseIds(ids=[7, 8], sentence_ends=[1])])]
    with pytest.raises(UnsupportedBackboneError, match="--packing none"):
        mamba(pack(groups, mode=mode, pad_token_id=0))
    assert mamba(pack(groups, mode="none", pad_token_id=0)).reward.shape == (1,)


@pytest.mark.parametrize("packing", ["shared", "packed"])
def test_packing_asked_for_by_name_is_refused_with_the_way_out(
    packing: Any, mamba: SentenceRewardModel, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # First what is not asked for: its answer must not hide the refusal.
    mamba.score(PROMPTS, RESPONSES)
    calls: list[Callable[[], object]] = [
        lambda: mamba.score(PROMPTS, RESPONSES, packing=packing),
        lambda: score_tokens(mamba, packing=packing),
        lambda: create_app(mamba, packing=packing),
        lambda: trainer_of(mamba, pairs, tmp_path / "run", packing=packing),
    ]
    for call in calls:
        with pytest.raises(UnsupportedBackboneError, match=r"MambaModel cannot run packed: .*--packing none"):
            call()
    mamba.save_pretrained(tmp_path / "saved")
    output = tmp_path / "out.jsonl"
    assert srm_score.main(["--model", str(tmp_path / "saved"), "--input", str(pairs), "--output", str(output), "--packing", packing]) == 1
    error = capsys.readouterr().err
    assert "MambaModel cannot run packed" in error
    assert "--packing none" in error


def test_a_refusal_is_looked_into_again_on_another_device_or_in_another_dtype(
    mamba: SentenceRewardModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert mamba.packing_mode() == "none"
    monkeypatch.setattr(module, "probe", lambda backbone: None)
    assert mamba.packing_mode() == "none"
    mamba.backbone.to(torch.bfloat16)
    assert mamba.packing_mode() == "shared"


def test_where_nothing_is_asked_for_it_runs_padded_and_says_so_once(mamba: SentenceRewardModel, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger=module.__name__):
        scored = mamba.score(PROMPTS, RESPONSES)
        tokens = score_tokens(mamba)
        create_app(mamba)
    assert [record.message for record in caplog.records if record.name == module.__name__] == [
        f"MambaModel cannot run packed ({mamba._packing_refusal.reason}), so it runs padded: packing none"
    ]
    # One response at a time, by hand.
    for prompt, text, one in zip(PROMPTS, RESPONSES, scored, strict=True):
        prompt_ids, response = mamba.encoder.encode_prompt(prompt), mamba.encoder.encode_responses([text])[0]
        with torch.no_grad():
            hidden = mamba.backbone(input_ids=torch.tensor([[*prompt_ids, *response.ids]])).last_hidden_state[0]
            values = mamba.head.value(hidden)[:, 0]
        ends = [len(prompt_ids) - 1, *(len(prompt_ids) + end for end in response.sentence_ends)]
        expected = values[ends].diff(prepend=torch.zeros(1)).tolist()
        torch.testing.assert_close([one.prompt_reward, *(s.reward for s in one.sentences)], expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(tokens.reward.tolist(), [one.reward for one in scored], atol=1e-5, rtol=1e-5)


def test_a_trainer_without_packing_trains_what_cannot_be_packed(mamba: SentenceRewardModel, pairs: Path, tmp_path: Path) -> None:
    before = [weight.clone() for weight in mamba.parameters()]
    result = trainer_of(mamba, pairs, tmp_path / "run", packing="none", learning_rate=1e-2, lr_scheduler_type="constant").train()
    assert result.training_loss > 0
    assert any(not torch.equal(old, new) for old, new in zip(before, mamba.parameters(), strict=True))


@pytest.mark.parametrize(("architecture", "reason"), [("bert", "its attention is bidirectional"), ("t5", "it is an encoder-decoder model")])
def test_encoders_are_refused_in_every_mode(
    architecture: str,
    reason: str,
    backbone: Callable[..., Path],
    pairs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = backbone(architecture, **ENCODERS[architecture])
    model = SentenceRewardModel.from_backbone(path)
    message = f"cannot be the backbone of a reward model: {reason}.*Use a causal decoder"
    calls: list[Callable[[], object]] = [
        *(lambda mode=mode: model.score(PROMPTS, RESPONSES, packing=mode) for mode in (None, "shared", "packed", "none")),
        lambda: score_tokens(model, packing="none"),
        lambda: model.stream(PROMPTS[0]),
        lambda: create_app(model, packing="none"),
        lambda: trainer_of(model, pairs, tmp_path / "run", packing="none"),
    ]
    for call in calls:
        with pytest.raises(UserError, match=message) as caught:
            call()
        # No mode helps, so none is named as the way out.
        assert not isinstance(caught.value, UnsupportedBackboneError)
    flags = {"model_name_or_path": path, "dataset_name": pairs, "output_dir": tmp_path / "out", "packing": "none", "use_cpu": "true"}
    assert srm_train.main([word for name, value in flags.items() for word in (f"--{name}", str(value))]) == 1
    assert reason in capsys.readouterr().err
