"""What `pip install srm-kernels` gives with torch alone, for a client, and with the stack: what works, and what a missing package says."""

from __future__ import annotations

import json
import re
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Environment

    from srm import SentenceRewardModel

ROOT = Path(__file__).resolve().parents[2]
NO_STACK = "transformers is not installed. Run: pip install 'srm-kernels[srm]'"


def files_of_the_packages() -> set[str]:
    files = (path for package in ("srm", "srm_kernels") for path in (ROOT / package).rglob("*") if path.is_file())
    return {path.relative_to(ROOT).as_posix() for path in files if path.suffix != ".pyc"}


def test_sdist_and_wheel_hold_every_file(distributions: Path, wheel: Path) -> None:
    (sdist,) = distributions.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        in_sdist = {name.partition("/")[2] for name in archive.getnames()}
    assert files_of_the_packages() <= in_sdist
    assert files_of_the_packages() <= set(zipfile.ZipFile(wheel).namelist())


def test_torch_is_all_that_the_wheel_needs(torch_alone: Environment, with_torch: Environment) -> None:
    assert with_torch.packages() - torch_alone.packages() == {"srm-kernels"}


def test_the_ops_of_the_readme_print_what_it_says_with_torch_alone(with_torch: Environment) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n((?:(?!```).)*)```\n+```\n(.*?)```", readme, re.DOTALL)
    ((example, output),) = [block for block in blocks if "from srm_kernels import" in block[0]]
    done = with_torch.python(example)
    assert (done.returncode, done.stdout) == (0, output), done.stderr


def test_importing_srm_imports_no_torch_where_there_is_no_stack(with_torch: Environment) -> None:
    done = with_torch.python("import sys, srm; from srm import Client, ScoredResponse, UserError; assert 'torch' not in sys.modules")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("command", ["srm-score", "srm-eval", "srm-serve"])
def test_help_needs_no_stack(command: str, with_torch: Environment) -> None:
    done = with_torch.run(command, "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: {command}")


@pytest.mark.parametrize(
    ("command", "line"),
    [
        ("srm-train --help", f"srm-train: {NO_STACK}"),
        ("srm-rl --help", f"srm-rl: {NO_STACK}"),
        ("srm-score --model m --input i --output o", "srm-score: rich is not installed. Run: pip install 'srm-kernels[srm]'"),
        ("srm-eval --model m --suite s --output_dir o", "srm-eval: rich is not installed. Run: pip install 'srm-kernels[srm]'"),
        ("srm-serve --model m", "srm-serve: fastapi is not installed. Run: pip install 'srm-kernels[serve]'"),
        ("python -m srm.cli.demo", "srm-demo: rich is not installed. Run: pip install 'srm-kernels[srm]'"),
    ],
)
def test_a_command_without_the_stack_says_what_to_install(command: str, line: str, with_torch: Environment) -> None:
    done = with_torch.run(*command.split())
    assert (done.returncode, done.stdout, done.stderr) == (1, "", line + "\n")


@pytest.mark.parametrize(
    ("code", "line"),
    [
        ("from srm import SentenceRewardModel", f"srm.SentenceRewardModel: {NO_STACK}"),
        ("import srm; srm.Client('http://localhost')", "srm.Client: httpx is not installed. Run: pip install 'srm-kernels[client]'"),
        ("import srm.integrations.trl", "srm.integrations.trl: trl is not installed. Run: pip install 'srm-kernels[trl]'"),
    ],
)
def test_a_name_without_its_extra_says_what_to_install(code: str, line: str, with_torch: Environment) -> None:
    assert last_line(with_torch, code) == f"srm.extras.MissingPackage: {line}"


def test_the_client_needs_httpx_alone(with_httpx: Environment) -> None:
    """It gets as far as a port where nobody listens."""
    assert "torch" not in with_httpx.packages()
    code = "from srm import Client; Client('http://127.0.0.1:9', retry_seconds=0).score(['a'], ['b'])"
    assert last_line(with_httpx, code).startswith("srm.client.ServerUnavailable: http://127.0.0.1:9 cannot be reached")
    line = last_line(with_httpx, "from srm.client import _tokens_of; _tokens_of([], [])")
    assert line == "srm.extras.MissingPackage: srm.Client.score_tokens: torch is not installed. Run: pip install srm-kernels"


@pytest.mark.parametrize("command", ["srm-score", "srm-train"])
def test_help_with_the_stack(command: str, with_stack: Environment) -> None:
    done = with_stack.run(command, "--help")
    assert done.returncode == 0, done.stderr
    assert "usage: " in done.stdout


def test_the_stack_scores(with_stack: Environment, awake_model: Callable[[], SentenceRewardModel], tmp_path: Path) -> None:
    awake_model().save_pretrained(tmp_path / "model")
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "Where?", "response": "It is here. It is warm!"}) + "\n", encoding="utf-8")
    done = with_stack.run("srm-score", "--model", tmp_path / "model", "--input", rows, "--output", tmp_path / "scores.jsonl")
    assert done.returncode == 0, done.stderr
    scored = json.loads((tmp_path / "scores.jsonl").read_text(encoding="utf-8"))
    assert [sentence["text"] for sentence in scored["sentences"]] == ["It is here. ", "It is warm!"]
    code = f"import srm; from transformers import AutoModel; print(type(AutoModel.from_pretrained({str(tmp_path / 'model')!r})).__name__)"
    assert with_stack.python(code).stdout == "SentenceRewardModel\n"


@pytest.mark.parametrize(
    ("code", "line"),
    [
        ("import srm.integrations.trl", "srm.integrations.trl: trl is not installed. Run: pip install 'srm-kernels[trl]'"),
        (
            "import srm.modeling.adapter as a, pathlib; a.load_adapter(None, pathlib.Path('lora'))",
            "lora holds a LoRA adapter: peft is not installed. Run: pip install 'srm-kernels[peft]'",
        ),
        (
            "import srm.modeling.alias as a, pathlib; a._convert_once(pathlib.Path('m.gguf'), pathlib.Path('m'))",
            "smollm2-135m is read from m.gguf: gguf is not installed. Run: pip install 'srm-kernels[demo]'",
        ),
        (
            "from srm.segmentation import make_segmenter; make_segmenter('punkt_tab')",
            "segmenter `punkt_tab`: nltk is not installed. Run: pip install 'srm-kernels[nltk]'",
        ),
        (
            "from srm.segmentation import make_segmenter; make_segmenter('sat')",
            "segmenter `sat`: wtpsplit is not installed. Run: pip install 'srm-kernels[sat]'",
        ),
        (
            "import srm.evaluation.figure as f; f.span_figure({})",
            "the figure: matplotlib is not installed. Run: pip install 'srm-kernels[eval]'",
        ),
    ],
)
def test_the_stack_without_another_extra_says_what_to_install(code: str, line: str, with_stack: Environment) -> None:
    assert last_line(with_stack, code) == f"srm.extras.MissingPackage: {line}"


def last_line(environment: Environment, code: str) -> str:
    """The error that ends the code, without its traceback."""
    done = environment.python(code)
    assert done.returncode == 1, done.stdout
    return done.stderr.splitlines()[-1]


def test_every_link_of_the_package_page_is_absolute(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = archive.read(name).decode()
    assert "Description-Content-Type: text/markdown" in metadata
    page = metadata.partition("\n\n")[2]
    links = re.findall(r"\]\(([^)]+)\)", page)
    assert sum("raw.githubusercontent.com" in link for link in links) == page.count("![")
    assert [link for link in links if not link.startswith(("https://", "#"))] == []
    assert len(links) > 10
