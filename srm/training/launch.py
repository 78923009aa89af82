"""srm-train in several processes: the settings of `accelerate launch`, given to srm-train itself, as `trl reward` takes them."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
from argparse import Namespace
from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NoReturn

from srm.errors import UserError, first_line
from srm.extras import way_to_install

__all__ = ["WORLD_SIZES", "launch", "launch_settings", "launched_by", "launcher_arguments"]

_CONFIG = "accelerate_config"
# The program that is started is srm-train.
_NOT_TAKEN = ("help", "module", "no_python", "training_script", "training_script_args", "main_training_function", "env")
_PARADIGMS = ("multi_gpu", "cpu", "tpu", "use_deepspeed", "use_fsdp", "use_megatron_lm")
_OURS = "SRM_TRAIN_LAUNCHED"
# In which launchers say how many processes there are.
WORLD_SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")


@lru_cache(maxsize=1)
def launch_settings() -> tuple[str, ...]:
    """The names of the settings of `accelerate launch`, and `accelerate_config`."""
    return (_CONFIG, *(name for name in vars(_parser().parse_args(["x"])) if name not in _NOT_TAKEN))


def launched_by() -> Literal["us", "another"] | None:
    """Who has started this process: `launch`, or another launcher such as `accelerate launch`, torchrun or mpirun."""
    if _OURS in os.environ:
        return "us"
    return "another" if any(name in os.environ for name in ("ACCELERATE_MIXED_PRECISION", *WORLD_SIZES)) else None


def launch(words: Sequence[str], argv: Sequence[str]) -> int:
    """Run srm-train through accelerate's launcher.

    Args:
        words: settings of the launcher.
        argv: those of srm-train.

    Returns:
        The exit code: that of the first process that failed, or 0.

    Raises:
        UserError: the launcher cannot do what the settings ask for, or a process was killed.
    """
    from accelerate.commands.launch import launch_command
    from accelerate.utils import patch_environment
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    args = launcher_arguments(words, argv)
    # What it would say: which defaults it takes, and, of a process that has said in one line what is wrong, a page of traceback.
    for name in ("accelerate.commands.launch", "torch.distributed.elastic.multiprocessing.api", "torch.distributed.run"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        with patch_environment(**{_OURS: "1"}):
            launch_command(args)
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        return _exit_code(failure.exitcode)
    except subprocess.CalledProcessError as error:
        return _exit_code(error.returncode)
    except SignalException as error:
        return 128 + int(error.sigval)
    except (ValueError, ImportError) as error:
        raise UserError(f"accelerate's launcher: {first_line(error)}") from error
    return 0


def launcher_arguments(words: Sequence[str], argv: Sequence[str]) -> Namespace:
    """What accelerate's launcher gets.

    Args:
        words: settings of the launcher.
        argv: those of srm-train.

    Raises:
        UserError: a setting that it does not know, a value that it does not take, or no such configuration.
    """
    args = _parser().parse_args([*_with_file(words), "--module", "srm.cli.train", *argv])
    kind = _kind_in_file(args.config_file)
    if (args.num_processes or 0) > 1 and kind == "NO" and not any(getattr(args, name) for name in _PARADIGMS):
        # On CPUs and on one GPU accelerate would start a single process, without a word.
        args.multi_gpu = True
    return args


@lru_cache(maxsize=1)
def _parser() -> Any:
    from accelerate.commands.launch import launch_command_parser

    parser = launch_command_parser()

    def refuse(message: str) -> NoReturn:
        raise UserError(f"accelerate's launcher: {message}.")

    parser.error = refuse
    return parser


def _with_file(words: Sequence[str]) -> list[str]:
    """`words` with `--config_file PATH` in place of `--accelerate_config NAME`, which is a file, or one of those that trl brings."""
    given: list[str] = []
    left = iter(words)
    for word in left:
        flag, equals, value = word.replace("accelerate-config", _CONFIG).partition("=")
        if flag == f"--{_CONFIG}":
            value = value if equals else next(left, "")
            given += ["--config_file", _file_of(value)]
        else:
            given.append(word)
    return given


def _file_of(name: str) -> str:
    if Path(name).expanduser().is_file():
        return str(Path(name).expanduser())
    trl = find_spec("trl")
    if trl is None or trl.origin is None:
        raise UserError(f"--{_CONFIG} {name}: is no file here, and the names such as zero3 are files of trl's. {way_to_install('trl')}")
    folder = Path(trl.origin).parent / "accelerate_configs"
    names = sorted(path.stem for path in folder.glob("*.yaml"))
    if name not in names:
        raise UserError(f"--{_CONFIG} {name}: is no file, and none of trl's names: {', '.join(names)}.")
    return str(folder / f"{name}.yaml")


def _kind_in_file(file: str | None) -> str:
    """The kind of launch that accelerate's configuration states, in `file` or where accelerate looks; `NO` for a single process."""
    from accelerate.commands.config import default_config_file, load_config_from_file

    file = file or (default_config_file if os.path.isfile(default_config_file) else None)
    if file is None:
        return "NO"
    try:
        kind = load_config_from_file(file).distributed_type
    except OSError:
        raise
    except Exception as error:
        # A file that is no YAML, or holds other things, can raise anything.
        raise UserError(f"{file}: is no configuration of accelerate ({first_line(error)}). Write one with `accelerate config`.") from None
    return str(getattr(kind, "value", kind))


def _exit_code(code: int) -> int:
    if code >= 0:
        return code
    name = signal.Signals(-code).name
    raise UserError(f"a process of the run was killed ({name}), by the system or by hand; SIGKILL often means that memory ran out.")
