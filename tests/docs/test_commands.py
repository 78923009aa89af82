"""Commands in the blocks of README.md and docs/ are understood: ours flag by flag, and the programs that they start are there."""

from __future__ import annotations

import importlib
import importlib.util
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from srm.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)

# What three dots in a command stand for.
_REST = {"srm-train": ["--model_name_or_path", "smollm2-135m", "--dataset_name", "pairs.jsonl"]}


def blocks(page: Path, *languages: str) -> Iterator[str]:
    yield from (body for language, body in _FENCE.findall(page.read_text(encoding="utf-8")) if language in languages)


def commands_in(page: Path) -> Iterator[list[str]]:
    """The words of each command of ours in the page's blocks, without what starts it: `srm-train ...`, `python -m srm.cli.train ...`."""
    for block in blocks(page, "", "bash", "sh", "console"):
        for line in block.replace("\\\n", " ").splitlines():
            if re.match(r"(srm-|python |accelerate launch )", line):
                words = shlex.split(line.split(" | ")[0], comments=True)
                if "srm.cli." in line:
                    module = next(word for word in words if word.startswith("srm.cli."))
                    words = [f"srm-{module.rpartition('.')[2]}", *words[words.index(module) + 1 :]]
                yield [part for word in words for part in (_REST.get(words[0], []) if word == "..." else [word])]


COMMANDS = [pytest.param(words, id=f"{page.name}: {' '.join(words)}"[:90]) for page in PAGES for words in commands_in(page)]


def parser_of(command: str) -> Callable[[Sequence[str]], Any]:
    if command == "srm-train":
        from srm.training.arguments import parse_arguments, split_launch_settings

        return lambda argv: parse_arguments(split_launch_settings(argv)[1])
    if command == "srm-rl":
        from srm.rl.arguments import parse_rl_config

        return parse_rl_config
    return importlib.import_module(f"srm.cli.{command.removeprefix('srm-')}")._parse


@pytest.mark.parametrize("words", COMMANDS)
def test_a_command_is_understood(words: list[str], reader: Path) -> None:
    for page in PAGES:
        # A block of YAML that begins with its name is a file that commands read.
        for block in blocks(page, "yaml"):
            if named := re.match(r"# (\w+\.yaml)\n", block):
                (reader / named[1]).write_text(block, encoding="utf-8")
    if words[0].startswith("srm-"):
        parser_of(words[0])(words[1:])
    elif words[1] == "-m":
        assert importlib.util.find_spec(words[2]) is not None
    elif words[0] == "python":
        assert (ROOT / words[1]).is_file()


def test_there_are_commands_of_every_kind() -> None:
    names = {param.values[0][0] for param in COMMANDS}
    assert {"srm-train", "srm-score", "srm-eval", "srm-serve", "srm-rl", "python"} <= names


@pytest.mark.parametrize("words", ["srm-train --dataset_naem x", "srm-score --modle x", "srm-serve --prot 1", "srm-rl --kl_coeff 1"])
def test_a_misspelt_flag_is_found(words: str) -> None:
    command, *argv = words.split()
    with pytest.raises(UserError):
        parser_of(command)(argv)
