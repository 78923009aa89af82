"""The model card: what a saved reward model is, what it was trained on and how, and three lines that use it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard

from srm.modeling.config import SentenceRewardConfig

__all__ = ["CARD", "TAGS", "is_hub_name", "model_card", "replace_draft", "table", "without_place", "write_card"]

CARD = "README.md"
"""The file's name, in folders and on the hub."""

TAGS = ("reward-model", "sentence-level", "srm")
"""By which the hub finds it."""

_TEXT = """---
{front}---

# {title}

A sentence-level reward model ([arXiv 2503.04793](https://arxiv.org/abs/2503.04793)): it scores a response and
each of its sentences.{adapter}

```python
from srm import SentenceRewardModel  # pip install 'srm-kernels[{extra}]'

model = SentenceRewardModel.from_pretrained({name!r})
print(model.score(["Where is Paris?"], ["It is in France. You should know that."])[0])
```

After `import srm`, the classes `AutoModel` and `AutoModelForSequenceClassification` of transformers load it, too{only}. In programs
that do not import `srm`, they do with `trust_remote_code=True`, where `srm-kernels` is installed.

{rows}
"""
# What transformers and peft write into a card leaves gaps with these words.
_FORM = "[More Information Needed]"
_ADAPTER = " This is a LoRA adapter: its base model is loaded with it, from where `adapter_config.json` says."
# By a hub name, transformers reads the base model's configuration in place of ours, and no class of ours is asked.
_ONLY = ", from a folder: where they are given a hub name, they look for the base model alone"


def model_card(config: SentenceRewardConfig, name: str, *, is_adapter: bool = False, front: Mapping[str, Any] | None = None) -> str:
    """The text of a model's README.md.

    Args:
        config: the model's; `training` is what the card says of the training.
        name: a hub name, or the folder's.
        is_adapter: whether a LoRA adapter is saved there, and no whole model.
        front: entries of the card's metadata beside our own, such as `license`.

    Returns:
        Markdown with metadata in front.
    """
    said = {"base model": without_place(_base(config)), **dict(config.training)}
    said["granularity, pooling"] = f"{config.granularity}, {config.head_arguments()['pooling']}"
    said["segmenter"] = config.segmenter["name"]
    metadata: dict[str, Any] = {"tags": list(TAGS), "library_name": "srm"}
    for key, where in (("base_model", "base model"), ("datasets", "training data")):
        if is_hub_name(said.get(where)):
            metadata[key] = said[where]
    metadata |= front or {}
    return _TEXT.format(
        front=yaml.safe_dump(metadata, sort_keys=False),
        title=_cell(name),
        adapter=_ADAPTER if is_adapter else "",
        only=_ONLY if is_adapter else "",
        extra="peft" if is_adapter else "srm",
        name=name,
        rows=table(said),
    )


def write_card(config: SentenceRewardConfig, folder: Path, *, is_adapter: bool = False) -> None:
    """Write the card of the model in `folder`, unless there is one, which may be the user's.

    Args:
        config: the model's.
        folder: where the model is saved.
        is_adapter: whether that is a LoRA adapter, and no whole model.
    """
    if not (folder / CARD).exists():
        (folder / CARD).write_text(model_card(config, folder.resolve().name, is_adapter=is_adapter), encoding="utf-8")


def replace_draft(config: SentenceRewardConfig, folder: Path, name: str, *, is_adapter: bool = False) -> None:
    """Put our card in the place of the form that transformers has laid into a folder for the hub, and keep that one's tags.

    A card that the hub has already, and transformers has fetched, stays.

    Args:
        config: the model's.
        folder: what will be uploaded.
        name: where to.
        is_adapter: whether a LoRA adapter is there, and no whole model.
    """
    card = folder / CARD
    text = card.read_text(encoding="utf-8") if card.is_file() else _FORM
    if _FORM in text:
        tags = ModelCard(text).data.to_dict().get("tags") or []
        front = {"tags": [*TAGS, *(tag for tag in tags if tag not in TAGS)]}
        card.write_text(model_card(config, name, is_adapter=is_adapter, front=front), encoding="utf-8")


def table(said: Mapping[str, Any]) -> str:
    """Names and values as a table in Markdown.

    Args:
        said: the rows; those without a value are left out.
    """
    rows = (f"| {name} | {_cell(value)} |" for name, value in said.items() if value not in (None, ""))
    return "\n".join(["| | |", "|---|---|", *rows])


def is_hub_name(value: object) -> bool:
    """Whether a card can name it as something on the hub.

    Args:
        value: what the card says.
    """
    return isinstance(value, str) and value.count("/") == 1


def without_place(name: str) -> str:
    """What a card calls a model or data: of a folder or file on this machine its last part alone, for the card may go to the hub.

    Args:
        name: a path, or a name on the hub.
    """
    path = Path(name).expanduser()
    return path.name if name and (path.is_absolute() or path.exists()) else name


def _base(config: SentenceRewardConfig) -> str:
    return getattr(config.backbone_config, "name_or_path", None) or ""


def _cell(value: object) -> str:
    """As text that stays inside its cell."""
    return " ".join(str(value).replace("|", "\\|").split())
