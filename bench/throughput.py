"""How fast reward models train and score, ours beside its peers: same weights, same pairs, same truncation, in turn within one run.

    python bench/throughput.py --input pairs.jsonl.gz --json outputs/throughput.json --plot outputs/throughput.png

Without --input the pairs are generated, as long as real ones. Providers: our packing modes shared, packed and none, and shared-all-rows,
whose last layer runs on all rows; trl, its RewardTrainer as it comes, trl-grouped, the same with batches grouped by length, and
trl-grouped-no-checkpointing (training); hf-padded, AutoModelForSequenceClassification on single sequences sorted by length (scoring). All
must give the same rewards before anything is timed.

Every provider cuts all rows into its own batches. A spread of them, from small to large, is timed in turns, and the time of a token run
is scaled to the tokens that the provider runs in the whole epoch: random batches differ too much in padding to time a few and stop.

group scores many responses to one prompt; group-train runs both passes of the same rows, for the memory of their step.

The modes length (scoring) and length-train (both passes) ask what a token costs in packed rows of 4k to 64k tokens of equal sequences.
docs/throughput.md says what each number means. Training beside trl needs trl and greenlet.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import environment
import torch
from providers import OURS, Batch, Contender, Models, Rows, hf_padded, ours, ours_both_passes
from throughput_length import GROUP_TOKENS, length_contenders, length_summary
from throughput_plot import plot
from throughput_report import GROUP_MODES, print_result, summary
from timing import Peak, measure_peak, wait
from trainers import TRL, ours_trainer, trl_trainer
from turns import Turns, turns_by
from workloads import generated_groups, generated_pairs, read_pairs

from srm.memory import keep_freed_memory

PROVIDERS = (*OURS, *TRL, "hf-padded")
MODES = {"train": (*OURS, *TRL), "score": (*OURS, "hf-padded"), "group": (*OURS, "hf-padded"), "group-train": tuple(OURS)}
DEFAULT_MODES = ("train", "score", "group")
LENGTH_MODES = ("length", "length-train")
# Share of the time limit. A step of training is the slowest thing here.
SHARE = {"train": 0.6, "score": 0.2, "group": 0.2, "group-train": 0.4, "length": 0.2, "length-train": 0.6}
# Difference of two rewards that is rounding, as a share of their spread over responses, by the dtype of the weights.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.15}


def main(argv: Sequence[str] | None = None) -> None:
    arguments = _arguments(argv)
    device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if arguments.device == "auto" else arguments.device)
    if device.type == "cpu":
        # For all providers: what a system takes for fresh pages says nothing about them, and differs between systems.
        keep_freed_memory()
    torch.manual_seed(0)
    arguments.pass_size = arguments.pass_size or arguments.batch_size
    if arguments.batch_size % arguments.pass_size:
        sys.exit(f"throughput: --batch_size {arguments.batch_size} is not a multiple of --pass_size {arguments.pass_size}")
    models = Models(arguments.model, dtype=getattr(torch, arguments.dtype), device=device)
    environment.say(f"{arguments.model}, {models.num_weights / 1e6:.0f} M weights outside the embedding, {arguments.dtype}, {device}")
    result: dict[str, Any] = {
        **environment.describe(),
        "settings": environment.settings(arguments),
        "turns": turns_by(),
        "modes": {},
    }
    if arguments.resume:
        result |= _finished(arguments.json, result)
    product: list[float] = []
    skipped: list[str] = []
    left = [mode for mode in arguments.modes if mode not in result["modes"]]
    for mode in left:
        limit = 60 * arguments.minutes * SHARE[mode] / sum(SHARE[m] for m in left)
        measure = _measure_lengths if mode in LENGTH_MODES else _measure
        try:
            result["modes"][mode] = measure(mode, arguments, models, limit, product)
        except torch.OutOfMemoryError:
            skipped.append(mode)
            environment.say(f"{mode}: out of GPU memory; the other modes go on")
            continue
        result["attention"] = models.attention
        result["product_tflops"] = float(f"{statistics.median(product) / 1e12:.4g}")
        # After every mode: the next one may be stopped.
        environment.write(arguments.json, result)
    if result["modes"]:
        print_result(result)
        if arguments.plot:
            plot(result, arguments.plot)
    if skipped:
        sys.exit(f"throughput: out of GPU memory in {', '.join(skipped)}; try a smaller --batch_size, --pass_size or --tokens_per_batch")


def _finished(path: Path | None, result: dict[str, Any]) -> dict[str, Any]:
    """What an earlier run measured with the same settings, but for which modes it was asked for and how much time it had."""
    found = environment.read_as_here(path)

    def settings(of: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in of.get("settings", {}).items() if name not in ("minutes", "modes", "resume")}

    kept = {name: found[name] for name in ("modes", "attention", "product_tflops") if name in found}
    return kept if settings(found) == settings(result) else {}


def _measure(mode: str, arguments: argparse.Namespace, models: Models, limit: float, product: list[float]) -> dict[str, Any]:
    """All providers of `mode`, one beside the other."""
    rows = _rows(mode, arguments, models)
    with _contenders(mode, rows, arguments, models) as (contenders, chosen):
        errors = _check(mode, models, contenders, rows[: arguments.check])
        rounds, peaks = _time(mode, models, contenders, chosen, limit, product)
    operations = (6 if "train" in mode else 2) * models.num_weights
    return summary(mode, contenders, rounds, peaks, rows, operations=operations, product=statistics.median(product), errors=errors)


def _measure_lengths(mode: str, arguments: argparse.Namespace, models: Models, limit: float, product: list[float]) -> dict[str, Any]:
    """Our model on rows of each length in turn."""
    contenders = length_contenders(models, arguments.lengths, backward=mode == "length-train")
    rows = {length: contender.batches[0] for length, contender in contenders.items()}
    shortest = next(iter(rows.values()))
    errors = _check(mode, models, {"shared": next(iter(contenders.values()))}, shortest.items[: arguments.check])
    chosen = {length: [row] * (1 + arguments.rounds) for length, row in rows.items()}
    rounds, peaks = _time(mode, models, contenders, chosen, limit, product)
    operations = (6 if mode == "length-train" else 2) * models.num_weights
    return length_summary(rounds, peaks, operations=operations, product=statistics.median(product), errors=errors)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = environment.parser(__doc__)
    listed = {"type": lambda text: text.split(",")}
    parser.add_argument(
        "--providers",
        **listed,
        help=f"comma-separated: {','.join(PROVIDERS)} (default: all; trl's where trl and greenlet are installed)",
    )
    modes = (*MODES, *LENGTH_MODES)
    parser.add_argument(
        "--modes",
        **listed,
        default=list(DEFAULT_MODES),
        help=f"comma-separated: {','.join(modes)} (default: {','.join(DEFAULT_MODES)})",
    )
    parser.add_argument("--model", default="smollm2-135m", help="name, folder, random-llama-1b or random-tiny (default: %(default)s)")
    parser.add_argument("--input", help="pairs in any form that srm-train reads; generated ones where it is not given")
    parser.add_argument("--pairs", type=int, default=512, help="rows in the epoch that batches are drawn from (default: %(default)s)")
    parser.add_argument("--max_length", type=int, default=1024)
    parser.add_argument("--batch_size", type=int, default=8, help="pairs in a training step (default: %(default)s)")
    parser.add_argument("--pass_size", type=int, help="pairs of one forward pass of our trainer (default: --batch_size)")
    parser.add_argument("--tokens_per_batch", type=int, default=8192, help="tokens of a scoring batch (default: %(default)s)")
    parser.add_argument("--group", default="16x256x1024", help="responses x their mean tokens x prompt tokens (default: %(default)s)")
    parser.add_argument(
        "--lengths",
        type=lambda text: sorted(map(int, text.split(","))),
        default=[4096 << i for i in range(5)],
        help=f"tokens of the rows of the length modes, multiples of {GROUP_TOKENS} (default: 4096 to 65536, each twice the last)",
    )
    parser.add_argument("--rounds", type=int, default=4, help="timed batches of each provider and mode at most (default: %(default)s)")
    parser.add_argument(
        "--minutes", type=float, default=14, help="stop rounds, after the second, when this is used up (default: %(default)s)"
    )
    parser.add_argument("--check", type=int, default=4, help="rows on which rewards are compared (default: %(default)s)")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16", help="of the weights (default: %(default)s)")
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--resume", action="store_true", help="keep the modes that --json has already from the same command, code and device"
    )
    parser.add_argument("--plot", type=Path, help="file of a picture")
    arguments = parser.parse_args(argv)
    missing = [name for name in ("trl", "greenlet") if importlib.util.find_spec(name) is None]
    if arguments.providers is None:
        arguments.providers = [name for name in PROVIDERS if not missing or name not in TRL]
        if missing and "train" in arguments.modes:
            environment.say(f"{' and '.join(missing)} not installed: training beside trl is left out")
    elif missing and set(TRL) & set(arguments.providers):
        parser.error(f"--providers: trl's trainers need {' and '.join(missing)}: run `pip install {' '.join(missing)}`")
    for name, known in (("providers", PROVIDERS), ("modes", modes)):
        if unknown := set(getattr(arguments, name)) - set(known):
            parser.error(f"--{name}: {', '.join(sorted(unknown))} is unknown, choose from {', '.join(known)}")
    if "shared" not in arguments.providers:
        parser.error("--providers needs `shared`, which all others are compared with")
    if any(length < 1 or length % GROUP_TOKENS for length in arguments.lengths):
        parser.error(f"--lengths: {', '.join(map(str, arguments.lengths))} are not all multiples of {GROUP_TOKENS}")
    arguments.modes.sort(key=modes.index)
    return arguments


def _rows(mode: str, arguments: argparse.Namespace, models: Models) -> Rows:
    vocabulary = models.config.vocab_size
    if mode in GROUP_MODES:
        size, response, prompt = map(int, arguments.group.split("x"))
        return generated_groups(max(arguments.rounds, 4), size=size, prompt=prompt, response=response, vocabulary=vocabulary)
    if arguments.input is None:
        return generated_pairs(arguments.pairs, vocabulary=vocabulary, max_length=arguments.max_length)
    encoder = models.reward_model(models.backbone).encoder
    return read_pairs(arguments.input, encoder, count=arguments.pairs, max_length=arguments.max_length)


@contextmanager
def _contenders(
    mode: str, rows: Rows, arguments: argparse.Namespace, models: Models
) -> Iterator[tuple[dict[str, Contender], dict[str, list[Batch]]]]:
    """The providers of `mode`, and the batches each will run, the first of them as a warm-up."""
    contenders: dict[str, Contender] = {}
    chosen: dict[str, list[Batch]] = {}
    running: list[Turns] = []

    def choose(batches: list[Batch]) -> list[Batch]:
        return spread(batches, arguments.rounds)

    for name in (provider for provider in MODES[mode] if provider in arguments.providers):
        if mode == "train":
            common = {"batch_size": arguments.batch_size, "choose": choose}
            made = (
                trl_trainer(models, rows, provider=name, **common)
                if name in TRL
                else ours_trainer(models, rows, provider=name, pass_size=arguments.pass_size, **common)
            )
            contenders[name], chosen[name], turn = made
            running.append(turn)
            continue
        budget = arguments.tokens_per_batch
        if name == "hf-padded":
            contenders[name] = hf_padded(models, rows, budget=budget)
        else:
            make = ours_both_passes if mode == "group-train" else ours
            contenders[name] = make(models, rows, provider=name, budget=budget)
        chosen[name] = choose(contenders[name].batches)
    try:
        yield contenders, chosen
    finally:
        for turn in running:
            turn.close()


def spread(batches: Sequence[Batch], count: int) -> list[Batch]:
    """The largest batch to warm up on, so that no timed batch is the first to use its memory; then `count` from small to large at even
    ranks, those in the middle first."""
    ranked = sorted(batches, key=lambda batch: batch.tokens)
    ranks = sorted((0.5 + i) / count for i in range(count))
    return [ranked[-1], *(ranked[int(rank * len(ranked))] for rank in sorted(ranks, key=lambda rank: abs(rank - 0.5)))]


def _check(mode: str, models: Models, contenders: dict[str, Contender], rows: Rows) -> dict[str, float]:
    """Each provider's largest difference from the peer in fp32, one by one, as a share of the spread of rewards."""
    expected = models.reference(rows)
    # What the peer itself loses to rounding, which is more in a larger model and where rewards are near each other.
    usual = float((models.reference(rows, models.backbone.dtype) - expected).abs().max() / expected.std())
    tolerance = max(TOLERANCE[models.backbone.dtype], 2 * usual)
    errors = {name: float((c.rewards(rows) - expected).abs().max() / expected.std()) for name, c in contenders.items()}
    for name, error in errors.items():
        if not error <= tolerance:
            sys.exit(
                f"throughput: {mode}: {name} gives other rewards, off by {error:.3g} of their spread, where rounding is at most "
                f"{tolerance:.3g}; nothing is timed"
            )
    environment.say(f"{mode}: same rewards, off by at most {max(errors.values()):.1e} of their spread, the peer by {usual:.1e}")
    return errors


