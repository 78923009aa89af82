"""srm-rl: train a policy on the rewards of a sentence-level reward model.

srm-rl --model_name_or_path smollm2-135m --reward_model_path outputs/reward --dataset_name prompts.jsonl --output_dir outputs/policy
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from srm.cli.common import run, say

if TYPE_CHECKING:
    from accelerate import Accelerator

    from srm.rl.arguments import RLConfig

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code for the shell."""
    return run(train, argv, name="srm-rl", needs=["transformers"])


def train(argv: Sequence[str]) -> None:
    """Train as `argv` says.

    Raises:
        UserError: settings, prompts, models or a run that the user has to mend.
    """
    from srm.rl.arguments import parse_rl_config

    config = parse_rl_config(argv)
    from srm.rl.build import make_accelerator
    from srm.runs.lock import hold_together
    from srm.runs.places import check_folder

    models = {"--model_name_or_path": config.model_name_or_path, "--reward_model_path": config.reward_model_path}
    check_folder("--output_dir", config.output_dir, data={"--dataset_name": config.dataset_name}, models=models, whole=True)
    accelerator = make_accelerator(config)
    with hold_together(config.output_dir, writes=accelerator.is_main_process):
        _train(config, accelerator)


def _train(config: RLConfig, accelerator: Accelerator) -> None:
    from srm.cli.progress import StepBar
    from srm.cli.terminal import Terminal
    from srm.memory import keep_freed_memory
    from srm.rl.build import build_trainer
    from srm.runs.folders import claim

    if accelerator.device.type == "cpu":
        keep_freed_memory()
    tell = say if accelerator.is_main_process else lambda line: None
    console = Terminal(quiet=not accelerator.is_main_process, soft_wrap=True)
    # Before models are loaded, which may take minutes.
    checkpoint = claim(
        config.output_dir,
        config.resume_from_checkpoint,
        overwrite=config.overwrite_output_dir,
        writes=accelerator.is_main_process,
        wait=accelerator.wait_for_everyone,
    )
    if checkpoint is not None:
        tell(f"resuming from {checkpoint}")
    elif config.resume_from_checkpoint is not None:
        tell(f"no checkpoint in {config.output_dir} yet: starting at step 0")
    bar = StepBar(console, config.max_steps)
    trainer = build_trainer(config, accelerator, checkpoint, on_step=partial(bar.show_rl, max_steps=config.max_steps), say=tell)
    # `claim` has looked.
    trainer.own()
    if checkpoint is not None:
        for change in trainer.folder.changes(checkpoint):
            tell(f"not as when this run began: {change}")
    with bar:
        trainer.train(checkpoint)
    tell(f"policy saved to {config.output_dir}, log in {trainer.folder.path / 'log.jsonl'}")
    accelerator.end_training()


if __name__ == "__main__":
    sys.exit(main())
