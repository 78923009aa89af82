"""Fixtures that every room's tests share."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

if TYPE_CHECKING:
    from srm import SentenceRewardModel

# Two cores at most, often shared by two pytest workers: more threads only fight each other.
torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _frozen_imports() -> None:
    """Trainers collect garbage after each run, and would look through all that was imported, at a quarter of a second a time."""
    # First, because it asks who refers to trio's random numbers, and what is frozen does not answer.
    with contextlib.suppress(ModuleNotFoundError):  # not on every machine that runs the tests for a GPU
        import hypothesis  # noqa: F401

    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def _fresh_accelerator() -> None:
    """accelerate keeps its precision for the whole process: a module that trained in bf16 must not decide for the next one."""
    state = sys.modules.get("accelerate.state")
    if state is not None:
        state.AcceleratorState._reset_state(reset_partial_state=True)


def _shared_dir() -> Path:
    return Path(os.environ.get("SRM_SHARED", Path(__file__).resolve().parents[2] / "shared"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with real preference data that some checkouts have beside them; see docs/results.md."""
    path = _shared_dir() / "data"
    if not path.is_dir():
        pytest.skip(f"no real data at {path}; set SRM_SHARED to a folder with data/pairs_train.jsonl.gz to run this")
    return path


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder with the outputs of the head that the paper's authors published."""
    path = _shared_dir() / "golden"
    if not path.is_dir():
        pytest.skip(f"no reference outputs at {path}; set SRM_SHARED to a folder with golden/head_parity.json.gz to run this")
    return path


@pytest.fixture(scope="session")
def tiny_tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE tokenizer with a ChatML-like template, trained on a few lines of our own."""
    from bench import tiny

    path = tmp_path_factory.mktemp("tiny_tokenizer")
    tiny.save_tokenizer(path)
    return path


@pytest.fixture(scope="session")
def tiny_backbone_dir(tiny_tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer Llama with grouped-query attention, saved with the tiny tokenizer."""
    from bench import tiny

    path = tmp_path_factory.mktemp("tiny_backbone")
    tiny.save_backbone(path, tiny_tokenizer_dir)
    return path


@pytest.fixture(scope="session")
def tiny_policy_dir(tiny_backbone_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model of the tiny backbone's shape that writes anything; the tokenizer's pad token is its end token."""
    from transformers import AutoConfig, AutoTokenizer, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(tiny_backbone_dir)
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(tiny_backbone_dir, initializer_range=0.1, eos_token_id=tokenizer.eos_token_id)
    path = tmp_path_factory.mktemp("tiny_policy")
    LlamaForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def fork() -> Iterator[Callable[..., BaseProcess]]:
    """fork("srm.cli.score", "--model", ..., output=PATH, **environment): `python -m`, but for the imports, in a process to be killed.

    What it prints is in PATH.out and PATH.err.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        pytest.skip("this system does not fork processes")
    context = multiprocessing.get_context("forkserver")
    started: list[BaseProcess] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parent))
        import forks

        context.set_forkserver_preload(forks.PRELOADED)

        def start(module: str, *arguments: str, output: Path, **environment: str) -> BaseProcess:
            process = context.Process(target=forks.run_module, args=(module, arguments, environment, str(output)), daemon=True)
            process.start()
            started.append(process)
            return process

        yield start
    for process in started:
        process.kill()
        process.join()


@pytest.fixture(scope="session")
def awake_model(tiny_backbone_dir: Path) -> Callable[..., SentenceRewardModel]:
    """awake_model(path, seed=1, **config): a reward model whose head is not zero, the same each time; the tiny backbone if no path."""
    from srm import SentenceRewardModel

    def make(path: Path = tiny_backbone_dir, *, seed: int = 1, **config: Any) -> SentenceRewardModel:
        model = SentenceRewardModel.from_backbone(path, **config)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.head.parameters():
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
        return model.eval()

    return make
