"""vLLM 0.32's own server with our plugin: its backbones, its batches, its prefix cache, in front of the scores that `model.score` gives."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer

from bench.vllm_server import metric, vllm_serve
from srm import Client, SentenceRewardModel
from srm.client import RequestRefused
from tests.servers import wait_until

SHAPE = {
    "hidden_size": 128,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "max_position_embeddings": 2048,
    "initializer_range": 0.1,
}
# Chunks of a prompt: the longest rows below have four.
FLAGS = ("--enforce-eager", "--dtype", "float32", "--max-model-len", "2048", "--max-num-batched-tokens", "512", "--block-size", "32")
KEY = "hunter2"

Make = Callable[..., Path]


@pytest.fixture(scope="module")
def make(tiny_tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory, awake_model: Callable[..., SentenceRewardModel]) -> Make:
    """make(architecture, config=..., **shape): the folder of a reward model with a head that is not zero."""

    def folder(architecture: str = "llama", *, config: dict[str, Any] | None = None, **shape: Any) -> Path:
        tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer_dir)
        torch.manual_seed(0)
        backbone = tmp_path_factory.mktemp(architecture)
        AutoModel.from_config(AutoConfig.for_model(architecture, vocab_size=len(tokenizer), **SHAPE, **shape)).save_pretrained(backbone)
        tokenizer.save_pretrained(backbone)
        path = tmp_path_factory.mktemp("reward_model")
        awake_model(backbone, **(config or {})).save_pretrained(path)
        return path

    return folder


@pytest.fixture(scope="module")
def folder(make: Make) -> Path:
    return make()


@pytest.fixture(scope="module")
def model(folder: Path) -> SentenceRewardModel:
    return SentenceRewardModel.from_pretrained(folder)


@pytest.fixture(scope="module")
def url(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with vllm_serve(folder, tmp_path_factory.mktemp("vllm"), *FLAGS) as address:
        yield address


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    with Client(url) as client:
        yield client


def group(tokens: int, model: SentenceRewardModel, *, start: str) -> tuple[str, list[str]]:
    """A prompt of so many tokens in its template, and 16 answers of several sentences, the first two with one beginning."""
    prompt = start
    while (missing := tokens - len(model.encoder.encode_prompt(prompt))) > 0:
        prompt += " ?!"[missing % 3] if missing < 8 else " It is warm."
    assert len(model.encoder.encode_prompt(prompt)) == tokens
    return prompt, [f"It was warm there. Bread needs salt{' and time' * (n // 2)}. No, it is wrong!{' Why?' * (n % 3)}" for n in range(16)]


def assert_equal(got: Any, expected: Any, *, within: float = 1e-4) -> None:
    """The same spans, and numbers within so much."""
    for answers, wanted in zip(got, expected, strict=True):
        for one, other in zip(answers, wanted, strict=True):
            assert [(s.start, s.end, s.text) for s in one.sentences] == [(s.start, s.end, s.text) for s in other.sentences]
            assert numbers(one) == pytest.approx(numbers(other), abs=within)


def numbers(score: Any) -> list[float]:
    return [score.reward, score.prompt_reward, score.prompt_weight, *(x for s in score.sentences for x in (s.reward, s.weight))]


def test_200_real_responses(client: Client, model: SentenceRewardModel, shared_data: Path) -> None:
    prompts, responses = [], []
    with gzip.open(shared_data / "pairs_test.jsonl.gz", "rt", encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            if max(len(model.encoder.encode_prompt(row["prompt"])) + len(row[side]) for side in ("chosen", "rejected")) < 2048:
                prompts.append(row["prompt"])
                responses.append([row["chosen"], row["rejected"]])
            if len(prompts) == 100:
                break
    assert_equal(client.score(prompts, responses), model.score(prompts, responses))


@pytest.mark.parametrize("tokens", [1000, 1024], ids=["inside a block", "at the end of a block"])
def test_a_group_runs_its_prompt_once(tokens: int, url: str, client: Client, model: SentenceRewardModel) -> None:
    """Where the prompt ends with a block of the cache, its last token is cached, and its value is asked for by itself."""
    prompt, responses = group(tokens, model, start=f"Case {tokens}:")
    queries, hits = (metric(url, f"vllm:prefix_cache_{name}_total") for name in ("queries", "hits"))
    assert_equal(client.score([prompt], [responses]), model.score([prompt], [responses]))
    rows = sum(tokens + len(model.tokenizer(response)["input_ids"]) for response in responses)
    run = metric(url, "vllm:prefix_cache_queries_total") - queries - (metric(url, "vllm:prefix_cache_hits_total") - hits)
    assert run < 0.2 * rows
    # Once more: nearly all of it lies in the cache, boundaries too.
    assert_equal(client.score([prompt], [responses]), model.score([prompt], [responses]))


def test_without_the_prefix_cache(folder: Path, model: SentenceRewardModel, tmp_path: Path) -> None:
    prompt, responses = group(1000, model, start="Without:")
    with vllm_serve(folder, tmp_path, *FLAGS, "--no-enable-prefix-caching", "--api-key", KEY) as url:
        with Client(url, token=KEY) as client:
            assert_equal(client.score([prompt], [responses]), model.score([prompt], [responses]))
        assert metric(url, "vllm:prefix_cache_hits_total") == 0
        for route in ("/v1/rewards", "/get_reward", "/remote_rm"):
            assert httpx.post(url + route, json={}).status_code == 401
            assert httpx.post(url + route, json={}, headers={"Authorization": f"Bearer {KEY}"}).status_code == 422


def test_token_ids(client: Client, model: SentenceRewardModel) -> None:
    prompts = [model.encoder.encode_prompt(prompt) for prompt in ("Why is bread salty?", "Is it right?")]
    responses = [model.tokenizer(text)["input_ids"] for text in ("It needs salt. Flour is dull.<|im_end|>", "")]
    got, expected = client.score_tokens(prompts, responses), model.score_tokens(prompts, responses)
    for name in ("reward", "sentence_reward", "weight"):
        assert getattr(got, name).tolist() == pytest.approx(getattr(expected, name).tolist(), abs=1e-4)
    assert [got.ends.tolist(), got.cu_boundaries.tolist()] == [expected.ends.tolist(), expected.cu_boundaries.tolist()]


def test_the_routes_of_openrlhf_and_slime(url: str, model: SentenceRewardModel) -> None:
    rendered, answer = model.encoder.render("Why is bread salty?"), "It needs salt. Flour is dull."
    (expected,) = model.score(["Why is bread salty?"], [answer])
    answered = httpx.post(f"{url}/get_reward", json={"query": [rendered + answer], "prompts": [rendered], "labels": [""]}).json()
    assert answered["rewards"] == pytest.approx([expected.reward], abs=1e-4)
    sample = {"prompt": [{"role": "user", "content": "Why is bread salty?"}], "response": answer, "label": None}
    assert httpx.post(f"{url}/remote_rm", json=sample).json() == pytest.approx(expected.reward, abs=1e-4)
    assert metric(url, "srm_requests_total") >= 2


def test_what_cannot_be_scored_is_refused(url: str, client: Client) -> None:
    with pytest.raises(RequestRefused, match=r"`rows.1`: .* this server reads at most 2048") as refused:
        client.score(["Why?", "Why?"], ["No.", "It is warm. " * 2000])
    assert refused.value.status == 422
    with pytest.raises(RequestRefused, match="unknown"):
        client.score_tokens([[1, 10**6]], [[1]])
    assert httpx.post(f"{url}/v1/rewards", content=b'{"rows": [{"prompt": 1}]}').status_code == 422
    assert httpx.post(f"{url}/v1/rewards", content=b"[" * 1000).status_code == 422
    assert httpx.post(f"{url}/v1/rewards", content=b" " * 16_000_001).status_code == 413
    assert client.score(["Why?"], ["Because."])[0].sentences


def test_a_client_that_leaves_frees_the_engine(url: str, model: SentenceRewardModel) -> None:
    prompt, _ = group(1500, model, start="Leaving:")
    rows = [{"prompt": f"{number} {prompt[:-40]}", "response": "It is warm."} for number in range(256)]
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{url}/v1/rewards", json={"rows": rows}, timeout=2.0)
    busy = ("vllm:num_requests_running", "vllm:num_requests_waiting", "srm_queue_rows")
    wait_until(lambda: sum(metric(url, name) for name in busy) == 0, seconds=10)


def test_64_clients_get_their_own_answers(url: str, model: SentenceRewardModel) -> None:
    """Thousands of requests, a few hundred different ones, on prompts that some of them share."""
    texts = [(f"Question {number % 50}?", f"Answer {number} is here. It is{' very' * (number % 7)} warm.") for number in range(400)]
    expected = [score.reward for score in model.score(*map(list, zip(*texts, strict=True)))]
    assert len({round(reward, 3) for reward in expected}) > 200
    barrier = threading.Barrier(64)

    def ask(client_number: int) -> None:
        barrier.wait()
        with Client(url) as client:
            for number in range(client_number, client_number + 48):
                prompt, response = texts[(number * 7) % len(texts)]
                (score,) = client.score([prompt], [response])
                assert score.reward == pytest.approx(expected[(number * 7) % len(texts)], abs=1e-4)

    with ThreadPoolExecutor(64) as clients:
        list(clients.map(ask, range(64)))


def test_bf16(make: Make, tmp_path: Path) -> None:
    """Another order of sums in 16 bits: as far from fp32 as the model itself in bf16, within a factor of three."""
    folder = make()
    prompt, responses = group(1000, SentenceRewardModel.from_pretrained(folder), start="In bf16:")
    exact, ours = (
        SentenceRewardModel.from_pretrained(folder, dtype=dtype).score([prompt], [responses]) for dtype in (torch.float32, torch.bfloat16)
    )
    with vllm_serve(folder, tmp_path, *FLAGS, "--dtype", "bfloat16") as url, Client(url) as client:
        got = client.score([prompt], [responses])
    errors = [max(abs(x.reward - y.reward) for x, y in zip(scores[0], exact[0], strict=True)) for scores in (got, ours)]
    assert 0 < errors[0] < 3 * errors[1]


OTHERS = {
    "qwen3, the paper's head": ("qwen3", {"pooling": "attention"}, {}),
    "gemma3, response level": ("gemma3_text", {"granularity": "response"}, {"sliding_window": 128, "query_pre_attn_scalar": 64}),
    "mistral, token level": ("mistral", {"granularity": "token"}, {"sliding_window": None}),
    "qwen2, boundary tokens, two ranks": ("qwen2", {"boundary_token": "<END>", "rope_theta": None}, {}),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_backbones_and_heads(name: str, make: Make, tmp_path: Path) -> None:
    architecture, config, shape = OTHERS[name]
    folder = make(architecture, config=config, **shape)
    model = SentenceRewardModel.from_pretrained(folder)
    prompt, responses = group(1024, model, start="Others:")
    flags, variables = (["--tensor-parallel-size", "2"], {"VLLM_CPU_OMP_THREADS_BIND": "0|1"}) if "two ranks" in name else ([], {})
    with vllm_serve(folder, tmp_path, *FLAGS, *flags, **variables) as url, Client(url) as client:
        for _ in range(2):
            assert_equal(client.score([prompt], [responses]), model.score([prompt], [responses]))


def test_another_model_is_refused(tiny_policy_dir: Path, tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError, match=r"is a llama model, and VLLM_PLUGINS names srm"),
        vllm_serve(tiny_policy_dir, tmp_path, "--convert", "classify", "--dtype", "float32", "--enforce-eager"),
    ):
        pass
