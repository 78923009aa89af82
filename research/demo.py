"""Run `make demo` on several seeds, each in a process of its own, and write down what each reached.

    python -m research.demo --seeds 0 1 2 3 4 --json research/results/demo_cpu.json

A seed that --output_dir has a report of is not run again. Needs the demo's backbone and seven minutes a seed on two cores.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench import environment
from research.commands import run_command


def main() -> None:
    parser = environment.parser(__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--num_pairs", type=int, help="pairs to train on; the demo's own number where not set")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/demo_seeds"), help="a folder a seed: pairs, model, report")
    arguments = parser.parse_args()
    result = environment.describe()
    result["runs"] = runs = []
    for seed in arguments.seeds:
        runs.append(_run(seed, arguments.num_pairs, arguments.output_dir / str(seed)))
        after = runs[-1]["after"]
        auc = after["credit"]["overall"]["auc"]
        print(f"seed {seed}: accuracy {after['accuracy']:.3f}, credit AUC {auc:.3f}, {runs[-1]['seconds'] / 60:.1f} minutes", flush=True)
        # After every seed: the next one may be stopped.
        environment.write(arguments.json, result)


def _run(seed: int, num_pairs: int | None, folder: Path) -> dict[str, Any]:
    file = folder / "demo.json"
    # The demo writes what it reached last.
    if "after" not in (_read(file) if file.exists() else {}):
        folder.mkdir(parents=True, exist_ok=True)
        pairs = [] if num_pairs is None else ["--num_pairs", str(num_pairs)]
        run_command(["srm-demo", "--seed", str(seed), "--output_dir", str(folder), *pairs], folder / "demo.log")
    report = _read(file)
    del report["settings"]["output_dir"]
    return report


def _read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
