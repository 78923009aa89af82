"""What the scores of a model depend on, told by its files: a record of scores holds it, and workers on other machines are held to it."""

from __future__ import annotations

import json
from pathlib import Path

from transformers import PreTrainedConfig

from srm.hub import at_the_hub
from srm.modeling.alias import resolve_model_name
from srm.runs.model_files import hash_model_files

__all__ = ["model_contents"]


def model_contents(name: str) -> dict[str, str | None]:
    """The files of a model, and of the one that an adapter belongs to; of a model on the hub, its commit.

    Ask before the model is loaded: what is hashed is what is loaded then.

    Args:
        name: a folder, or a name on the hub.

    Returns:
        Digests by what they are of; nothing of a model that is not there, because whoever loads it says what is wrong.
    """
    return _contents(name, "model's")


def _contents(name: str, what: str) -> dict[str, str | None]:
    folder = Path(resolve_model_name(name))
    if folder.is_dir():
        contents: dict[str, str | None] = {f"{what} {file}": digest for file, digest in hash_model_files(folder).items()}
        return contents | _contents_of_base(folder)
    try:
        with at_the_hub(str(folder)):
            return {f"{what} commit": PreTrainedConfig.get_config_dict(str(folder))[0].get("_commit_hash")}
    except (OSError, ValueError):
        return {}


def _contents_of_base(folder: Path) -> dict[str, str | None]:
    """Of the model that the adapter in `folder` belongs to, if there is an adapter."""
    try:
        base = json.loads((folder / "adapter_config.json").read_bytes())["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return _contents(base, "base model's") if isinstance(base, str) and Path(base).resolve() != folder.resolve() else {}
