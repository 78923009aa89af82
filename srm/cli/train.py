"""srm-train: train a sentence-level reward model on preference pairs.

srm-train --model_name_or_path smollm2-135m --dataset_name pairs.jsonl --output_dir outputs/reward
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from srm.cli.common import run, say
from srm.errors import UserError

if TYPE_CHECKING:
    from torch import nn

    from srm.data import EncodedComparison
    from srm.modeling import SentenceRewardModel
    from srm.training import DataArguments, ModelArguments, RewardConfig

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code for the shell."""
    return run(train, argv, name="srm-train", needs=["transformers"])


def train(argv: Sequence[str]) -> int:
    """Train as `argv` says.

    Returns:
        The exit code.

    Raises:
        UserError: settings, data or a run that the user has to mend.
    """
    from srm.runs.settings import environment_of
    from srm.training.arguments import split_launch_settings
    from srm.training.launch import launch, launched_by

    missing = {name: value for name, value in environment_of(argv).items() if os.environ.get(name) != value}
    os.environ.update(missing)
    launcher, argv = split_launch_settings(argv)
    if launcher and launched_by() is None:
        return launch(launcher, argv)
    if missing:
        # Some are read when a library is imported, which has happened.
        sys.stdout.flush()
        os.execv(sys.executable, [sys.executable, "-m", "srm.cli.train", *argv])
    if launcher and launched_by() == "another" and os.environ.get("RANK", "0") == "0":
        say(f"{' '.join(launcher)}: not followed, because this process was started by a launcher already")
    _train_here(argv)
    return 0


def _train_here(argv: Sequence[str]) -> None:
    from srm.runs.lock import hold_together
    from srm.runs.places import check_folder
    from srm.training.arguments import parse_arguments

    model_arguments, data_arguments, config = parse_arguments(argv)
    models = {"--model_name_or_path": model_arguments.model_name_or_path, "--chat_template_path": model_arguments.chat_template_path}
    check_folder("--output_dir", config.output_dir, data=data_arguments.read(), models=models, whole=True)
    with hold_together(config.output_dir, writes=config.should_save):
        _train(model_arguments, data_arguments, config)


def _train(model_arguments: ModelArguments, data_arguments: DataArguments, config: RewardConfig) -> None:
    from srm.runs.folders import claim
    from srm.training.without_effect import without_effect

    tell = say if config.process_index == 0 else lambda line: None
    _warn_of_lone_process()
    for line in without_effect(model_arguments, data_arguments, config):
        tell(line)
    # Before data and models are loaded, which may take long.
    checkpoint = claim(
        str(config.output_dir),
        config.resume_from_checkpoint,
        overwrite=config.overwrite_output_dir,
        writes=config.should_save,
        wait=config.distributed_state.wait_for_everyone,
    )
    if checkpoint is not None:
        tell(f"resuming from {checkpoint}")
    elif config.resume_from_checkpoint is not None:
        tell(f"no checkpoint in {config.output_dir} yet: starting at step 0")

    from transformers import EarlyStoppingCallback, PrinterCallback, ProgressCallback, set_seed

    from srm.cli.progress import StepBar, StepLines
    from srm.cli.terminal import Terminal
    from srm.data.sources import what_is_read
    from srm.memory import keep_freed_memory
    from srm.training.build import build_model
    from srm.training.early import check_early
    from srm.training.load_rows import encode_rows, read_rows
    from srm.training.provenance import AtFirstStep, changes_since, earlier_data, write_record
    from srm.training.trainer import SentenceRewardTrainer, reward_model_of

    settings = (model_arguments, data_arguments, config)
    check_early(*settings)
    train_comparisons, eval_comparisons = read_rows(data_arguments, config)
    for source, split in _splits_read(data_arguments, evaluates=eval_comparisons is not None):
        if (read := what_is_read(source, split)) is not None:
            tell(read)
    if config.device.type == "cpu":
        keep_freed_memory()
    # The head and a boundary token's row begin at random: the same in every run with this seed, and in every process.
    set_seed(config.seed)
    with config.main_process_first(desc="loading the model"):
        model = build_model(model_arguments, config)
    encoding = (data_arguments, config, reward_model_of(model), tell)
    train_rows = encode_rows(train_comparisons, "training", *encoding)
    eval_rows = None if eval_comparisons is None else encode_rows(eval_comparisons, "evaluation", *encoding)
    if checkpoint is not None:
        for change in changes_since(settings, train_rows):
            tell(f"not as when this run began: {change}")
    earlier = [] if checkpoint is None else earlier_data(settings, train_rows)
    config.distributed_state.wait_for_everyone()
    at_first_step = []
    if config.should_save and checkpoint is None:
        write_record(settings, train_rows)
    elif config.should_save:
        # The checkpoint may be refused: until it has loaded, the record is that of the run that wrote it.
        at_first_step = [AtFirstStep(lambda: write_record(settings, train_rows))]
    patience = config.early_stopping_patience
    bar = StepBar(Terminal(soft_wrap=True), bar=not config.disable_tqdm and config.process_index == 0)
    stopping = [EarlyStoppingCallback(patience)] if patience is not None else []
    try:
        trainer = SentenceRewardTrainer(
            model,
            config,
            train_dataset=train_rows,
            eval_dataset=eval_rows,
            callbacks=[StepLines(bar), *at_first_step, *stopping],
        )
    except (ImportError, RuntimeError, ValueError) as error:
        # A service of --report_to or a package of --optim that is not there, or settings that Trainer does not take together.
        raise UserError(str(error)) from error
    trainer.data_name = data_arguments.title
    trainer.earlier_data = earlier
    # `claim` has looked.
    trainer.own(config.output_dir)
    # Theirs print a dict a step, which is to be had, too.
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    if config.log_level == "debug":
        trainer.add_callback(PrinterCallback)
    compiled = f"; the backbone compiled with {trainer.compiled_with}" if trainer.compiled_with else ""
    tell(_model_line(trainer.model) + compiled)
    for line in _packing_lines(config, reward_model_of(model), train_rows):
        tell(line)
    with bar:
        metrics = dict(trainer.train(resume_from_checkpoint=checkpoint).metrics)
        if eval_rows is not None:
            metrics |= trainer.evaluate()
    if trainer.is_idle:
        done = trainer.state.global_step
        tell(
            f"nothing is left to do: {done} of {trainer.state.max_steps} steps are done. Raise --max_steps or --num_train_epochs to go on."
        )
    trainer.save_model()
    trainer.save_state()
    tell(", ".join(f"{name} {value:.4g}" for name, value in metrics.items() if isinstance(value, float) and _is_final(name)))
    tell(f"model saved to {config.output_dir}")
    trainer.accelerator.end_training()


