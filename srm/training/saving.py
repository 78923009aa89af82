"""transformers.Trainer with checkpoints and final models that appear whole or not at all (see checkpoints.py)."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainerState
from transformers.trainer import SCALER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, get_last_checkpoint

from srm.errors import UserError
from srm.modeling import SentenceRewardModel
from srm.modeling.adapter import check_adapter
from srm.modeling.card import CARD, TAGS, model_card
from srm.modeling.config import CODE_FILE
from srm.modeling.loading import one_line
from srm.runs.folders import delete_run, find_checkpoint, no_bar, publish_folder, publish_model, recover, rotate, staging, writing
from srm.runs.lock import hold_together
from srm.training.arguments import RewardConfig
from srm.training.card import training_facts
from srm.training.provenance import write_settings

__all__ = ["AtomicSavingTrainer"]

_SETTINGS_OF_THE_RUN = "Resume with the model settings of the run that wrote it (srm_train.yaml in its output directory)."
_GO_ON = "Free some, then go on with --resume_from_checkpoint true."


class AtomicSavingTrainer(Trainer):
    """Overrides of Trainer's saving that write under `.incomplete` and rename.

    Works through the directory that Trainer's own methods ask for, so that optimizer, scheduler, scaler, FSDP and DeepSpeed files
    are still written by them.
    """

    args: RewardConfig
    model: nn.Module
    reward_model: SentenceRewardModel
    # What the model card calls the training data.
    data_name: str | None = None
    # And the data that it was trained on before a resume, where that was other data.
    earlier_data: Sequence[str] = ()
    # With the steps that were done there.
    resumed_from: Path = Path()
    steps_before = 0
    # Where a checkpoint is being written, in place of the output directory.
    _staged_run: Path | None = None
    _push_later: str | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.add_callback(_StepsCallback(self))
        # With whether the settings are still to be written there, by which the next run knows the folder as one of ours.
        self._own: dict[Path, bool] = {}
        folder = Path(self.args.output_dir)
        # A tracker may write its logs there before training begins.
        self._logs = () if folder.is_dir() and any(folder.iterdir()) else ("runs",)

    @property
    def is_idle(self) -> bool:
        """Whether `train` was resumed where nothing was left to do."""
        return 0 < self.steps_before == self.state.global_step

    def own(self, folder: str | Path) -> None:
        """Say that what lies in `folder` may be replaced: the caller has looked.

        Args:
            folder: that is written into.
        """
        self._own[Path(folder).resolve()] = False

    def _claim(self, folder: str | Path, resume: str | bool | None = None) -> None:
        """Refuse to write into `folder` where srm-train would, when it is written into for the first time."""
        if Path(folder).resolve() in self._own:
            return
        wanted = str(resume).lower() if isinstance(resume, bool) else resume
        with self.args.main_process_first(desc="checking the output directory"):
            find_checkpoint(str(folder), wanted, overwrite=self.args.overwrite_output_dir, ignored=self._logs)
        # All have looked before one writes.
        self.accelerator.wait_for_everyone()
        self._own[Path(folder).resolve()] = not resume

    def _leave_settings(self, folder: Path) -> None:
        if self._own.get(folder.resolve()):
            write_settings(folder, self.args)
            self.own(folder)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """As `transformers.Trainer.train`, after cleaning up what a killed run may have left half done.

        Raises:
            UserError: another run is writing into the output directory; it is not empty, and neither `resume_from_checkpoint` nor
                `overwrite_output_dir` says what to do with that; or the checkpoint to resume from lacks a part of where the run stood,
                which Trainer would begin anew without a word, or has done more steps than the run is to have.
        """
        folder = Path(self.args.output_dir)
        with hold_together(folder, writes=self.args.should_save):
            if self.args.should_save and resume_from_checkpoint and folder.is_dir():
                recover(folder)
            is_new = folder.resolve() not in self._own
            self._claim(folder, resume_from_checkpoint)
            if self.args.should_save:
                (delete_run if is_new and self.args.overwrite_output_dir else recover)(folder)
            self.accelerator.wait_for_everyone()
            last = get_last_checkpoint(str(self.args.output_dir)) if resume_from_checkpoint is True else resume_from_checkpoint
            if last:
                self.resumed_from = Path(last)
                self._check_whole(self.resumed_from)
            return super().train(resume_from_checkpoint, *args, **kwargs)

    def _check_whole(self, checkpoint: Path) -> None:
        was, now = (checkpoint / "adapter_config.json").is_file(), hasattr(self.model, "peft_config")
        if was != now and checkpoint.is_dir() and not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            words = {True: "with", False: "without"}
            raise UserError(f"{checkpoint}: was written {words[was]} --use_peft, and this run is {words[now]} it. {_SETTINGS_OF_THE_RUN}")
        one_process = self.args.world_size == 1
        optimizer = "global_step*" if self.is_deepspeed_enabled else "optimizer*" if self.is_fsdp_enabled else "optimizer.pt"
        wanted = [
            (TRAINER_STATE_NAME, "the step"),
            ("rng_state.pth" if one_process else f"rng_state_{self.args.process_index}.pth", "the random state of this process"),
            (optimizer, "the optimizer's state"),
        ]
        if not self.is_deepspeed_enabled:
            wanted.append((SCHEDULER_NAME, "the learning rate's schedule"))
            if self.accelerator.scaler is not None:
                wanted.append((SCALER_NAME, "the scale of fp16's gradients"))
        for name, what in wanted:
            if not any(checkpoint.glob(name)):
                raise UserError(
                    f"{checkpoint}: holds no {name}, {what}, so the run could not go on as it was. Resume from a whole checkpoint with as "
                    "many processes as wrote it, or start a new run from this one's weights with --model_name_or_path."
                )
        with _reading(checkpoint):
            TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model into `output_dir`, from which `SentenceRewardModel.from_pretrained` loads it.

        Raises:
            UserError: the disk is full, the weights are not finite, another run is writing there, or the folder is not empty and holds
                nothing of this trainer's, without `overwrite_output_dir`.
        """
        if self._staged_run is not None:
            super().save_model(output_dir, _internal_call)
            return
        self.check_finite()
        if self.is_fsdp_enabled:
            # Sharded weights are for resuming; nobody else could load them.
            self.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
        final = Path(output_dir or self.args.output_dir)
        with hold_together(final, writes=self.args.should_save):
            self._claim(final)
            self._save_whole(final)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _save_whole(self, final: Path) -> None:
        staged = staging(final) / "model"
        self._clear(staged)
        self.reward_model.config.training = training_facts(self)
        with writing("the model", final, _GO_ON), no_bar():
            super().save_model(str(staged), _internal_call=True)
            if self.args.should_save:
                self._write_card(staged)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            with writing("the model", final, _GO_ON):
                self._leave_settings(final)
                publish_model(staged, final)
            shutil.rmtree(staging(final))
        self.accelerator.wait_for_everyone()

    def create_model_card(  # type: ignore[override]  # what Trainer's takes beside these is in `kwargs`
        self, language: str | None = None, license: str | None = None, tags: str | list[str] | None = None, **kwargs: Any
    ) -> None:
        """As Trainer's, which the hub gets, but ours; what else Trainer's takes it knows itself."""
        if self.is_world_process_zero():
            extra = [tags] if isinstance(tags, str) else tags or []
            front = {"language": language, "license": license, "tags": extra and [*TAGS, *extra]}
            self._write_card(Path(self.args.output_dir), {key: value for key, value in front.items() if value})

    def _write_card(self, folder: Path, front: dict[str, Any] | None = None) -> None:
        name = self.hub_model_id or self.args.hub_model_id or Path(self.args.output_dir).resolve().name
        card = model_card(self.reward_model.config, name, is_adapter=hasattr(self.model, "peft_config"), front=front)
        (folder / CARD).write_text(card, encoding="utf-8")

    def check_finite(self) -> None:
        """Raise UserError where a trained weight is NaN or infinite: such a model must never replace a good one."""
        weights = [_own_shard(weight) for weight in self.model.parameters() if weight.requires_grad]
        if weights and not torch.stack([weight.detach().isfinite().all() for weight in weights]).all():
            raise UserError(
                f"weights became NaN or infinite before step {self.state.global_step}, so nothing was saved. "
                "Lower --learning_rate, then go on with --resume_from_checkpoint true."
            )

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self.check_finite()
        run = Path(super()._get_output_dir(trial))
        name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        staged, final = staging(run) / name, run / name
        self._clear(staged)
        self._staged_run = staged.parent
        self.reward_model.config.training = training_facts(self)
        try:
            with writing(name, run, _GO_ON), no_bar():
                super()._save_checkpoint(model, trial)
                self._name_best(staged, final)
        except UserError:
            shutil.rmtree(staged, ignore_errors=True)
            raise
        finally:
            self._staged_run = None
        # Every process has written its random state before the folder appears, and none goes on before it has.
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            with writing(name, run, _GO_ON):
                self._leave_settings(run)
                publish_folder(staged, final)
            rotate(run, self.args.save_total_limit, [final, *self._best()])
            shutil.rmtree(staging(run))
        self.accelerator.wait_for_everyone()
        if self._push_later is not None:
            self._push_later = None
            if self.is_world_process_zero():
                # Trainer picks the files that it knows, and these two it does not.
                self._write_card(run)
                shutil.copy(final / CODE_FILE, run / CODE_FILE)
            super()._push_from_checkpoint(str(final))

    def _name_best(self, staged: Path, final: Path) -> None:
        """Trainer has noted the staged folder as the best checkpoint's; the state on the disk must name the final one."""
        if self.state.best_model_checkpoint == str(staged):
            self.state.best_model_checkpoint = str(final)
            if self.args.should_save:
                self.state.save_to_json(str(staged / "trainer_state.json"))

    def _best(self) -> list[str]:
        best = self.state.best_model_checkpoint
        return [best] if best is not None else []

    def _clear(self, staged: Path) -> None:
        if self.args.should_save:
            shutil.rmtree(staged, ignore_errors=True)
            staged.mkdir(parents=True)
        self.accelerator.wait_for_everyone()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As Trainer's, but no loss of 0 where nothing was trained."""
        if self.is_idle:
            logs.pop("train_loss", None)
        super().log(logs, start_time)

    # Trainer's own names below: where a release renames one, the tests of this file fail.

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staged_run) if self._staged_run is not None else super()._get_output_dir(trial)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        self._push_later = checkpoint_folder

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # Trainer looks at `max_steps` behind a step: resumed at the last one it would take one more.
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        # Trainer would delete the last checkpoint file by file where save_total_limit is 1 and another one is the best.
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            output = super()._finalize_training(*args, **kwargs)
        finally:
            self.args.save_total_limit = limit
        if self.args.should_save and limit == 1 and self._best():
            rotate(self.args.output_dir, limit, self._best())
        return output._replace(training_loss=math.nan) if self.is_idle else output

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        with _reading(resume_from_checkpoint):
            if not self._load_weights(resume_from_checkpoint):
                super()._load_from_checkpoint(resume_from_checkpoint, model)
                self._check_adapter(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        best = str(self.state.best_model_checkpoint)
        with _reading(best):
            if not self._load_weights(best):
                super()._load_best_model()
                self._check_adapter(best)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with _reading(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with _reading(checkpoint):
            super()._load_rng_state(checkpoint)

    def _load_weights(self, checkpoint: str) -> bool:
        """Load an unsharded model's weights; False for the others.

        By `from_pretrained`, which knows what Trainer does not: that files may hold weights in another form, such as experts one by one.
        """
        model = self.model
        if not isinstance(model, PreTrainedModel) or self.is_fsdp_enabled or self.is_deepspeed_enabled:
            return False
        try:
            with no_bar():
                loaded = type(model).from_pretrained(checkpoint, config=model.config, dtype=model.dtype)
        except UserError as error:
            raise UserError(f"{error} {_SETTINGS_OF_THE_RUN}") from error
        model.load_state_dict(loaded.state_dict())
        return True

    def _check_adapter(self, checkpoint: str) -> None:
        if hasattr(self.model, "peft_config") and not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            check_adapter(self.model, checkpoint)


class _StepsCallback(TrainerCallback):
    """Notes how many steps were done when training begins, and refuses to train for fewer."""

    def __init__(self, trainer: AtomicSavingTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self.trainer.steps_before = state.global_step
        if state.global_step > state.max_steps:
            raise UserError(
                f"{self.trainer.resumed_from}: {state.global_step} steps are done, and --max_steps or --num_train_epochs ask for "
                f"{state.max_steps}. Raise them, resume from an earlier checkpoint, or start a new run in another --output_dir."
            )


def _own_shard(weight: torch.Tensor) -> torch.Tensor:
    """What this process holds of a weight: FSDP's and DeepSpeed's names for it, or all."""
    return getattr(weight, "_local_tensor", getattr(weight, "ds_tensor", weight))


@contextmanager
def _reading(checkpoint: str | Path | None) -> Iterator[None]:
    """Turn what a checkpoint that is cut short, or another model's, makes Trainer raise into one line."""
    with one_line(str(checkpoint), "cannot be resumed", f"Resume from another checkpoint. {_SETTINGS_OF_THE_RUN}"):
        yield
