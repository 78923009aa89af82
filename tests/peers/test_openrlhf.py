"""OpenRLHF 0.11.2's own remote client against a real srm-serve: its executor renders, cuts, decodes and asks as it does in training."""

from __future__ import annotations

import argparse
import ast
import asyncio
import copy
import sys
from collections.abc import Sequence
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from openrlhf.datasets import PromptDataset
from openrlhf.utils.agent import SingleTurnAgentExecutor
from tokenizers import normalizers

from srm import SentenceRewardModel
from tests.example_scripts import arguments_of

PROMPTS = ["Why is bread salty?", "Where does the cat sit?"]
RESPONSES = ["It needs salt. Flour alone is dull.", "No, it is wrong!", "", "Bread is white. It is old. Salt is dear!"]


class Written:
    """In vLLM's place: what the policy writes. Everything that happens with it is OpenRLHF's."""

    def __init__(self, ids: Sequence[int]) -> None:
        self._ids = list(ids)

    async def generate(self, prompt_token_ids: list[int], params: Any, multi_modal_data: Any = None) -> SimpleNamespace:
        return SimpleNamespace(outputs=[SimpleNamespace(token_ids=self._ids, finish_reason="stop", logprobs=None)])


def ask(url: str, tokenizer: Any, samples: Sequence[tuple[str, str]], *, max_length: int = 256) -> list[dict[str, Any]]:
    """What OpenRLHF's executor makes of (templated prompt, response) pairs, all at once."""
    executor = SingleTurnAgentExecutor(f"{url}/get_reward")
    params = SimpleNamespace(max_tokens=64, logprobs=None)

    async def run() -> list[dict[str, Any]]:
        tasks = []
        for prompt, response in samples:
            engine = Written([*tokenizer(response, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id])
            tasks.append(executor.execute(prompt, "", params, max_length, tokenizer, engine))
        return await asyncio.gather(*tasks)

    return asyncio.run(run())


def test_256_samples_at_once(model: SentenceRewardModel, url: str) -> None:
    pairs = [(PROMPTS[number % 2], RESPONSES[number % 4]) for number in range(256)]
    outputs = ask(url, model.tokenizer, [(model.encoder.format.render(prompt), response) for prompt, response in pairs])
    whole = {pair: model.score([pair[0]], [pair[1]])[0].reward for pair in set(pairs) if pair[1]}
    for prompt in PROMPTS:
        whole[prompt, ""] = model.score_tokens([model.encoder.encode_prompt(prompt)], [[]]).reward.item()
    assert [output["reward"][0] for output in outputs] == pytest.approx([whole[pair] for pair in pairs], abs=1e-5)
    assert outputs[3]["extra_logs"] == {"num_sentences": [3]}


def test_prompts_that_its_query_does_not_begin_with(model: SentenceRewardModel, url: str) -> None:
    """Cut on the left, accents composed by the tokenizer, a blank behind a special token: each gets its reward, and the server counts."""
    before = mended(url)
    long = model.encoder.format.render("Salt is white. " * 40 + PROMPTS[0])
    composing = copy.deepcopy(model.tokenizer)
    composing.backend_tokenizer.normalizer = normalizers.NFC()
    accented = model.encoder.format.render("Is the cafe\u0301 warm?")
    (cut,) = ask(url, model.tokenizer, [(long, RESPONSES[0])], max_length=128)
    (composed,) = ask(url, composing, [(accented, RESPONSES[1])])
    blank = model.encoder.format.render(PROMPTS[1]).replace("<|im_start|>", "<|im_start|> ")
    (spaced,) = ask(url, model.tokenizer, [(blank, RESPONSES[3])])
    assert all(isinstance(output["reward"][0], float) for output in (cut, composed, spaced))
    assert [output["extra_logs"]["num_sentences"] for output in (cut, composed, spaced)] == [[2], [1], [3]]
    whole = model.score(["Is the caf\u00e9 warm?", "Is the cafe\u0301 warm?"], [RESPONSES[1]] * 2)
    assert min(abs(composed["reward"][0] - scored.reward) for scored in whole) < 1e-5
    # What OpenRLHF cut off is not scored, and is counted.
    end = model.tokenizer(long, add_special_tokens=False)["input_ids"][-64:]
    scored = model.score_tokens([end], [model.encoder.encode_responses([RESPONSES[0]])[0].ids.tolist()])
    assert cut["reward"][0] == pytest.approx(scored.reward.item(), abs=1e-4)
    assert mended(url) == before + 1


def mended(url: str) -> float:
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("srm_mended_samples_total"))


def parsed(arguments: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What OpenRLHF's command makes of its arguments: the end of its own file, without the call that starts to train on a GPU."""
    found = find_spec("openrlhf")
    assert found is not None
    assert found.origin is not None
    path = Path(found.origin).parent / "cli" / "train_ppo_ray.py"
    (block,) = [node for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.If)]
    assert ast.unparse(block.body[-1]) == "train(args)"
    monkeypatch.setattr(sys, "argv", [str(path), *arguments])
    names: dict[str, Any] = {"argparse": argparse, "datetime": datetime}
    exec(compile(ast.Module(block.body[:-1], []), path, "exec"), names)
    return names["args"]


def test_the_example_is_a_command_of_openrlhf(model: SentenceRewardModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = {"REWARD_URL": "http://reward:8000", "POLICY": "policy", "DATASET": "prompts.jsonl"}
    module, name, *arguments = arguments_of("openrlhf.sh", tmp_path, "--actor.num_gpus_per_node", "4", **chosen)
    assert [module, name] == ["-m", "openrlhf.cli.train_ppo_ray"]
    args = parsed(arguments, monkeypatch)
    assert args.reward.remote_url == ["http://reward:8000/get_reward"]
    assert (args.actor.model_name_or_path, args.data.prompt_dataset, args.actor.num_gpus_per_node) == ("policy", "prompts.jsonl", 4)
    rows = [{"prompt": [{"role": "user", "content": prompt}]} for prompt in PROMPTS]
    prompts = PromptDataset(rows, model.tokenizer, SimpleNamespace(args=args, is_rank_0=lambda: False))
    assert [prompt for _, prompt, *_ in prompts] == [model.encoder.format.render(prompt) for prompt in PROMPTS]
