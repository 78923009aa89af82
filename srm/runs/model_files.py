"""What a folder of a model holds, told by content: a record of scores must notice weights that changed in place."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

__all__ = ["hash_model_files", "model_files"]

# What a loader reads. Logs, optimizer states and whatever else lies there change no score.
_READ = (
    "*.safetensors",
    "*.safetensors.index.json",
    "pytorch_model*.bin",
    "pytorch_model*.bin.index.json",
    "adapter_model.bin",
    "config.json",
    "adapter_config.json",
    "tokenizer*",
    "*.model",
    "vocab.*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "additional_chat_templates/*",
    "*.py",
)
_CHUNK = 1 << 22


def model_files(folder: Path) -> list[Path]:
    """The files in `folder` that loading a model reads, in order of name."""
    return sorted({path for pattern in _READ for path in folder.glob(pattern) if path.is_file()})


def hash_model_files(folder: Path) -> dict[str, str]:
    """SHA-256 of each file that decides what the model in `folder` computes, by name.

    Sizes and times are not enough: weights saved anew have the same size, and a copy may keep the time or change it. Reading it all costs
    what loading costs anyway; the shards of a large model are read side by side.

    Args:
        folder: where the model is.
    """
    paths = model_files(folder)
    with ThreadPoolExecutor(max_workers=8) as pool:
        digests = pool.map(_hash, paths)
        return {path.relative_to(folder).as_posix(): digest for path, digest in zip(paths, digests, strict=True)}


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
