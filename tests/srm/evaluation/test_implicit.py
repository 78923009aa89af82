"""DPO's implicit rewards by sentence, against the models' own logits and against TRL."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from srm.data import ResponseRow
from srm.errors import UserError
from srm.evaluation import implicit
from srm.evaluation.implicit import ImplicitRewardModel, policy_check
from srm.scoring.file import RowSettings
from srm.scoring.results import ScoredResponse

PROMPTS = ["Is it warm?", [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Bread?"}], "Is it warm?"]
RESPONSES = ["It was warm there.", "Bread needs flour, water, salt and time. Bread needs time.  No!", "No."]


@pytest.fixture(scope="module")
def policy_dir(tiny_policy_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_policy_dir` with other weights, as training leaves them."""
    path = tmp_path_factory.mktemp("trained")
    model = AutoModelForCausalLM.from_pretrained(tiny_policy_dir)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(path)
    AutoTokenizer.from_pretrained(tiny_policy_dir).save_pretrained(path)
    return path


def score(model: ImplicitRewardModel, packing: Any = None, tokens_per_batch: int = 8192, **settings: Any) -> list[ScoredResponse]:
    rows = [
        ResponseRow(
            id=str(number), row_id=str(number), row=number, label="response", prompt=prompt, response=response, where=f"row {number}"
        )
        for number, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True))
    ]
    whole = RowSettings(**{"overlong": "error", "max_length": None, **settings}, packing=packing, tokens_per_batch=tokens_per_batch)
    found = [pair for some in model.score_rows(rows, whole) for pair in some]
    assert [row.id for row, _ in found] == [row.id for row in rows]
    return [scored for _, scored in found]


def numbers(scored: list[ScoredResponse]) -> list[float]:
    return [number for one in scored for number in (one.reward, one.prompt_reward, *(sentence.reward for sentence in one.sentences))]


