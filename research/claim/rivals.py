"""Credit of the response-level models of `top_layers.py` by leaving one sentence out: srm-eval on the responses with marked errors.

    python -m research.claim.top_layers --data FOLDER --report --save_models outputs/top_layers/models
    python -m research.claim.rivals --models outputs/top_layers/models/response-* --json research/results/claim/rivals.json

The same command goes on where it stopped.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from bench import environment
from srm.cli.eval import main as srm_eval


def main() -> None:
    parser = environment.parser(__doc__)
    parser.add_argument("--models", nargs="+", required=True, help="folders of reward models")
    parser.add_argument("--rivals", nargs="+", default=["leave_one_out"], choices=("leave_one_out", "shapley"))
    parser.add_argument("--suite", default="outputs/top_layers/data/spans.jsonl", help="the responses that top_layers.py drew")
    parser.add_argument("--output_dir", default="outputs/top_layers/rivals")
    arguments = parser.parse_args()
    models = [f"{rival}:{folder}" for rival in arguments.rivals for folder in arguments.models]
    flags = ["--model", *models, "--suite", arguments.suite, "--output_dir", arguments.output_dir]
    code = srm_eval([*flags, "--overlong", "truncate_response"])
    if code:
        sys.exit(code)
    found = json.loads((Path(arguments.output_dir) / "results.json").read_text())
    environment.write(
        arguments.json,
        {**environment.describe(), "settings": environment.settings(arguments), "rows": found["rows"], "models": found["models"]},
    )


if __name__ == "__main__":
    main()
