"""What the commands that score share: their options, the model, and what a score depends on."""

from __future__ import annotations

import argparse
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srm.devices import check_device

if TYPE_CHECKING:
    from rich.progress import ProgressColumn

    from srm import SentenceRewardModel
    from srm.data.boundary import RowCheck

__all__ = [
    "add_running_options",
    "add_scoring_options",
    "device_of",
    "load_model",
    "model_identity",
    "progress_columns",
    "row_check",
    "truncated_line",
]

# What the scores depend on, apart from the model and `RowSettings.decisive`. Device and batch size only round differently.
_DECISIVE = ("split", "dtype", "skip_bad_rows")


def add_scoring_options(parser: argparse.ArgumentParser) -> None:
    """How responses are read, cut, batched and run."""
    rows = parser.add_argument_group("rows")
    rows.add_argument("--split", help="split of a folder or hub data set [the only one of a folder; train]")
    rows.add_argument("--max_length", type=int, help="longest prompt + response in tokens [what the backbone can]")
    rows.add_argument(
        "--overlong",
        choices=["error", "truncate_prompt", "truncate_response"],
        default="error",
        help="what to do with longer ones; sentences behind a cut get no reward",
    )
    rows.add_argument("--skip_bad_rows", action="store_true", help="drop rows that cannot be used, and list them")
    add_running_options(parser.add_argument_group("running"))


def add_running_options(group: argparse._ArgumentGroup) -> None:
    """How the model is loaded and its batches are made."""
    group.add_argument(
        "--packing", choices=["shared", "packed", "none"], help="how rows are laid out in a batch [as the model was trained]"
    )
    group.add_argument(
        "--last_layer_rows", choices=["boundaries", "all"], help="rows that the last layer runs on [as the model was trained]"
    )
    group.add_argument("--tokens_per_batch", type=int, default=8192, help="tokens in one forward pass at most")
    group.add_argument(
        "--dtype", choices=["auto", "float32", "bfloat16", "float16"], default="auto", help="of the backbone's weights [as saved]"
    )
    group.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ... [a GPU where there is one, each process its own]")


def device_of(arguments: argparse.Namespace) -> str:
    """`--device`, or this process's own GPU, or the CPU.

    Raises:
        UserError: there is no such device here.
    """
    import torch

    if arguments.device == "auto":
        return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    return check_device(arguments.device, where="--device")


def load_model(name: str, arguments: argparse.Namespace) -> SentenceRewardModel:
    """The trained reward model `name`, ready to score.

    Raises:
        UserError: there is none.
    """
    from srm import SentenceRewardModel
    from srm.memory import keep_freed_memory

    device = device_of(arguments)
    if device == "cpu":
        keep_freed_memory()
    model = SentenceRewardModel.from_pretrained(name, dtype=arguments.dtype).eval().to(device)
    model.config.last_layer_rows = arguments.last_layer_rows or model.config.last_layer_rows
    return model


def row_check(name: str) -> RowCheck:
    """What finds rows that the model `name` cannot read; its tokenizer is enough for that.

    Raises:
        UserError: there is no such model.
    """
    from srm.data.answers import AnswerTokens
    from srm.data.boundary import check_row
    from srm.data.template import ChatFormat
    from srm.modeling.loading import check_is_reward_model, load_tokenizer

    if not (Path(name) / "adapter_config.json").is_file():
        check_is_reward_model(name)
    tokenizer = load_tokenizer(name)
    form = ChatFormat(tokenizer)
    return partial(check_row, form, AnswerTokens(tokenizer, form))


def model_identity(name: str, source: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """What the scores of the model `name` on `source` depend on. Ask before the model is loaded: what is hashed is what is loaded then."""
    from srm.modeling.contents import model_contents

    model = Path(name)
    identity = {"model": str(model.resolve()) if model.is_dir() else name, "input": _whole_path(source)}
    return identity | model_contents(name) | {option: getattr(arguments, option) for option in _DECISIVE}


def truncated_line(count: int, total: int, arguments: argparse.Namespace) -> str:
    """What the screen says about rows that were too long.

    Args:
        count: how many were cut, prompt or response.
        total: how many were scored.
        arguments: of the command.
    """
    what = "prompts of responses" if arguments.overlong == "truncate_prompt" else "responses"
    limit = "what the model reads" if arguments.max_length is None else f"--max_length {arguments.max_length}"
    return f"{count} of {total} {what} were cut to {limit} (--overlong {arguments.overlong})"


def _whole_path(source: str) -> str:
    """One name for one place, however it is written; names on the hub as they are."""
    path = Path(source).expanduser()
    return str(path.resolve()) if path.exists() else source


def progress_columns(title: str) -> tuple[ProgressColumn, ...]:
    """The columns of a progress bar that counts responses."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    from srm.views.visible import visible

    return (TextColumn(visible(title), markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
