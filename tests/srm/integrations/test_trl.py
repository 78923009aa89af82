"""TRL's own GRPOTrainer on a tiny random policy, CPU."""

from __future__ import annotations

import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from srm import SentenceRewardModel

pytest.importorskip("trl", reason="trl is not installed: pip install trl")

from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer
from trl.data_utils import _tokenize

from srm.data import encode_comparisons, parse_row
from srm.integrations.trl import SentenceGRPOTrainer, SentenceRewardFunction, _join, _split
from srm.rl import group_advantages

PROMPTS = ["Why is bread salty?", "Where does the cat sit?"]


@pytest.fixture
def reward_function(awake_model: Callable[..., SentenceRewardModel]) -> SentenceRewardFunction:
    # A random policy writes no full stops: short pieces stand for sentences.
    return SentenceRewardFunction(awake_model(segmenter={"name": "punkt", "max_chars": 8}))


def trainer(kind: Callable[..., GRPOTrainer], function: object, path: Path, out: Path, **arguments: Any) -> GRPOTrainer:
    settings = GRPOConfig(
        **{
            "output_dir": str(out),
            "per_device_train_batch_size": 4,
            "num_generations": 2,
            "max_completion_length": 24,
            "max_steps": 2,
            "learning_rate": 1e-2,
            "logging_steps": 1,
            "use_cpu": True,
            "bf16": False,
            "report_to": [],
            "save_strategy": "no",
            **arguments,
        }
    )
    return kind(
        model=AutoModelForCausalLM.from_pretrained(path),
        reward_funcs=function,
        args=settings,
        train_dataset=Dataset.from_dict({"prompt": PROMPTS * 4}),
        processing_class=AutoTokenizer.from_pretrained(path),
    )


def test_reward_function_in_grpo(reward_function: SentenceRewardFunction, tiny_policy_dir: Path, tmp_path: Path) -> None:
    seen: list[tuple[list[str], list[list[int]], list[float]]] = []

    class Spy(SentenceRewardFunction):
        def __call__(self, prompts: Any, completions: Any, completion_ids: Any, **columns: object) -> list[float]:
            rewards = super().__call__(prompts, completions, completion_ids, **columns)
            seen.append((prompts, completion_ids, rewards))
            return rewards

    grpo = trainer(GRPOTrainer, Spy(reward_function.model), tiny_policy_dir, tmp_path)
    grpo.train()
    assert len(seen) == 2
    assert [row["rewards/sentence_reward/mean"] for row in grpo.state.log_history[:2]] == pytest.approx(
        [sum(rewards) / len(rewards) for _, _, rewards in seen], abs=1e-5
    )
    prompts, ids, rewards = seen[0]
    encode = reward_function.model.encoder.encode_prompt
    alone = [float(reward_function.model.score_tokens([encode(p)], [i]).reward) for p, i in zip(prompts, ids, strict=True)]
    assert rewards == pytest.approx(alone, abs=1e-5)


CALL = {"role": "assistant", "content": "The cat sat.", "tool_calls": [{"function": {"name": "look", "arguments": {"at": "mat"}}}]}
TOOL = {"role": "tool", "content": "It was warm."}
ANSWER = {"role": "assistant", "content": "It is warm there."}


def test_ids_are_those_that_trls_reward_trainer_reads(reward_function: SentenceRewardFunction) -> None:
    """Up to what ends the last turn, behind which TRL looks for its reward and we do not."""
    encoder = reward_function.model.encoder
    user, more = ({"role": "user", "content": text} for text in PROMPTS)
    rows = [
        {"chosen": [user, ANSWER, more, ANSWER], "rejected": [user, {**ANSWER, "content": "No."}]},
        {"chosen": [user, ANSWER], "rejected": [more, ANSWER, user, {**ANSWER, "content": "No. Yes."}]},
        {"prompt": [user], "chosen": [ANSWER, more, ANSWER], "rejected": [{**ANSWER, "content": "No."}]},
    ]
    comparisons = [parse_row(row, where="w", id="1") for row in rows]
    encoded, _ = encode_comparisons(comparisons, encoder, max_length=None, progress=False)
    end = encoder.tokenizer("<|im_end|>\n", add_special_tokens=False)["input_ids"]
    for row, comparison in zip(rows, encoded, strict=True):
        for name, response in zip(("chosen", "rejected"), comparison.responses, strict=True):
            trl_ids = _tokenize(encoder.tokenizer, [*row.get("prompt", []), *row[name]])["input_ids"]
            assert [*comparison.prompt_ids.tolist(), *response.ids.tolist(), *end] == trl_ids