def _splits_read(data: DataArguments, *, evaluates: bool) -> Iterator[tuple[str, str]]:
    """Sources, each with the split that is read of it."""
    if data.parts:
        yield from ((part.path, part.split) for part in data.parts if part.is_plain)
    else:
        yield str(data.dataset_name), data.dataset_train_split
    if evaluates and data.test_split_size is None:
        yield data.eval_dataset_name or str(data.dataset_name), data.dataset_test_split


def _is_final(name: str) -> bool:
    """Whether a metric belongs into the last line."""
    return name in ("train_loss", "train_runtime") or name.removeprefix("eval_") in ("loss", "accuracy", "margin")


def _warn_of_lone_process() -> None:
    """`accelerate launch --cpu --num_processes 2` sets an address to meet at, and starts one process all the same."""
    from srm.training.launch import WORLD_SIZES

    launched = os.environ.get("ACCELERATE_USE_CPU") == "True" and "MASTER_ADDR" in os.environ
    if launched and not any(name in os.environ for name in WORLD_SIZES):
        print(
            "srm-train: accelerate launch --cpu has started one process only. For several, on CPUs too: srm-train --num_processes N ...",
            file=sys.stderr,
        )


def _model_line(model: nn.Module) -> str:
    weights = list(model.parameters())
    total, trained = sum(weight.numel() for weight in weights), sum(weight.numel() for weight in weights if weight.requires_grad)
    return f"model: {total:,} weights, {trained:,} of them trained"


def _packing_lines(config: RewardConfig, model: SentenceRewardModel, rows: list[EncodedComparison]) -> Iterator[str]:
    """Which attention runs, and what an epoch costs in tokens."""
    import torch

    from srm.packing import enable, report

    packed = sum(len(row.prompt_ids) + len(response.ids) for row in rows for response in row.responses)
    if config.packing == "none":
        yield f"packing none: {packed:,} tokens an epoch, and padding"
        yield report(model.backbone).last_layer
        return
    shared = sum(row.num_tokens for row in rows)
    repeated = f", not {packed:,}: each prompt runs once" if config.packing == "shared" else ""
    yield f"packing {config.packing}: {packed if config.packing == 'packed' else shared:,} tokens an epoch{repeated}"
    enable(model.backbone)
    # The model is not on its device yet, and autocast decides what attention computes in.
    dtype = torch.bfloat16 if config.bf16 else torch.float16 if config.fp16 else None
    attention = report(model.backbone, device=config.device, dtype=dtype)
    yield attention.last_layer
    yield f"attention: {attention.backend} in {attention.dtype} on {attention.device}: {attention.reason}"


if __name__ == "__main__":
    sys.exit(main())
