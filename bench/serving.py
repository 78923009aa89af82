"""srm-serve under load, with batching and without, and vLLM: many clients at once, each with one response at a time.

    python bench/serving.py --vllm build/peers/vllm/bin/python --json bench/results/serving_cpu.json

Servers of the same model run side by side as processes of their own, one with --no_batching, and one of vLLM where --vllm names the Python
of an environment that has it. They are timed in turns, so that all but one are idle. Two kinds of load: groups of requests that share a
prompt, and requests whose prompts all differ. Before anything is timed, all servers must give model.score's rewards on some of the
requests; every reward of the timed rounds is checked too, and a wrong one ends the benchmark without a result. A server without batching
answers at a constant rate, so --plain requests show it. vLLM forgets its prefixes before each timing, because new samples have new
prompts. With the defaults it takes six to ten minutes on two CPU cores. Needs the extra `serve`.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import environment
import httpx
import torch
from providers import Models
from vllm_server import vllm_serve
from workloads import random_text

from srm import AsyncClient, SentenceRewardModel

ROOT = Path(__file__).resolve().parents[1]
BATCHING, PLAIN, VLLM = "batching", "no batching", "vllm"
# Largest difference of two rewards, as a share of their spread over the requests. The weights are float32, because the rounding of bfloat16
# is as large as the differences between random texts.
TOLERANCE = 1e-3


@dataclass(frozen=True, kw_only=True)
class Load:
    """Requests of one kind, one response each, in the order in which clients take them, and what model.score says."""

    name: str
    prompts: list[str]
    responses: list[str]
    prompt_tokens: float
    response_tokens: float
    expected: list[float]


def main(argv: Sequence[str] | None = None) -> None:
    arguments = _arguments(argv)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as servers:
        model = _save_model(arguments, folder)
        starting = {BATCHING: _server(folder, arguments), PLAIN: _server(folder, arguments, "--no_batching")}
        if arguments.vllm:
            starting[VLLM] = _vllm(folder, arguments)
        urls = {name: servers.enter_context(server) for name, server in starting.items()}
        # Those of srm-serve load while this process works out what they must answer.
        loads = [_load(name, arguments, model) for name in ("shared", "distinct")]
        for url in urls.values():
            _wait_for(url)
        for load in loads:
            for name, url in urls.items():
                _check(name, load, _ask(url, load, arguments, count=arguments.check))
        rounds = _rounds(urls, loads, arguments, began)
        batches = {name: _batches(url) for name, url in urls.items() if name != VLLM}
        peer = {"vllm": httpx.get(f"{urls[VLLM]}/version").json()["version"]} if VLLM in urls else {}
    result = {
        **environment.describe(),
        "settings": environment.settings(arguments),
        "loads": {load.name: _summary(load, rounds[load.name]) for load in loads},
        "rows_per_batch": batches,
        **peer,
    }
    for name, load in result["loads"].items():
        speeds = ", ".join(f"{server} {speed:.2f}/s" for server, speed in load["requests_per_second"].items())
        print(f"{name}: {speeds}")
        for server, ratio in load["batching_is_faster_by"].items():
            print(f"    batching is {ratio['median']:.2f} ({ratio['low']:.2f}-{ratio['high']:.2f}) times as fast as {server}")
    environment.write(arguments.json, result)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = environment.parser(__doc__)
    parser.add_argument("--model", default="smollm2-135m", help="backbone, name or folder (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="of srm-serve (default: %(default)s); vLLM takes what it finds")
    parser.add_argument("--vllm", help="the Python of an environment with vLLM and this package")
    parser.add_argument("--clients", type=int, default=64, help="at once (default: %(default)s)")
    parser.add_argument(
        "--rush", type=int, default=2, help="requests of each client with shared prompts and batching (default: %(default)s)"
    )
    parser.add_argument("--distinct", type=int, default=32, help="requests of a round whose prompts all differ (default: %(default)s)")
    parser.add_argument("--plain", type=int, default=12, help="requests of a round without batching, of either kind (default: %(default)s)")
    parser.add_argument("--group", type=int, default=16, help="requests that share a prompt (default: %(default)s)")
    parser.add_argument("--prompt", type=int, default=512, help="tokens, chat template included (default: %(default)s)")
    parser.add_argument("--response", type=int, default=64, help="tokens, a quarter less to a quarter more (default: %(default)s)")
    parser.add_argument("--tokens_per_batch", type=int, help="of the servers (default: srm-serve's own)")
    parser.add_argument("--rounds", type=int, default=5, help="at most (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=6, help="no further round is begun that would end later (default: %(default)s)")
    parser.add_argument("--check", type=int, default=4, help="requests of each kind asked of each server first (default: %(default)s)")
    return parser.parse_args(argv)


def _save_model(arguments: argparse.Namespace, folder: str) -> SentenceRewardModel:
    """A reward model whose rewards differ, in `folder` for the servers and loaded for this process."""
    models = Models(arguments.model, dtype=torch.float32, device=torch.device("cpu"))
    models.reward_model(models.backbone).save_pretrained(folder)
    return SentenceRewardModel.from_pretrained(folder, dtype="auto").eval().to(arguments.device)


def _load(name: str, arguments: argparse.Namespace, model: SentenceRewardModel) -> Load:
    draw = random.Random(name)
    encoder = model.encoder
    template = len(encoder.encode_prompt("the"))
    group, count = (arguments.group, arguments.rush * arguments.clients) if name == "shared" else (1, arguments.distinct)
    prompts: list[str] = []
    while len(prompts) < count:
        prompts += [_text(draw, encoder.tokenizer, max(arguments.prompt - template, 1))] * group
    prompts = prompts[:count]
    low, high = round(0.75 * arguments.response), round(1.25 * arguments.response)
    responses = [_text(draw, encoder.tokenizer, draw.randint(low, high)) for _ in prompts]
    # Samples of several groups come in at a time, not group by group.
    for start in range(0, count, arguments.clients):
        block = prompts[start : start + arguments.clients]
        prompts[start : start + arguments.clients] = draw.sample(block, len(block))
    started = time.perf_counter()
    expected = [scored.reward for scored in model.score(prompts, responses)]
    environment.say(
        f"{name}: {len(prompts)} requests; model.score took {time.perf_counter() - started:.1f} s, the servers loading beside it"
    )
    return Load(
        name=name,
        prompts=prompts,
        responses=responses,
        prompt_tokens=statistics.mean(len(encoder.encode_prompt(prompt)) for prompt in prompts),
        response_tokens=statistics.mean(len(encoded.ids) for encoded in encoder.encode_responses(responses)),
        expected=expected,
    )


def _text(draw: random.Random, tokenizer: Any, num_tokens: int) -> str:
    """Sentences of random words, cut to `num_tokens` tokens."""
    text = random_text(draw, num_tokens)
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return text[: offsets[num_tokens - 1][1]]


@contextmanager
def _server(folder: str, arguments: argparse.Namespace, *flags: str) -> Iterator[str]:
    """The address of a server that may still be loading."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "srm.cli.serve", "--model", folder, "--device", arguments.device, "--port", str(port)]
    limits = ["--max_queue", str(4 * arguments.clients)]
    if arguments.tokens_per_batch is not None:
        limits += ["--tokens_per_batch", str(arguments.tokens_per_batch)]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    process = subprocess.Popen([*command, *limits, *flags], env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.DEVNULL)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(60)