def _time(
    mode: str, models: Models, contenders: dict[str, Contender], chosen: dict[str, list[Batch]], limit: float, product: list[float]
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, float | None]]:
    """Seconds and tokens of each timed batch, by provider, and the peak gigabytes of the warm-up's; all providers run once a round."""
    start = time.monotonic()
    names = list(contenders)
    measured: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    peaks: dict[str, float | None] = {}
    rounds = min(map(len, chosen.values()))
    for i in range(rounds):
        began = time.monotonic()
        for name in names[i % len(names) :] + names[: i % len(names)]:
            if i == 0:
                gc.collect()  # or garbage from before counts as held
            with measure_peak(models.device) if i == 0 else nullcontext(Peak()) as peak:
                record = _run(models.device, contenders[name], chosen[name][i])
            environment.say(
                f"{mode} {'warm-up' if i == 0 else f'{i}/{rounds - 1}'}  {name:28} {record['tokens']:7} tokens {record['seconds']:7.2f} s"
            )
            if i:
                measured[name].append(record)
            else:
                peaks[name] = peak.gigabytes
        product.append(_product(models))
        now = time.monotonic()
        if i >= 2 and now - start + (now - began) > limit:
            break
    return measured, peaks


def _run(device: torch.device, contender: Contender, batch: Batch) -> dict[str, Any]:
    """One timed batch."""
    seen: list[int] = []

    def count(module: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        seen.append((args[0] if args else kwargs["input_ids"]).numel())

    hook = contender.backbone.register_forward_pre_hook(count, with_kwargs=True)
    wait(device)
    start = time.perf_counter()
    contender.run(batch)
    wait(device)
    seconds = time.perf_counter() - start
    hook.remove()
    assert sum(seen) == batch.tokens, f"{sum(seen)} tokens went through the backbone, and {batch.tokens} were claimed"
    return {"seconds": seconds, "tokens": batch.tokens, "real_tokens": batch.real_tokens}


def _product(models: Models) -> float:
    """Floating-point operations a second of the model's widest product in bf16, the median of five."""
    text = models.config.get_text_config()
    # On a GPU 2,048 rows would be over before the host has looked at its clock.
    rows = 32_768 if models.device.type == "cuda" else 2048
    inner, outer = text.hidden_size, text.intermediate_size
    left = torch.randn(rows, inner, device=models.device, dtype=torch.bfloat16)
    right = torch.randn(outer, inner, device=models.device, dtype=torch.bfloat16)
    times = []
    for _ in range(6):
        wait(models.device)
        start = time.perf_counter()
        torch.nn.functional.linear(left, right)
        wait(models.device)
        times.append(time.perf_counter() - start)
    return 2 * rows * inner * outer / statistics.median(times[1:])


if __name__ == "__main__":
    main()