def test_completions_of_several_messages(reward_function: SentenceRewardFunction) -> None:
    """A policy with tools writes them: its ids hold the tools' turns, and end ids in their midst."""
    model = reward_function.model
    tokenizer = model.tokenizer
    assert tokenizer is not None
    template = tokenizer.chat_template
    tokenizer.chat_template = template.replace(
        "{{ message['content'] }}", "{{ message['content'] }}{{ message.tool_calls | default('', true) }}"
    )
    try:
        function = SentenceRewardFunction(model)
        users = [[{"role": "user", "content": text}] for text in PROMPTS]
        ids = [tokenizer(text)["input_ids"] for text in ("The cat sat.", ANSWER["content"])]
        got = function([users[0], users[1], users[0]], [[CALL, TOOL, ANSWER], [ANSWER], [CALL, TOOL]], [ids[0], ids[1], ids[0]])
        whole, alone = model.score([users[0], users[1]], [[CALL, TOOL, ANSWER], ANSWER["content"]])
        assert function.last is None
        # A tool that has the last word says nothing for the policy: what is left is one message, which its ids hold.
        cut = model.score_tokens([model.encoder.encode_prompt(users[0])], [ids[0]])
        assert got == pytest.approx([whole.reward, alone.reward, cut.reward.item()], abs=1e-5)
        assert len({round(reward, 4) for reward in got}) == 3
        assert function([users[1]], [[ANSWER]], [ids[1]]) == pytest.approx(got[1:2], abs=1e-5)
        assert function.last is not None
    finally:
        tokenizer.chat_template = template


def test_prompts_that_begin_the_answer(reward_function: SentenceRewardFunction) -> None:
    model = reward_function.model
    prompt = [{"role": "user", "content": PROMPTS[0]}, {"role": "assistant", "content": "The cat"}]
    ids = model.tokenizer(" sat on the mat.")["input_ids"]
    (got,) = reward_function([prompt], [[{"role": "assistant", "content": " sat on the mat."}]], [ids])
    assert got == pytest.approx(model.score([prompt], [" sat on the mat."])[0].reward, abs=1e-5)


@pytest.mark.parametrize("to_go", ["sum", "min"])
def test_sentence_advantages_in_grpo(
    reward_function: SentenceRewardFunction, tiny_policy_dir: Path, tmp_path: Path, to_go: Literal["sum", "min"]
) -> None:
    outputs: list[dict[str, Any]] = []

    class Spy(SentenceGRPOTrainer):
        def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
            output = super()._generate_and_score_completions(inputs)
            outputs.append({**output, "scored": reward_function.last})
            return output

    grpo = trainer(partial(Spy, to_go=to_go), reward_function, tiny_policy_dir, tmp_path)
    before = [parameter.detach().clone() for parameter in grpo.model.parameters()]
    grpo.train()
    first = outputs[0]
    mask, advantages = first["completion_mask"], first["advantages"]
    assert advantages.shape == mask.shape
    wanted = group_advantages(first["scored"], torch.tensor([0, 0, 1, 1]), to_go=to_go, mask=torch.ones_like(mask))
    torch.testing.assert_close(advantages, wanted * mask)
    # A response of several sentences has several advantages, which one number a completion cannot say.
    assert max(len(row.unique()) for row in advantages) > 2
    assert any(not torch.equal(old, new) for old, new in zip(before, grpo.model.parameters(), strict=True))


