"""The step before: the backbone fine-tuned with `trl sft` on the chosen answers of the training pairs, for every variant alike."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

from srm.errors import UserError
from srm.extras import way_to_install
from srm.modeling.alias import resolve_model_name

__all__ = ["fine_tuned"]

# As every study, this one runs in the root of the repository.
_EXAMPLES = Path("examples")
# The authors', as in examples/paper.sh.
_SETTINGS = (
    "--learning_rate 3e-6 --weight_decay 0.2 --lr_scheduler_type cosine --num_train_epochs 1 --per_device_train_batch_size 8 "
    "--gradient_accumulation_steps 32 --seed 1234 --save_strategy no --report_to none"
)


def fine_tuned(model: str, pairs: Path, folder: Path, *, max_length: int, on_cpu: bool) -> Path:
    """The folder under `folder` with `model` after the step; one that is there already is kept.

    Args:
        model: a name or folder, as srm-train takes it.
        pairs: the training pairs.
        folder: of the comparison.
        max_length: longer rows are cut.
        on_cpu: there is no accelerator.

    Raises:
        UserError: trl is not installed.
    """
    home = folder / "sft"
    if (home / "done.json").exists():
        return home / "model"
    if find_spec("trl") is None:
        raise UserError(f"--sft: {way_to_install('trl')}")
    command = [
        *("sft", "--model_name_or_path", resolve_model_name(model), "--dataset_name", str(home / "chosen")),
        *("--output_dir", str(home / "model"), "--chat_template_path", str(_EXAMPLES / "configs" / "paper.jinja")),
        *("--max_length", str(max_length), *shlex.split(_SETTINGS), *(("--use_cpu", "--bf16", "false") if on_cpu else ())),
    ]
    start = time.monotonic()
    _run([str(_EXAMPLES / "chosen_answers.py"), str(pairs), str(home / "chosen" / "train.jsonl")], home / "chosen.log")
    # `python -m trl.cli.main` would import that module twice.
    _run(["-c", "import sys; from trl.cli import main; sys.exit(main())", *command], home / "sft.log")
    done = {"command": shlex.join(["trl", *command]), "seconds": round(time.monotonic() - start, 1)}
    (home / "done.json").write_text(json.dumps(done, indent=2) + "\n", encoding="utf-8")
    return home / "model"


def _run(words: list[str], log: Path) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as file:
        code = subprocess.run([sys.executable, *words], stdout=file, stderr=file, check=False).returncode
    if code:
        sys.exit(f"research.claim.compare: --sft failed with exit code {code}; its output is in {log}")
