"""The picture of bench/throughput.py, one panel a mode: real tokens a second of every provider, or a token's cost by the row's length."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from providers import OURS

__all__ = ["plot"]


def plot(result: dict[str, Any], path: Path) -> None:
    """Write `path` (PNG) from the dictionary that bench/throughput.py writes as JSON."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    modes = result["modes"]
    figure, axes = plt.subplots(1, len(modes), figsize=(4.2 * len(modes), 3.4), squeeze=False)
    for axis, (mode, found) in zip(axes[0], modes.items(), strict=True):
        axis.set_title(mode)
        if "lengths" in found:
            _plot_lengths(axis, found["lengths"])
            continue
        names = list(found["providers"])
        speeds = [found["providers"][name]["real_tokens_per_second"] for name in names]
        bars = axis.bar(names, speeds, color=["#2a6f97" if name in OURS else "#bc6c25" for name in names])
        against = found["shared_against"]
        axis.bar_label(
            bars, fontsize=8, labels=["" if name not in against else f"shared is\n{against[name]['ratio']:.2f} times" for name in names]
        )
        axis.set_ylabel("real tokens / s")
        axis.tick_params(axis="x", rotation=30)
        axis.margins(y=0.2)
    title = f"{result['settings']['model']}, {result['settings']['dtype']}: {result['device']}"
    figure.suptitle(textwrap.fill(title, 56 * len(modes)), fontsize=8)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _plot_lengths(axis: Any, lengths: dict[str, Any]) -> None:
    axis.plot(list(lengths), [row["relative"] for row in lengths.values()], marker="o", color="#2a6f97")
    axis.fill_between(list(lengths), [row["low"] for row in lengths.values()], [row["high"] for row in lengths.values()], alpha=0.2)
    axis.axhspan(0.9, 1.1, color="#bc6c25", alpha=0.15)
    axis.set_xlabel("packed tokens")
    axis.set_ylabel("cost of a token, shortest row = 1")
    axis.tick_params(axis="x", rotation=30)
    axis.set_ylim(bottom=0)