@pytest.mark.parametrize("weights", [None, [-2.0], [0.0]])
def test_first_tokens_have_trls_own_advantage(
    awake_model: Callable[..., SentenceRewardModel], tiny_policy_dir: Path, tmp_path: Path, weights: list[float] | None
) -> None:
    """They answer for all of the response, as all tokens do in `GRPOTrainer`; without the prompt's part sentences earn the whole reward."""
    function = SentenceRewardFunction(awake_model(segmenter={"name": "punkt", "max_chars": 8}, include_prompt=False))
    seen: list[torch.Tensor] = []
    for kind in (GRPOTrainer, SentenceGRPOTrainer):

        class Spy(kind):  # type: ignore[valid-type,misc]
            def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
                output = super()._generate_and_score_completions(inputs)
                seen.append(output["advantages"])
                return output  # type: ignore[no-any-return]

        trainer(Spy, function, tiny_policy_dir, tmp_path, scale_rewards="none", reward_weights=weights, max_steps=1).train()
    trls, ours = seen
    assert trls.shape == (4,)
    assert ours.dim() == 2
    torch.testing.assert_close(ours[:, 0], trls, atol=1e-5, rtol=0)
    assert bool(trls.any()) == (weights != [0.0])


@pytest.mark.slow
def test_each_process_gets_its_own_advantages(
    reward_function: SentenceRewardFunction,
    tiny_policy_dir: Path,
    fork: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Six completions of three prompts on two processes: the second prompt's are on both."""
    reward_function.model.save_pretrained(tmp_path / "model")
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    with socket.create_server(("127.0.0.1", 0)) as free:
        place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "CUDA_VISIBLE_DEVICES": ""}
    paths = [str(tmp_path / "model"), str(tiny_policy_dir)]
    ranks = [
        fork("trl_run", *paths, str(tmp_path / f"{rank}.pt"), output=tmp_path / str(rank), RANK=str(rank), LOCAL_RANK=str(rank), **place)
        for rank in range(2)
    ]
    for rank, process in enumerate(ranks):
        process.join(300)
        assert process.exitcode == 0, (tmp_path / f"{rank}.err").read_text()[-3000:]
    outputs = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    everyone = _join([part for output in outputs for part in output["parts"]])
    wanted = group_advantages(everyone, torch.tensor([0, 0, 1, 1, 2, 2]), mask=torch.ones(6, everyone.width, dtype=torch.bool))
    assert wanted[:3].std() > 0.1
    for output, own in zip(outputs, wanted.split(3), strict=True):
        mask = output["mask"]
        torch.testing.assert_close(output["advantages"], own[:, : mask.shape[1]] * mask)


def test_parts_of_processes_join_to_the_whole(reward_function: SentenceRewardFunction) -> None:
    reward_function(PROMPTS, ["", ""], [[40, 41, 42], [50, 51]])
    scored = reward_function.last
    assert scored is not None
    joined = _join(_split(scored))
    for name in ("reward", "sentence_reward", "weight", "ends", "cu_boundaries", "lengths"):
        torch.testing.assert_close(getattr(joined, name), getattr(scored, name))
    assert joined.width == scored.width


def test_refusals(reward_function: SentenceRewardFunction, tiny_policy_dir: Path, tmp_path: Path) -> None:
    def constant(completions: list[str], **columns: object) -> list[float]:
        return [0.0] * len(completions)

    with pytest.raises(ValueError, match="must be one SentenceRewardFunction, got function"):
        trainer(SentenceGRPOTrainer, constant, tiny_policy_dir, tmp_path)
    with pytest.raises(ValueError, match="`to_go` must be one of sum, min, own, got True"):
        trainer(partial(SentenceGRPOTrainer, to_go=True), reward_function, tiny_policy_dir, tmp_path)
    with pytest.raises(ValueError, match="`scale_rewards` must be 'group' or 'none', got 'batch'"):
        trainer(SentenceGRPOTrainer, reward_function, tiny_policy_dir, tmp_path, scale_rewards="batch")
    with pytest.raises(ValueError, match=r"must be 'sum_then_normalize', got 'normalize_then_sum', .* Leave it out"):
        trainer(SentenceGRPOTrainer, reward_function, tiny_policy_dir, tmp_path, multi_objective_aggregation="normalize_then_sum")
