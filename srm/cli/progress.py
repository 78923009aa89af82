"""What training prints: a bar, and the numbers that say whether it goes well."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

__all__ = ["ProgressBar", "StepBar", "StepLines"]

# Of the old mean, in the running means: single batches jump too much to be read.
_DECAY = 0.9


class ProgressBar(TrainerCallback):
    """Steps, time left, and running means of loss and accuracy; for `logging_steps=1`. Used as a context, which ends the bar."""

    def __init__(self, console: Console) -> None:
        self._progress = _progress(console, TextColumn("{task.fields[numbers]}"))
        self._means: dict[str, float] = {}

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._task = self._progress.add_task("train", total=state.max_steps, completed=state.global_step, numbers="")
        self._progress.start()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._progress.update(self._task, completed=state.global_step)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, float] | None = None, **kwargs: Any
    ) -> None:
        for name in ("loss", "accuracy", "tokens_per_second"):
            if logs and name in logs:
                old = self._means.get(name, logs[name])
                self._means[name] = _DECAY * old + (1 - _DECAY) * logs[name]
        if len(self._means) == 3:
            loss, accuracy, speed = (self._means[name] for name in ("loss", "accuracy", "tokens_per_second"))
            self._progress.update(self._task, numbers=f"loss {loss:.3f}  accuracy {accuracy:.0%}  {speed:.0f} tokens/s")


class StepBar:
    """Steps and time left, above them a line for each step that is logged. Used as a context, which ends the bar.

    Args:
        console: where they are printed.
        max_steps: of the run, where that is known already.
        bar: False prints the lines alone.
    """

    def __init__(self, console: Console, max_steps: int | None = None, *, bar: bool = True) -> None:
        self._progress = _progress(console, disable=not bar)
        self._task = self._progress.add_task("steps", total=max_steps)

    def __enter__(self) -> StepBar:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def begin(self, step: int, max_steps: int) -> None:
        """Begin at `step`: the steps before it were an earlier run's, and say nothing of the time that is left."""
        self._progress.reset(self._task, completed=step, total=max_steps)

    def advance(self, step: int) -> None:
        """Move the bar."""
        self._progress.update(self._task, completed=step)

    def show(self, step: int, max_steps: int, numbers: str) -> None:
        """Print the line of a step."""
        self.advance(step)
        self._progress.console.print(f"step {step:>{len(str(max_steps))}}/{max_steps}  {numbers}")

    def show_rl(self, log: Mapping[str, float], max_steps: int) -> None:
        """Print the line of a step, as `srm.rl.trainer.RLTrainer` logs it."""
        numbers = f"reward {log['reward']:7.3f}  kl {log['kl']:6.3f}  length {log['length']:5.1f}  entropy {log['entropy']:6.3f}"
        self.show(int(log["step"]), max_steps, f"{numbers}  {log['seconds']:.1f} s")


class StepLines(TrainerCallback):
    """A line for each step that Trainer logs and for each evaluation, and the bar.

    Args:
        bar: prints them.
    """

    def __init__(self, bar: StepBar) -> None:
        self._bar = bar

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._bar.begin(state.global_step, state.max_steps)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._bar.advance(state.global_step)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, float] | None = None, **kwargs: Any
    ) -> None:
        if not (state.is_world_process_zero and logs):
            return
        for name in logs:
            # `margin` of a training step, `eval_margin`, or `eval_NAME_margin` of one set of several.
            if name == "margin" or name.endswith("_margin"):
                self._bar.show(state.global_step, state.max_steps, _numbers(logs, name.removesuffix("margin")))


def _numbers(logs: Mapping[str, float], prefix: str) -> str:
    """What fits into 80 columns, with steps of five digits before it."""
    loss, accuracy, margin = (logs[prefix + name] for name in ("loss", "accuracy", "margin"))
    # + 0, so that nothing is -0.
    numbers = f"loss {loss:.3f}  acc {accuracy:.3f}  margin {round(margin, 3) + 0:6.3f}"
    if prefix:
        return f"{numbers}  evaluation {prefix.removeprefix('eval_').rstrip('_')}".rstrip()
    return f"{numbers}  lr {logs['learning_rate']:.1e}  {_short(logs['tokens_per_second'])} tok/s"


def _short(count: float) -> str:
    """With two or three digits: 940, 1.8k, 18k, 180k, 1.8M."""
    units = iter(("", "k", "M"))
    unit = next(units)
    while count >= 999.5 and unit != "M":
        count, unit = count / 1000, next(units)
    return f"{count:.1f}{unit}" if unit and count < 9.95 else f"{count:.0f}{unit}"


def _progress(console: Console, *more: ProgressColumn, disable: bool = False) -> Progress:
    columns = (TextColumn("  step"), MofNCompleteColumn(), BarColumn(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    return Progress(*columns, *more, console=console, disable=disable)
