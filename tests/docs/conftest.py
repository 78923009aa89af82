"""A folder as a reader of the pages has it, with tiny models in place of real ones."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from srm import SentenceRewardModel
from tests.servers import in_thread

ROOT = Path(__file__).resolve().parents[2]
PAIRS = [
    {"prompt": f"Where is {city}?", "chosen": f"It is in {country}. It is old.", "rejected": "It is in Spain. You should know that, idiot."}
    for city, country in [("Paris", "France"), ("Rome", "Italy"), ("Bern", "Switzerland"), ("Riga", "Latvia"), ("Oslo", "Norway")]
]


@pytest.fixture(scope="session")
def tiny_models(
    awake_model: Callable[[Path], SentenceRewardModel], tiny_backbone_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Folders `policy` and `reward`: models with two layers, for conversations as long as real ones."""
    from transformers import AutoConfig, AutoTokenizer, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("models")
    tokenizer = AutoTokenizer.from_pretrained(tiny_backbone_dir)
    config = AutoConfig.from_pretrained(tiny_backbone_dir, max_position_embeddings=2048, eos_token_id=tokenizer.eos_token_id)
    LlamaForCausalLM(config).save_pretrained(folder / "policy")
    tokenizer.save_pretrained(folder / "policy")
    awake_model(folder / "policy").save_pretrained(folder / "reward")
    return folder


@pytest.fixture
def reader(tiny_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, where the demo has run, a reward model and a policy were trained, and files of rows lie."""
    # Where `smollm2-135m` is looked for first.
    shutil.copytree(tiny_models / "policy", tmp_path / "cache" / "SmolLM2-135M-Instruct-r1")
    monkeypatch.setenv("SRM_CACHE", str(tmp_path / "cache"))
    home = tmp_path / "home"
    for name, kind in [("demo/model", "reward"), ("reward", "reward"), ("policy", "policy")]:
        shutil.copytree(tiny_models / kind, home / "outputs" / name)
    rows = "".join(json.dumps(row) + "\n" for row in PAIRS)
    for name in ("pairs", "test", "suite", "responses", "prompts", "outputs/demo/train", "outputs/demo/test"):
        (home / f"{name}.jsonl").write_text(rows, encoding="utf-8")
    os.symlink(ROOT / "examples", home / "examples")
    monkeypatch.chdir(home)
    return home


@pytest.fixture(scope="session")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `python` and our commands, of this checkout and this interpreter, for PATH."""
    folder = tmp_path_factory.mktemp("bin")
    modules = {f"srm-{name}": f"-m srm.cli.{name}" for name in ("train", "score", "eval", "serve", "rl")}
    for name, module in {"python": "", **modules}.items():
        script = folder / name
        script.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" {module} "$@"\n', encoding="utf-8")
        script.chmod(0o755)
    return folder


@pytest.fixture(scope="session")
def server(tiny_models: Path) -> Iterator[str]:
    """Host and port of a running server, whose pages say `localhost:8000`."""
    with in_thread(SentenceRewardModel.from_pretrained(tiny_models / "reward").eval()) as url:
        yield url.removeprefix("http://")
