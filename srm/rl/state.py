"""What a run leaves in its output directory: the log, its settings, checkpoints that appear whole, and the final policy."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from srm.errors import UserError
from srm.modeling.card import CARD
from srm.modeling.loading import one_line
from srm.rl.arguments import RLConfig
from srm.rl.card import policy_card
from srm.runs.folders import no_bar, publish_folder, publish_model, rotate, staging, write_whole, writing
from srm.runs.settings import settings_changes, to_yaml

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedTokenizerBase

    from srm.rl.policy import Policy

__all__ = ["LOG", "RunFolder"]

LOG = "log.jsonl"
"""One line a step, in the output directory."""

_SETTINGS = "srm_rl.yaml"
_STATE, _STEP = "training.pt", "trainer_state.json"
_GO_ON = "Free some, then go on with --resume_from_checkpoint true."
# These say where and how long, not what is trained.
_NO_MATTER = ("output_dir", "save_steps", "save_total_limit")


class RunFolder:
    """Everything a run writes. Only the first process writes shared files; all of them must call the methods that save.

    Args:
        config: the settings.
        accelerator: of the run.
        prompts: token ids of those that are used, in order.
    """

    def __init__(self, config: RLConfig, accelerator: Accelerator, prompts: Iterable[Sequence[int]]) -> None:
        self.path = Path(config.output_dir)
        self._config = config
        self._accelerator = accelerator
        self._prompts = _digest(prompts)

    def changes(self, checkpoint: str) -> Iterator[str]:
        """What is not as it was when the run in the folder began.

        Args:
            checkpoint: the folder that the run goes on from.

        Yields:
            A line for each setting that differs, and one for other prompts.

        Raises:
            UserError: the settings or the checkpoint's state cannot be read.
        """
        # Only a schedule that falls to 0 at the last step asks how many there are.
        length = ("max_steps",) if self._config.lr_scheduler_type == "constant_with_warmup" else ()
        yield from settings_changes(self.path / _SETTINGS, self._config, ignored=(*_NO_MATTER, *length))
        with _resuming(checkpoint):
            before = json.loads((Path(checkpoint) / _STEP).read_text(encoding="utf-8")).get("prompts", self._prompts)
        if before != self._prompts:
            yield f"the prompts of {self._config.dataset_name} are not the same"

    def start_log(self, step: int) -> None:
        """Write the settings, and cut the log to its lines up to `step`: those behind the checkpoint will be written again."""
        if not self._accelerator.is_main_process:
            return
        kept = []
        if step and (self.path / LOG).is_file():
            lines = (self.path / LOG).read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
            # A killed run may have left half a line, which is behind any checkpoint.
            kept = [line for number, line in enumerate(lines, 1) if line.endswith("\n") and self._step_of(line, number) <= step]
        with writing("the log", self.path, _GO_ON):
            write_whole(self.path / LOG, "".join(kept))
            write_whole(self.path / _SETTINGS, "# srm-rl --config THIS_FILE repeats the run.\n" + to_yaml(self._config))

    def _step_of(self, line: str, number: int) -> int:
        try:
            return int(json.loads(line)["step"])
        except (ValueError, TypeError, KeyError, RecursionError, OverflowError):
            raise UserError(
                f"{self.path / LOG} line {number}: is not what srm-rl writes, so the log was edited or cut. Delete the line."
            ) from None

    def write_log(self, log: dict[str, float]) -> None:
        """Append a line.

        Raises:
            UserError: one of the numbers is none: the rewards or the losses are NaN or infinite.
        """
        for name, value in log.items():
            if not math.isfinite(value):
                raise UserError(
                    f"{name} became {value} at step {log['step']}. Lower --learning_rate, then go on with --resume_from_checkpoint true."
                )
        if self._accelerator.is_main_process:
            with writing("the log", self.path, _GO_ON), (self.path / LOG).open("a", encoding="utf-8") as file:
                file.write(json.dumps(log, allow_nan=False) + "\n")

    def save_checkpoint(self, step: int, policy: Policy, tokenizer: PreTrainedTokenizerBase, optimizer: Any, scheduler: Any) -> None:
        """Write `checkpoint-<step>`: a model that loads like any other, and what a resume needs beside it."""
        final = self.path / f"checkpoint-{step}"
        staged = self._stage(final.name)
        with writing(final.name, self.path, _GO_ON):
            if self._accelerator.is_main_process:
                _save_model(staged, policy, tokenizer)
                head = None if policy.value_head is None else policy.value_head.state_dict()
                torch.save({"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict(), "value_head": head}, staged / _STATE)
                (staged / _STEP).write_text(json.dumps({"global_step": step, "prompts": self._prompts}) + "\n", encoding="utf-8")
            torch.save(_random_state(), staged / f"rng_state_{self._accelerator.process_index}.pth")
        self._accelerator.wait_for_everyone()
        if self._accelerator.is_main_process:
            with writing(final.name, self.path, _GO_ON):
                publish_folder(staged, final)
            rotate(self.path, self._config.save_total_limit, [final])
            shutil.rmtree(staging(self.path))
        self._accelerator.wait_for_everyone()

    def save_model(self, policy: Policy, tokenizer: PreTrainedTokenizerBase) -> None:
        """Write the policy into the output directory itself, from which `AutoModelForCausalLM` loads it."""
        staged = self._stage("model")
        if self._accelerator.is_main_process:
            with writing("the policy", self.path, _GO_ON):
                _save_model(staged, policy, tokenizer)
                (staged / CARD).write_text(policy_card(self._config), encoding="utf-8")
                publish_model(staged, self.path)
            shutil.rmtree(staging(self.path))
        self._accelerator.wait_for_everyone()

    def restore(self, checkpoint: str, policy: Policy, optimizer: Any, scheduler: Any) -> int:
        """Load what `save_checkpoint` put beside the model, whose weights `policy` has already.

        Args:
            checkpoint: the folder.
            policy: its value head is loaded.
            optimizer: its state is loaded.
            scheduler: goes to the checkpoint's step; learning rates and length stay those of the settings.

        Returns:
            The checkpoint's step.

        Raises:
            UserError: the checkpoint is not whole, another algorithm's, behind `max_steps`, or was written by another number of processes.
        """
        folder, own_random = Path(checkpoint), f"rng_state_{self._accelerator.process_index}.pth"
        for name in (_STATE, own_random, _STEP):
            if not (folder / name).is_file():
                raise UserError(f"{checkpoint}: holds no {name}, so the run could not go on as it was. Resume from a whole checkpoint.")
        if len(list(folder.glob("rng_state_*.pth"))) != self._accelerator.num_processes:
            raise UserError(f"{checkpoint} was written by another number of processes. Resume with as many.")
        with _resuming(checkpoint):
            state = torch.load(folder / _STATE, map_location="cpu", weights_only=True)
            if (state["value_head"] is None) != (policy.value_head is None):
                raise UserError(f"{checkpoint} was written by the other --algorithm. Resume with the settings in {_SETTINGS} beside it.")
            if policy.value_head is not None:
                policy.value_head.load_state_dict(state["value_head"])
            step = int(json.loads((folder / _STEP).read_text(encoding="utf-8"))["global_step"])
            if step > self._config.max_steps:
                raise UserError(
                    f"{checkpoint}: {step} steps are done, and --max_steps asks for {self._config.max_steps}. Raise it, resume from an "
                    "earlier checkpoint, or start a new run in another --output_dir."
                )
            optimizer.load_state_dict(state["optimizer"])
            # The checkpoint's rates are those of the settings it was written with.
            rates = [base * factor(step) for base, factor in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)]
            for group, base, rate in zip(optimizer.param_groups, scheduler.base_lrs, rates, strict=True):
                group |= {"initial_lr": base, "lr": rate}
            scheduler.load_state_dict({**state["scheduler"], "base_lrs": scheduler.base_lrs, "_last_lr": rates})
            random = torch.load(folder / own_random, map_location="cpu", weights_only=True)
            torch.set_rng_state(random["cpu"])
            if torch.cuda.is_available() and random["cuda"] is not None:
                torch.cuda.set_rng_state(random["cuda"])
            return step

    def _stage(self, name: str) -> Path:
        staged = staging(self.path) / name
        if self._accelerator.is_main_process:
            shutil.rmtree(staged, ignore_errors=True)
            staged.mkdir(parents=True)
        self._accelerator.wait_for_everyone()
        return staged


def _resuming(checkpoint: str) -> AbstractContextManager[None]:
    return one_line(checkpoint, "cannot be resumed", f"Resume from another checkpoint, with the settings in {_SETTINGS} beside it.")


def _digest(prompts: Iterable[Sequence[int]]) -> str:
    digest = hashlib.sha256()
    for ids in prompts:
        # The length first, so that tokens cannot move from one prompt to the next unnoticed.
        digest.update(np.array([len(ids), *ids]).tobytes())
    return digest.hexdigest()


def _save_model(folder: Path, policy: Policy, tokenizer: PreTrainedTokenizerBase) -> None:
    with no_bar():
        policy.model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _random_state() -> dict[str, Any]:
    return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None}