def _vllm(folder: str, arguments: argparse.Namespace) -> AbstractContextManager[str]:
    """The address of a vLLM server that answers."""
    scratch = Path(folder, "vllm")
    scratch.mkdir()
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    flags = ["--dtype", "float32", "--max-num-batched-tokens", str(arguments.tokens_per_batch or 8192)]
    # With a route to forget prefixes.
    variables = {"VLLM_SERVER_DEV_MODE": "1", "PYTHONPATH": path}
    if arguments.device == "cpu":
        # Blocks of the prefix cache as small as on a GPU, nearly: with the 128 tokens that it takes on a CPU, a group shares less.
        flags += ["--enforce-eager", "--block-size", "32"]
        # It would keep a core to its HTTP server alone, which srm-serve does not.
        variables["VLLM_CPU_NUM_OF_RESERVED_CPU"] = "0"
    return vllm_serve(Path(folder), scratch, *flags, python=arguments.vllm, **variables)


def _wait_for(url: str) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        try:
            httpx.get(f"{url}/health").raise_for_status()
            return
        except httpx.TransportError:
            time.sleep(0.2)
    sys.exit(f"serving: no server came up at {url}")


def _ask(url: str, load: Load, arguments: argparse.Namespace, *, count: int) -> tuple[float, list[float]]:
    """Seconds until the first `count` requests are answered, and their rewards. A client takes the next one when it has an answer."""

    async def main() -> tuple[float, list[float]]:
        rewards = [float("nan")] * count
        rest = iter(range(count))

        async def one(client: AsyncClient) -> None:
            for index in rest:
                scored = await client.score([load.prompts[index]], [load.responses[index]])
                rewards[index] = scored[0].reward

        async with AsyncClient(url, timeout=600) as client:
            started = time.perf_counter()
            await asyncio.gather(*(one(client) for _ in range(min(arguments.clients, count))))
            return time.perf_counter() - started, rewards

    return asyncio.run(main())


