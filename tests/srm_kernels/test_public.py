"""The package from outside: its names, their arguments, and that it needs torch alone."""

import ast
import importlib
import inspect
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import srm_kernels

ROOT = Path(srm_kernels.__file__).parent

SIGNATURES = {
    "backend_report": [],
    "bradley_terry_loss": ["reward", "pairs", "margin", "label_smoothing", "centering", "weight", "backend"],
    "cu_from_lengths": ["lengths"],
    "difference_rewards": ["value", "cu_boundaries", "backend"],
    "gather_boundaries": ["hidden", "boundaries", "out_dtype", "backend"],
    "packed_gae": ["reward", "value", "cu_seqlens", "gamma", "lam", "bootstrap_value", "backend"],
    "segment_softmax": ["score", "cu_seqlens", "backend"],
    "sentence_attention_pool": [
        *("query", "key", "value", "cu_boundaries", "rope_theta", "include_prompt", "difference", "pooling", "backend")
    ],
    "sentence_pool": ["value", "cu_boundaries", "pooling", "include_prompt", "difference", "backend"],
    "token_rewards": ["sentence_reward", "boundaries", "cu_boundaries", "logprobs", "ref_logprobs", "kl_coef", "estimator", "backend"],
}


def test_names():
    classes = ["BackendReport", "SentenceLayout", "SentenceRewardHead", "SentenceRewardHeadOutput"]
    types = ["Backend", "Pooling"]
    assert sorted(srm_kernels.__all__) == sorted([*classes, *types, "__version__", "sentence_reward_head", *SIGNATURES])


def test_argument_names_and_order():
    for name, arguments in SIGNATURES.items():
        assert list(inspect.signature(getattr(srm_kernels, name)).parameters) == arguments, name
    head = list(inspect.signature(srm_kernels.sentence_reward_head).parameters)
    assert head[:4] == ["hidden", "layout", "value_weight", "value_bias"]
    assert list(inspect.signature(srm_kernels.SentenceLayout).parameters) == ["boundaries", "cu_boundaries", "ascending"]


DEFAULTS = {
    "bradley_terry_loss": {"margin": None, "label_smoothing": 0.0, "centering": 0.0, "weight": None},
    "gather_boundaries": {"out_dtype": None},
    "packed_gae": {"gamma": 1.0, "lam": 0.95, "bootstrap_value": None},
    "sentence_attention_pool": {"rope_theta": 1e4, "include_prompt": True, "difference": True, "pooling": "value_attention"},
    "sentence_pool": {"include_prompt": True, "difference": True},
    "sentence_reward_head": {"pooling": "value_attention", "rope_theta": 1e4, "include_prompt": True, "difference": True},
    "token_rewards": {"kl_coef": 0.0, "estimator": "k1"},
}
DEFAULTS["SentenceRewardHead"] = {"attention_size": 256, **DEFAULTS["sentence_reward_head"]}


def defaults(function) -> dict[str, object]:
    return {name: p.default for name, p in inspect.signature(function).parameters.items() if p.default is not inspect.Parameter.empty}


@pytest.mark.parametrize("name", DEFAULTS)
def test_defaults(name):
    """Pinned, and the same in the op and in its reference."""
    given = defaults(getattr(srm_kernels, name))
    assert given.pop("backend") == "auto"
    assert {argument: given[argument] for argument in DEFAULTS[name]} == DEFAULTS[name]
    assert all(given[argument] is None for argument in given.keys() - DEFAULTS[name].keys())
    if name not in ("SentenceRewardHead", "sentence_pool"):
        reference = getattr(importlib.import_module(f"srm_kernels.ops.{name}.reference"), f"{name}_reference")
        assert defaults(reference).items() <= given.items()


def test_needs_torch_alone():
    """In a process that can import torch, what torch itself needs, and nothing else."""
    code = """
        import importlib.metadata
        import sys

        # What torch itself asks for, less triton.
        needed = {"torch", "typing-extensions", "sympy", "mpmath", "filelock", "networkx", "jinja2", "markupsafe", "fsspec", "setuptools"}
        packages = importlib.metadata.packages_distributions()
        blocked = {name for name, owners in packages.items() if not needed & {owner.lower().replace("_", "-") for owner in owners}}
        # By name, too: Python 3.10 does not see the modules of every package, and what is not installed stays so.
        blocked |= {"triton", "transformers", "numpy", "datasets"}
        blocked.discard("srm_kernels")

        class Without:
            # A finder that does not find what is blocked.

            def __init__(self, finder):
                self.finder = finder

            def __getattr__(self, name):
                return getattr(self.finder, name)

            def find_spec(self, name, path=None, target=None):
                return None if name.partition(".")[0] in blocked else self.finder.find_spec(name, path, target)

        sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
        import torch

        import srm_kernels

        assert "triton" not in sys.modules and "srm" not in sys.modules
        head = srm_kernels.SentenceRewardHead(8, attention_size=4)
        layout = srm_kernels.SentenceLayout(torch.tensor([1, 3]), torch.tensor([0, 2]))
        out = head(torch.randn(4, 8), layout)
        srm_kernels.bradley_terry_loss(out.reward, torch.tensor([[0, 0]])).backward()
        assert "triton" not in sys.modules
        report = str(srm_kernels.backend_report())
        assert "triton not installed" in report and "cpu: torch (triton is not installed)" in report, report
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, cwd=ROOT.parent, check=False)
    assert done.returncode == 0, done.stderr


def test_importing_it_imports_nothing_else():
    """Besides torch: no triton, though it is there, no srm, and no module of the standard library that torch has not brought."""
    code = """
        import sys, torch
        before = set(sys.modules)
        import srm_kernels
        new = {name for name in set(sys.modules) - before if name.partition(".")[0] not in ("srm_kernels", "torch")}
        assert not new and "triton" not in sys.modules, new
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, cwd=ROOT.parent)


def test_imports_point_downwards():
    """srm_kernels never imports srm, and triton only in kernels and what serves them."""
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            for name in names:
                package = name.partition(".")[0]
                assert package != "srm", f"{path} imports {name}"
                assert package in {"torch", "triton", "srm_kernels", *sys.stdlib_module_names}, f"{path} imports {name}"
                if package == "triton" and node.col_offset == 0:
                    assert path.name in {"kernels.py", "rotation.py", "device.py", "compile_case.py"}, f"{path} imports {name}"
