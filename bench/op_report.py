"""The table, the plots and the verdict on targets, from the JSON of bench/ops.py."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from op_cases import COMPILED, EAGER, OURS
from op_graphs import name_of

__all__ = ["plot", "problems", "progress", "table", "targets"]

Result = dict[str, Any]
FULL = "full sequence {}, eager"
LOOP = "Python loop"
GRAPHS = (name_of(OURS), name_of(COMPILED))


def table(result: Result) -> Iterator[str]:
    """Markdown: what was measured on what, the targets, one row for each op, size and mode."""
    if result["smoke"]:
        yield f"**Smoke run on a CPU ({result['ours']}, torch.compile with {result['torch_compile']}): the times mean nothing.**\n"
    packages = ", ".join(f"{name} {version}" for name, version in result["packages"].items() if name in ("torch", "triton"))
    yield f"{result['device']}, {packages}, commit {result['commit']}, {result['time']}."
    yield f"Copy bandwidth {result['copy_gb_per_s']:.0f} GB/s. Lengths: {result['lengths']}. Milliseconds are medians (p20 to p80).\n"
    yield "| target | measured | met |\n|---|---|---|"
    for target in result["targets"]:
        yield f"| {target['target']} | {target['measured']} | {target['met']} |"
    yield "\n| op | sizes | mode | ours, ms | host, ms | of copy | torch.compile | eager | best of the others | graph, ms | compiled |"
    yield "|---" * 11 + "|"
    for cell, mode, times in _measured(result):
        if OURS not in times:
            continue
        ours, others = times[OURS], {name: t for name, t in times.items() if name not in (OURS, COMPILED, EAGER, *GRAPHS)}
        best = min(others, key=lambda name: others[name]["median_ms"], default=None)
        span = f"{ours['median_ms']:.3g} ({ours['p20_ms']:.3g} to {ours['p80_ms']:.3g})"
        ratios = [_ratio(times.get(name), ours) for name in (COMPILED, EAGER)]
        last = f"{_ratio(others[best], ours)} {best}" if best else ""
        graph = times.get(GRAPHS[0])
        last += f" | {graph['median_ms']:.3g} | {_ratio(times.get(GRAPHS[1]), graph)}" if graph else " | |"
        figures = f"{span} | {ours['host_ms']:.3g} | {ours['share_of_copy']:.0%}"
        yield f"| {cell['op']} | {_sizes(cell)} | {mode} | {figures} | {' | '.join(ratios)} | {last} |"
    notes = [note for cell in result["cells"] for note in _notes(cell)]
    if notes:
        yield "\nNot timed:\n" + "\n".join(f"- {note}" for note in dict.fromkeys(notes))


def targets(result: Result) -> list[dict[str, str]]:
    """What was aimed for, what came out, and "yes", "no" or "not measured"."""
    cells = list(_measured(result))
    shares = {
        mode: [
            times[OURS]["share_of_copy"]
            for cell, at, times in cells
            if cell["op"] == "gather_boundaries" and at == mode and OURS in times and _past_l2(cell, result)
        ]
        for mode in ("forward", "backward")
    }
    heads = [times for cell, mode, times in cells if cell["op"] == "sentence_reward_head" and mode == "both"]
    gaes = [times for cell, mode, times in cells if cell["op"] == "packed_gae" and mode == "forward"]
    rows = [_least(f"gather_boundaries {m}: 85 % of copy (D >= 2048, rows past L2)", 0.85, s, "{:.0%}") for m, s in shares.items()]
    for dtype in ("fp32", "bf16"):
        speedups = _speedups(heads, FULL.format(dtype))
        rows.append(_least(f"head, forward and backward: 10x eager over the full sequence in {dtype}", 10, speedups, "{:.2g}x"))
    rows.append(_least("head, forward and backward: 2x torch.compile of the reference", 2, _speedups(heads, COMPILED), "{:.2g}x"))
    rows.append(_least("packed_gae, forward: 50x the Python loop", 50, _speedups(gaes, LOOP), "{:.2g}x"))
    rows.append(_least("packed_gae, forward: 2x torch.compile of the reference", 2, _speedups(gaes, COMPILED), "{:.2g}x"))
    rows.append(_never_slower(cells, "nothing slower than torch.compile, both as CUDA graphs", *GRAPHS))
    rows.append(_never_slower(cells, "nothing slower than torch.compile", OURS, COMPILED))
    return rows


def _never_slower(cells: list[tuple[Result, str, dict[str, Any]]], target: str, ours: str, other: str) -> dict[str, str]:
    compared = [(cell, mode, times[ours], times[other]) for cell, mode, times in cells if ours in times and other in times]
    if not compared:
        return {"target": target, "measured": "", "met": "not measured"}
    slower = [f"{cell['op']} {_sizes(cell)} {mode} {_ratio(b, a)}" for cell, mode, a, b in compared if a["median_ms"] > b["median_ms"]]
    return {"target": target, "measured": "; ".join(slower) or "nothing is", "met": "no" if slower else "yes"}


def problems(result: Result) -> list[str]:
    """What makes the run a failure: a wrong or failed provider, or no time of ours. What is not installed or too large is neither."""
    return [
        f"{cell['op']} {_sizes(cell)} {name}: {provider['problem']}"
        for cell in result["cells"]
        for name, provider in cell.get("providers", {}).items()
        if provider["problem"] and (name == OURS or not provider.get("left_out"))
    ]


def progress(cell: Result) -> str:
    """One line for each cell while the run goes on."""
    name = f"{cell['op']} {_sizes(cell)}"
    if "skipped" in cell:
        return f"{name}: not measured, {cell['skipped']}"
    both = {n: p["modes"].get("both", p["modes"]["forward"])["median_ms"] for n, p in cell["providers"].items() if "modes" in p}
    return "; ".join([f"{name}: " + ", ".join(f"{n} {ms:.3g} ms" for n, ms in both.items()), *_notes(cell)])


def plot(result: Result, stem: Path) -> list[Path]:
    """Two PNGs: the time of every provider at every size, a panel for each op; and the share of the copy bandwidth that ours reach."""
    try:
        import matplotlib
    except ImportError:
        print("no plots: matplotlib is not installed (pip install matplotlib)")
        return []
    matplotlib.use("Agg")
    from matplotlib import pyplot

    measured = list(_measured(result))
    ops = list(dict.fromkeys(cell["op"] for cell, _, _ in measured))
    if not ops:
        return []
    rows = -(-len(ops) // 3)
    caption = f"{result['device']}, commit {result['commit']}" + (" - smoke run on a CPU, means nothing" if result["smoke"] else "")
    paths = [stem.with_name(f"{stem.name}_{what}.png") for what in ("times", "bandwidth")]
    for path in paths:
        figure, axes = pyplot.subplots(rows, min(3, len(ops)), figsize=(6 * min(3, len(ops)), 4.5 * rows), squeeze=False)
        figure.suptitle(caption)
        for axis, op in zip(axes.flat, ops, strict=False):
            cells = [(cell, mode, times) for cell, mode, times in measured if cell["op"] == op]
            if path == paths[0]:
                mode = "both" if any(at == "both" for _, at, _ in cells) else "forward"
                bars = [(cell, times) for cell, at, times in cells if at == mode]
                axis.set_yscale("log")
                axis.set_title(f"{op}, {mode}: ms")
            else:
                bars = list(_shares(cells))
                axis.axhline(1, color="black", linewidth=0.5)
                axis.set_title(f"{op}: share of copy bandwidth")
            _bars(axis, bars)
        for axis in axes.flat[len(ops) :]:
            axis.set_visible(False)
        figure.tight_layout()
        figure.savefig(path, dpi=90)
        pyplot.close(figure)
    return paths


def _shares(cells: list[tuple[Result, str, dict[str, Any]]]) -> Iterator[tuple[Result, dict[str, Any]]]:
    """Cells with a bar for each mode of ours, its height the share instead of the time."""
    modes: dict[str, dict[str, Any]] = {}
    by_size = {_sizes(cell): cell for cell, _, _ in cells}
    for cell, mode, times in cells:
        if OURS in times:
            share = times[OURS]["share_of_copy"]
            modes.setdefault(_sizes(cell), {})[mode] = {"median_ms": share, "p20_ms": share, "p80_ms": share}
    yield from ((by_size[size], bars) for size, bars in modes.items())


def _bars(axis: Any, cells: list[tuple[Result, dict[str, Any]]]) -> None:
    names = list(dict.fromkeys(name for _, times in cells for name in times))
    for i, name in enumerate(names):
        places = [(x, times[name]) for x, (_, times) in enumerate(cells) if name in times]
        medians = [t["median_ms"] for _, t in places]
        spread = [[t["median_ms"] - t["p20_ms"] for _, t in places], [t["p80_ms"] - t["median_ms"] for _, t in places]]
        axis.bar([x + 0.8 * (i / len(names) - 0.5) for x, _ in places], medians, 0.8 / len(names), yerr=spread, label=name)
    axis.legend(fontsize=7)
    axis.set_xticks(range(len(cells)), [_sizes(cell) for cell, _ in cells], rotation=40, ha="right", fontsize=7)


def _measured(result: Result) -> Iterator[tuple[Result, str, dict[str, Any]]]:
    """Cell, mode, and timings by provider."""
    for cell in result["cells"]:
        timed = {name: provider["modes"] for name, provider in cell.get("providers", {}).items() if "modes" in provider}
        for mode in ("forward", "backward", "both"):
            times = {name: modes[mode] for name, modes in timed.items() if mode in modes}
            if times:
                yield cell, mode, times


def _past_l2(cell: Result, result: Result) -> bool:
    sizes = cell["sizes"]
    return sizes["D"] >= 2048 and sizes["N"] * sizes["D"] * 2 > (result["l2_bytes"] or float("inf"))


def _speedups(cells: list[dict[str, Any]], name: str) -> list[float]:
    return [times[name]["median_ms"] / times[OURS]["median_ms"] for times in cells if OURS in times and name in times]


def _least(target: str, wanted: float, values: list[float], form: str) -> dict[str, str]:
    if not values:
        return {"target": target, "measured": "", "met": "not measured"}
    measured = f"{form.format(min(values))} to {form.format(max(values))}"
    return {"target": target, "measured": measured, "met": "yes" if min(values) >= wanted else "no"}


def _ratio(other: Result | None, ours: Result) -> str:
    """How many times as long `other` takes."""
    return f"{other['median_ms'] / ours['median_ms']:.2f}x" if other else ""


def _sizes(cell: Result) -> str:
    # A cell that was skipped has no counts, only what it would have been made from.
    sizes = cell["sizes"] if "sizes" in cell else {"T": cell["num_tokens"], "width": cell["width"]}
    return " ".join(f"{name}={value}" for name, value in sizes.items())


def _notes(cell: Result) -> list[str]:
    if "skipped" in cell:
        return [f"{cell['op']} {_sizes(cell)}: {cell['skipped']}"]
    return [
        f"{cell['op']}{'' if 'not installed' in p['problem'] else ' ' + _sizes(cell)}, {name}: {p['problem']}"
        for name, p in cell["providers"].items()
        if p["problem"]
    ]
