"""How far vLLM's rewards are from `model.score`'s, in fp32 and in bf16, on real responses.

    python -m research.vllm_parity --pairs pairs_test.jsonl.gz --vllm build/peers/vllm/bin/python --json research/results/vllm_parity.json

Both are compared with `model.score` in fp32, and so is `model.score` in bf16: what 16 bits cost by themselves. The head is random, so that
sentence rewards differ. Every response is asked for twice, so that the second time boundaries lie in the prefix cache. Needs the extra
`serve`, and an environment with vLLM.
"""

from __future__ import annotations

import gzip
import itertools
import json
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import torch

from bench import environment
from bench.vllm_server import vllm_serve
from srm import Client, SentenceRewardModel

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
MAX_LENGTH = 2048


def main(argv: Sequence[str] | None = None) -> None:
    parser = environment.parser(__doc__)
    parser.add_argument("--model", default="smollm2-135m", help="backbone, name or folder (default: %(default)s)")
    parser.add_argument("--pairs", type=Path, required=True, help="pairs as gzipped JSONL: prompt, chosen, rejected")
    parser.add_argument("--vllm", required=True, help="the Python of an environment with vLLM and this package")
    parser.add_argument("--responses", type=int, default=200)
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "model")
        model = _awake(arguments.model)
        model.save_pretrained(folder)
        prompts, responses = _rows(model, arguments)
        scored: dict[str, list[list[float]]] = {}
        for name, dtype in DTYPES.items():
            environment.say(f"model.score in {name}")
            scored[f"model.score, {name}"] = _numbers(SentenceRewardModel.from_pretrained(folder, dtype=dtype).score(prompts, responses))
        version = ""
        for name in DTYPES:
            place = Path(scratch, name)
            place.mkdir()
            with vllm_serve(
                folder, place, "--enforce-eager", "--dtype", name, "--max-model-len", str(MAX_LENGTH), python=arguments.vllm
            ) as url:
                version = httpx.get(f"{url}/version").json()["version"]
                for time in ("first", "second"):
                    environment.say(f"vLLM in {name}, {time} time")
                    with Client(url, timeout=1800) as client:
                        scored[f"vllm, {name}, {time} time"] = _numbers(client.score(prompts, responses))
    exact = scored.pop("model.score, float32")
    result = {
        **environment.describe(),
        "vllm": version,
        "settings": environment.settings(arguments),
        "responses": len(exact),
        "sentences": sum(len(numbers) - 1 for numbers in exact),
        "reward_spread": statistics.pstdev(numbers[0] for numbers in exact),
        "largest_difference_from_fp32": {name: _differences(numbers, exact) for name, numbers in scored.items()},
    }
    print(json.dumps(result["largest_difference_from_fp32"], indent=2))
    environment.write(arguments.json, result)


def _awake(backbone: str) -> SentenceRewardModel:
    """A reward model whose values and weights differ from sentence to sentence."""
    model = SentenceRewardModel.from_backbone(backbone)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def _rows(model: SentenceRewardModel, arguments: Any) -> tuple[list[str], list[list[str]]]:
    """The first pairs that fit."""
    prompts, responses = [], []
    with gzip.open(arguments.pairs, "rt", encoding="utf-8") as lines:
        for row in itertools.islice(map(json.loads, lines), 10 * arguments.responses):
            answers = [row["chosen"], row["rejected"]]
            longest = max(len(encoded.ids) for encoded in model.encoder.encode_responses(answers))
            if len(prompts) < arguments.responses // 2 and len(model.encoder.encode_prompt(row["prompt"])) + longest <= MAX_LENGTH:
                prompts.append(row["prompt"])
                responses.append(answers)
    return prompts, responses


def _numbers(scored: Any) -> list[list[float]]:
    """Of each response its reward, then its sentence rewards."""
    return [[one.reward, *(sentence.reward for sentence in one.sentences)] for pair in scored for one in pair]


def _differences(numbers: list[list[float]], exact: list[list[float]]) -> dict[str, float]:
    reward = max(abs(one[0] - other[0]) for one, other in zip(numbers, exact, strict=True))
    sentences = max(abs(a - b) for one, other in zip(numbers, exact, strict=True) for a, b in zip(one[1:], other[1:], strict=True))
    return {"reward": reward, "sentence_reward": sentences}


if __name__ == "__main__":
    main()