def _check(server: str, load: Load, answer: tuple[float, list[float]]) -> float:
    """The largest error of a reward, as a share of the spread; ends the benchmark where it is more than rounding."""
    _, rewards = answer
    spread = statistics.pstdev(load.expected)
    errors = [abs(got - want) / spread for got, want in zip(rewards, load.expected, strict=False)]
    # Not their maximum, which may pass over a NaN.
    for error in errors:
        if not error <= TOLERANCE:
            sys.exit(f"serving: {server}, {load.name}: a reward is off by {error:.2g} of the spread; nothing is reported")
    return max(errors)


def _rounds(urls: dict[str, str], loads: list[Load], arguments: argparse.Namespace, began: float) -> dict[str, list[dict[str, Any]]]:
    """Of each load, for every round, each server's seconds and its largest error."""
    rounds: dict[str, list[dict[str, Any]]] = {load.name: [] for load in loads}
    for number in range(arguments.rounds):
        started = time.monotonic()
        for load in loads:
            counts: dict[str, int] = {}
            seconds: dict[str, float] = {}
            errors: dict[str, float] = {}
            # Who comes first changes from round to round.
            for server in list(urls)[:: -1 if number % 2 else 1]:
                counts[server] = min(len(load.prompts), arguments.plain) if server == PLAIN else len(load.prompts)
                if server == VLLM:
                    httpx.post(f"{urls[server]}/reset_prefix_cache").raise_for_status()
                answer = _ask(urls[server], load, arguments, count=counts[server])
                seconds[server], errors[server] = answer[0], _check(server, load, answer)
                environment.say(f"round {number + 1}, {load.name}, {server}: {counts[server]} requests in {seconds[server]:.1f} s")
            rounds[load.name].append({"requests": counts, "seconds": seconds, "reward_error": errors})
        took = time.monotonic() - started
        if time.monotonic() - began + took > 60 * arguments.minutes:
            break
    return rounds


def _batches(url: str) -> float:
    """Mean rows of a batch since the server started."""
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    sums = dict(line.split() for line in lines if line.startswith(("srm_batch_rows_sum", "srm_batch_rows_count")))
    return round(float(sums["srm_batch_rows_sum"]) / float(sums["srm_batch_rows_count"]), 2)


def _summary(load: Load, rounds: list[dict[str, Any]]) -> dict[str, Any]:
    speeds = {server: [entry["requests"][server] / entry["seconds"][server] for entry in rounds] for server in rounds[0]["seconds"]}
    ratios = {server: [a / b for a, b in zip(speeds[BATCHING], of, strict=True)] for server, of in speeds.items() if server != BATCHING}
    return {
        "prompt_tokens": round(load.prompt_tokens, 1),
        "response_tokens": round(load.response_tokens, 1),
        "reward_spread": round(statistics.pstdev(load.expected), 6),
        "rounds": rounds,
        "requests_per_second": {server: round(statistics.median(values), 3) for server, values in speeds.items()},
        "batching_is_faster_by": {
            server: {"median": round(statistics.median(of), 3), "low": round(min(of), 3), "high": round(max(of), 3)}
            for server, of in ratios.items()
        },
    }


if __name__ == "__main__":
    main()
