"""Which extra brings which package, and the one line that says so where a package is missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from srm.errors import UserError

__all__ = ["EXTRAS", "MissingPackage", "name_the_extra", "way_to_install"]

# Module as it is imported -> extra of srm-kernels, "" for what comes with the package itself. pyproject.toml has the versions.
EXTRAS = {
    "torch": "",
    "typing_extensions": "",
    "accelerate": "srm",
    "datasets": "srm",
    "filelock": "srm",
    "huggingface_hub": "srm",
    "jinja2": "srm",
    "numpy": "srm",
    "pyarrow": "srm",
    "rich": "srm",
    "safetensors": "srm",
    "tokenizers": "srm",
    "transformers": "srm",
    "yaml": "srm",
    "httpx": "client",
    "fastapi": "serve",
    "h11": "serve",
    "prometheus_client": "serve",
    "pydantic": "serve",
    "starlette": "serve",
    "uvicorn": "serve",
    "bitsandbytes": "quant",
    "deepspeed": "deepspeed",
    "flash_attn": "flash",
    "gguf": "demo",
    "liger_kernel": "liger",
    "matplotlib": "eval",
    "nltk": "nltk",
    "peft": "peft",
    "ray": "ray",
    "trl": "trl",
    "vllm": "vllm",
    "wtpsplit": "sat",
}


class MissingPackage(ModuleNotFoundError, UserError):
    """A package that an extra brings is not installed: a line for the commands, an ImportError for programs that try an import."""


def way_to_install(module: str) -> str:
    """`peft is not installed. Run: pip install 'srm-kernels[peft]'`."""
    extra = EXTRAS[module]
    package = f"'srm-kernels[{extra}]'" if extra else "srm-kernels"
    return f"{module} is not installed. Run: pip install {package}"


@contextmanager
def name_the_extra(what: str) -> Iterator[None]:
    """For a block of imports: a package that is missing and that an extra brings becomes one line, `what: way_to_install`.

    A package of no extra, or a part that an installed one lacks, keeps its traceback.

    Args:
        what: what needs the package, as its user calls it.

    Raises:
        MissingPackage: in place of the `ModuleNotFoundError`.
    """
    try:
        yield
    except MissingPackage:
        raise
    except ModuleNotFoundError as error:
        if error.name not in EXTRAS:
            raise
        raise MissingPackage(f"{what}: {way_to_install(error.name)}", name=error.name) from None