def test_a_sentence_has_the_log_ratios_of_its_tokens(policy_dir: Path, tiny_policy_dir: Path) -> None:
    """Each model alone on each response, written out with the template, in one unpadded row."""
    tokenizer = AutoTokenizer.from_pretrained(policy_dir)
    models = [AutoModelForCausalLM.from_pretrained(path).eval() for path in (policy_dir, tiny_policy_dir)]
    for prompt, response, scored in zip(
        PROMPTS, RESPONSES, score(ImplicitRewardModel(str(policy_dir), str(tiny_policy_dir), beta=0.3)), strict=True
    ):
        turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        before = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in turns) + "<|im_start|>assistant\n"
        parts = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (before, response, "<|im_end|>\n")]
        ids = torch.tensor([[*parts[0], *parts[1], *parts[2]]])
        with torch.no_grad():
            policy, reference = (model(ids).logits[0, :-1].double().log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0] for model in models)
        ratio = 0.3 * (policy - reference)[len(parts[0]) - 1 :]
        covered = tokenizer(response, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        assert "".join(sentence.text for sentence in scored.sentences) == response
        for sentence in scored.sentences:
            tokens = [index for index, (_, end) in enumerate(covered) if sentence.start < len(response[:end].rstrip()) <= sentence.end]
            assert sentence.reward == pytest.approx(ratio[tokens].sum().item(), abs=1e-5)
        assert scored.prompt_reward == pytest.approx(ratio[len(parts[1]) :].sum().item(), abs=1e-5)
        assert scored.reward == pytest.approx(ratio.sum().item(), abs=1e-5)
        assert abs(scored.reward) > 1e-2


def test_layout_and_chunks_change_nothing(policy_dir: Path, tiny_policy_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ImplicitRewardModel(str(policy_dir), str(tiny_policy_dir))
    expected = numbers(score(model))
    for packing in ("shared", "packed", "none"):
        for tokens_per_batch in (1, 60, 8192):
            assert numbers(score(model, packing, tokens_per_batch)) == pytest.approx(expected, abs=1e-5)
    monkeypatch.setattr(implicit, "_ROWS", 3)
    monkeypatch.setattr(implicit, "_MOST_LOGITS", 60 * model.policy.config.vocab_size)
    ran: list[int] = []
    model.policy.register_forward_pre_hook(lambda _, args, kwargs: ran.append(kwargs["input_ids"].numel()), with_kwargs=True)
    assert numbers(score(model)) == pytest.approx(expected, abs=1e-5)
    assert len(ran) > 1, "the logits of all rows would be too large for one pass"


def test_the_reward_is_that_of_trl(policy_dir: Path, tiny_policy_dir: Path, tmp_path: Path) -> None:
    trl = pytest.importorskip("trl", reason="the package trl is not installed; `pip install 'srm-kernels[trl]'` to run this")
    from datasets import Dataset

    def rows(prompt: str, chosen: str, rejected: str) -> Any:
        say = {"prompt": ("user", prompt), "chosen": ("assistant", chosen), "rejected": ("assistant", rejected)}
        return Dataset.from_list([{name: [{"role": role, "content": text}] for name, (role, text) in say.items()}])

    pairs = {"a": ("Is it warm?", RESPONSES[0], RESPONSES[2]), "b": ("Is it warm?", RESPONSES[1], RESPONSES[0])}
    arguments = trl.DPOConfig(output_dir=str(tmp_path), beta=0.2, bf16=False, report_to=[], use_cpu=True, disable_tqdm=True)
    trainer = trl.DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(policy_dir),
        ref_model=AutoModelForCausalLM.from_pretrained(tiny_policy_dir),
        args=arguments,
        train_dataset=rows(*pairs["a"]),
        eval_dataset={name: rows(*pair) for name, pair in pairs.items()},
        processing_class=AutoTokenizer.from_pretrained(policy_dir),
    )
    model = ImplicitRewardModel(str(policy_dir), str(tiny_policy_dir), beta=0.2)
    for name, (prompt, chosen, rejected) in pairs.items():
        trainer.evaluate(trainer.eval_dataset[name])
        logged = trainer.state.log_history[-1]
        both = [
            ResponseRow(id=side, row_id=name, row=1, label=side, prompt=prompt, response=text, where=name)
            for side, text in (("chosen", chosen), ("rejected", rejected))
        ]
        settings = RowSettings(overlong="error", max_length=None, packing=None, tokens_per_batch=8192)
        for row, scored in (pair for some in model.score_rows(both, settings) for pair in some):
            assert scored.reward == pytest.approx(logged[f"eval_rewards/{row.id}"], abs=1e-5)
            assert abs(scored.reward) > 1e-2


def test_a_policy_that_has_learned_nothing(tiny_policy_dir: Path) -> None:
    assert set(numbers(score(ImplicitRewardModel(str(tiny_policy_dir), str(tiny_policy_dir))))) == {0.0}


def test_beta_is_a_factor(policy_dir: Path, tiny_policy_dir: Path) -> None:
    one, two = (numbers(score(ImplicitRewardModel(str(policy_dir), str(tiny_policy_dir), beta=beta))) for beta in (0.1, 0.2))
    assert two == pytest.approx([2 * number for number in one], abs=1e-7)


def test_an_adapter_is_a_policy(tiny_policy_dir: Path, tmp_path: Path) -> None:
    """What TRL leaves with --use_peft."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    settings = peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    adapted = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_policy_dir), settings)
    adapted.save_pretrained(tmp_path / "adapter")
    AutoTokenizer.from_pretrained(tiny_policy_dir).save_pretrained(tmp_path / "adapter")
    adapted.merge_and_unload().save_pretrained(tmp_path / "merged")
    AutoTokenizer.from_pretrained(tiny_policy_dir).save_pretrained(tmp_path / "merged")
    adapter, merged = (numbers(score(ImplicitRewardModel(str(tmp_path / name), str(tiny_policy_dir)))) for name in ("adapter", "merged"))
    assert adapter == pytest.approx(merged, abs=1e-5)
    assert max(map(abs, adapter)) > 1e-2


def test_what_cannot_be_compared_is_refused(policy_dir: Path, tiny_policy_dir: Path, tmp_path: Path) -> None:
    for path in (tmp_path / "other", tmp_path / "bare"):
        AutoModelForCausalLM.from_pretrained(policy_dir).save_pretrained(path)
        AutoTokenizer.from_pretrained(policy_dir).save_pretrained(path)
    content = json.loads((tmp_path / "other" / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    first, second = (token for token in list(vocabulary)[20:22])
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (tmp_path / "other" / "tokenizer.json").write_text(json.dumps(content))
    for refuse in (ImplicitRewardModel, policy_check):
        with pytest.raises(UserError, match=r"--ref_model .*other: its tokens are not those of the policy"):
            refuse(str(policy_dir), str(tmp_path / "other"))
    (tmp_path / "bare" / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match="its tokenizer has no chat template"):
        policy_check(str(tmp_path / "bare"), str(tiny_policy_dir))
    weights = AutoModelForCausalLM.from_pretrained(policy_dir)
    weights.lm_head.weight.data[5] = float("nan")
    weights.save_pretrained(tmp_path / "bad")
    AutoTokenizer.from_pretrained(policy_dir).save_pretrained(tmp_path / "bad")
    with pytest.raises(UserError, match=r"row 0: the reward became nan; the weight lm_head.weight holds NaN"):
        score(ImplicitRewardModel(str(tmp_path / "bad"), str(tiny_policy_dir)))


def test_long_rows(policy_dir: Path, tiny_policy_dir: Path) -> None:
    model = ImplicitRewardModel(str(policy_dir), str(tiny_policy_dir))
    positions = model.policy.config.max_position_embeddings
    ending = len(model.tokenizer("<|im_end|>\n", add_special_tokens=False)["input_ids"])
    assert model.config.max_positions == positions - ending, "the template's ending needs room, too"
    with pytest.raises(UserError, match=r"row 1: prompt and response are \d+ tokens, max_length is 40"):
        score(model, max_length=40)
    assert len(score(model, max_length=40, overlong="truncate_response")[1].sentences) == 1
