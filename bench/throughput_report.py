"""What bench/throughput.py makes of the batches that it timed: speeds, ratios, use of the device, and the table."""

from __future__ import annotations

import statistics
from typing import Any

from providers import Contender, Rows
from throughput_length import print_lengths
from workloads import real_tokens

__all__ = ["GROUP_MODES", "print_result", "summary"]

GROUP_MODES = ("group", "group-train")


def summary(
    mode: str,
    contenders: dict[str, Contender],
    rounds: dict[str, list[dict[str, Any]]],
    peaks: dict[str, float | None],
    rows: Rows,
    *,
    operations: float,
    product: float,
    errors: dict[str, float],
) -> dict[str, Any]:
    """What came out, for each provider and against `shared`.

    operations: floating-point operations of a token. product: those of a second that the device can do.
    """
    unit = "responses" if mode in GROUP_MODES else "pairs"
    providers: dict[str, Any] = {}
    per_unit: dict[str, list[float]] = {}
    tokens_per_unit: dict[str, float] = {}
    for name, contender in contenders.items():
        real = sum(batch.real_tokens for batch in contender.batches)
        run = sum(batch.tokens for batch in contender.batches)
        # Batches that do not fill up are left out in training, so an epoch is counted in real tokens.
        real_per_unit = _real_tokens_per_unit(mode, rows)
        tokens_per_unit[name] = run / real * real_per_unit
        per_token = [record["seconds"] / record["tokens"] for record in rounds[name]]
        per_unit[name] = [seconds * tokens_per_unit[name] for seconds in per_token]
        seconds = statistics.median(per_unit[name])
        providers[name] = {
            f"{unit}_per_second": 1 / seconds,
            "real_tokens_per_second": real_per_unit / seconds,
            "tokens_run_per_real_token": run / real,
            "utilisation": operations / statistics.median(per_token) / product,
            "peak_gb": peaks[name],
            "reward_error": errors[name],
            "note": contender.note,
            "rounds": rounds[name],
        }
    return {"unit": unit, "providers": providers, "shared_against": _ratios(per_unit, tokens_per_unit)}


def _real_tokens_per_unit(mode: str, rows: Rows) -> float:
    return real_tokens(rows) / (sum(len(row.responses) for row in rows) if mode in GROUP_MODES else len(rows))


def _ratios(per_unit: dict[str, list[float]], tokens_per_unit: dict[str, float]) -> dict[str, Any]:
    """How many times as fast `shared` is, round by round, beside what the tokens run alone would make of it."""
    ratios = {}
    for name in per_unit.keys() - {"shared"}:
        by_round = [theirs / ours for theirs, ours in zip(per_unit[name], per_unit["shared"], strict=True)]
        ratio, ideal = statistics.median(by_round), tokens_per_unit[name] / tokens_per_unit["shared"]
        ratios[name] = {"ratio": ratio, "low": min(by_round), "high": max(by_round), "ideal": ideal, "share_of_ideal": ratio / ideal}
    return {name: ratios[name] for name in per_unit if name in ratios}


def print_result(result: dict[str, Any]) -> None:
    """The table of each mode."""
    attention = f"; packed attention {result['attention']}" if result.get("attention") else ""
    print(f"\n{result['device']}, {result['threads']} threads; bf16 product {result['product_tflops']:.3g} TFLOP/s{attention}")
    for mode, found in result["modes"].items():
        if "lengths" in found:
            print_lengths(mode, found)
            continue
        print(f"\n{mode:28} {found['unit'] + '/s':>12} {'real tok/s':>11} {'run/real':>9} {'use':>5} {'peak GB':>8}  shared is faster by")
        for name, row in found["providers"].items():
            peak = "-" if row["peak_gb"] is None else f"{row['peak_gb']:.2f}"
            against = found["shared_against"].get(name)
            ratio = f"{against['ratio']:.2f} ({against['low']:.2f}-{against['high']:.2f}), ideal {against['ideal']:.2f}" if against else ""
            print(
                f"{name:28} {row[found['unit'] + '_per_second']:12.3f} {row['real_tokens_per_second']:11.0f} "
                f"{row['tokens_run_per_real_token']:9.2f} {row['utilisation']:5.0%} {peak:>8}  {ratio}"
            )
            if row["note"]:
                print(f"{'':28} {row['note']}")
