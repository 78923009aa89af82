"""SentenceRewardConfig: everything that turns a backbone into a reward model, saved in `config.json`."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import fields
from inspect import signature
from pathlib import Path
from typing import Any, get_args

from transformers import AutoConfig, PretrainedConfig

from srm.data.schema import Granularity
from srm.errors import UserError
from srm.packing import LastLayerRows, PackingMode
from srm.runs.parser import did_you_mean
from srm.segmentation import SegmentationConfig
from srm_kernels import Pooling

__all__ = ["CODE_FILE", "SentenceRewardConfig", "check_fields", "positions_of"]

# What `granularity` decides by itself, so that sum(weight * sentence_reward) is the response reward in each of the three.
# response: differences telescope, r_0 + ... + r_n = v_n. token: boundaries at every response token, the mean of their values.
_HEAD_OF_GRANULARITY: dict[str, dict[str, Any]] = {
    "response": {"pooling": "sum", "difference": True, "include_prompt": True},
    "token": {"pooling": "mean", "difference": False, "include_prompt": False},
}
CODE_FILE = "modeling_srm.py"
"""Lies beside each saved config.json: programs that do not import srm load the model with `trust_remote_code=True`."""

_CODE = '''"""The code of this reward model is the package srm-kernels: pip install 'srm-kernels[srm]'."""

# In a `try`, transformers does not advise to install a package `srm`, which is somebody else's.
try:
    from srm.modeling import SentenceRewardConfig, SentenceRewardForSequenceClassification, SentenceRewardModel
except ImportError as error:
    raise ImportError(f"this reward model's code is the package srm-kernels: pip install 'srm-kernels[srm]' ({error})") from error

__all__ = ["SentenceRewardConfig", "SentenceRewardForSequenceClassification", "SentenceRewardModel"]
'''
_AUTO_MAP = {
    "AutoConfig": "modeling_srm.SentenceRewardConfig",
    "AutoModel": "modeling_srm.SentenceRewardModel",
    "AutoModelForSequenceClassification": "modeling_srm.SentenceRewardForSequenceClassification",
}
_OWN_FIELDS = (
    "granularity",
    "pooling",
    "rope_theta",
    "include_prompt",
    "difference",
    "boundary_token",
    "attention_size",
    "segmenter",
    "packing",
    "last_layer_rows",
)


def positions_of(config: PretrainedConfig) -> int | None:
    """The longest sequence that a model's positions reach, in tokens; None where its configuration states none.

    A sliding window is none: it bounds what a token sees, not where it stands.

    Args:
        config: of any transformers model; of several, the one that reads text counts.
    """
    text = config.get_text_config()
    stated = (getattr(text, name, None) for name in ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"))
    return next((value for value in stated if isinstance(value, int) and value > 0), None)


def check_fields(names: Iterable[str]) -> None:
    """Refuse what is no field of ours: transformers takes any name, and saves it, so that a misspelt one would change nothing.

    Args:
        names: of the fields that are given for a model on a backbone.

    Raises:
        UserError: one of them is unknown; the nearest is named.
    """
    known = [name for name in signature(SentenceRewardConfig.__init__).parameters if name not in ("self", "backbone_config", "kwargs")]
    for name in names:
        if name not in known:
            raise UserError(f"SentenceRewardConfig has no field {name!r}{_nearest(name, known)}")


def _nearest(name: str, known: Sequence[str]) -> str:
    near = did_you_mean(name, known)
    return near if near != "." else f". Choose from {', '.join(known)}."


def _checked_segmenter(segmenter: Any) -> dict[str, Any]:
    """Without making one, which may need a package."""
    if not isinstance(segmenter, dict):
        raise UserError(f'SentenceRewardConfig: `segmenter` must be a dict such as {{"name": "newline"}}, got {segmenter!r}.')
    known = [field.name for field in fields(SegmentationConfig)]
    for name in segmenter:
        if name not in known:
            raise UserError(f"SentenceRewardConfig: `segmenter` has no setting {name!r}{_nearest(str(name), known)}")
    SegmentationConfig(**segmenter)
    return dict(segmenter)


class SentenceRewardConfig(PretrainedConfig):
    """Configuration of a `SentenceRewardModel` (arXiv 2503.04793, section 3).

    Args:
        backbone_config: configuration of the decoder, as an object or as a dict with `model_type`.
        granularity: what the loss is trained on. `sentence`: pooled sentence rewards; `response`: the value at the last token;
            `token`: the mean of the values of the response's tokens.
        pooling: how sentence rewards become the response reward. `value_attention`: attention over the values, which weighs each
            sentence reward with all the attention from its sentence on; `attention`: the paper's, over the sentence rewards. For
            `sentence` only; the other granularities have their own.
        rope_theta: base of the rotary embedding on the sentence index inside the attention; None leaves it out.
        include_prompt: whether index 0, the prompt's value, joins the pooling.
        difference: whether a sentence's reward is the change of the value over it (True) or the value at its end (False).
        boundary_token: a special token inserted after the prompt and after each sentence (the authors used "<END>"), or None: ids stay
            as the policy produced them, and a boundary is the last token of its sentence.
        attention_size: width of the query and the key.
        segmenter: `{"name": "punkt" | "punkt_tab" | "sat" | "newline", ...}`, the arguments of `srm.segmentation.make_segmenter`.
        packing: `shared`, `packed` or `none`; how `score` runs responses unless told otherwise, where the backbone can.
        last_layer_rows: `boundaries`: the last decoder layer runs on the rows that the head reads, where that is proved to change nothing;
            `all`: on all rows, for who reads the hidden states of others, by a hook of their own.
        pad_token_id: of the tokenizer, for programs that ask for it here.
        training: what the model was trained on and how, as (name, value): the lines of its card.
        **kwargs: fields of `transformers.PretrainedConfig`.

    Raises:
        ValueError: an unknown value, or a pooling option set where the granularity leaves none.
    """

    model_type = "sentence_reward"

    def __init__(
        self,
        backbone_config: PretrainedConfig | dict[str, Any] | None = None,
        granularity: Granularity = "sentence",
        pooling: Pooling = "value_attention",
        rope_theta: float | None = 10_000.0,
        include_prompt: bool = True,
        difference: bool = True,
        boundary_token: str | None = None,
        attention_size: int = 256,
        segmenter: dict[str, Any] | None = None,
        packing: PackingMode = "shared",
        last_layer_rows: LastLayerRows = "boundaries",
        pad_token_id: int | None = None,
        training: Sequence[tuple[str, Any]] = (),
        **kwargs: Any,
    ) -> None:
        if isinstance(backbone_config, dict):
            given = dict(backbone_config)
            backbone_config = AutoConfig.for_model(given.pop("model_type"), **given)
        self.backbone_config = backbone_config
        self.granularity = granularity
        self.pooling = pooling
        self.rope_theta = rope_theta
        self.include_prompt = include_prompt
        self.difference = difference
        self.boundary_token = boundary_token
        self.attention_size = attention_size
        self.segmenter = _checked_segmenter(segmenter) if segmenter else {"name": "punkt"}
        self.packing = packing
        self.last_layer_rows = last_layer_rows
        self.pad_token_id = pad_token_id
        # Pairs, because JSON is written with its keys sorted.
        self.training = [(name, value) for name, value in training]
        self._check()
        # A classifier with one label, whose score is the bare logit.
        super().__init__(**{"id2label": {0: "reward"}, "label2id": {"reward": 0}, "problem_type": "regression", **kwargs})

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Save `config.json`, and beside it a file that imports the model's classes, for programs that do not import `srm`.

        Args:
            save_directory: the folder; made where there is none.
            *args: as in `transformers.PretrainedConfig.save_pretrained`.
            **kwargs: as in `transformers.PretrainedConfig.save_pretrained`.
        """
        self.auto_map = dict(_AUTO_MAP)
        super().save_pretrained(save_directory, *args, **kwargs)
        Path(save_directory, CODE_FILE).write_text(_CODE, encoding="utf-8")

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoConfig") -> None:
        """Nothing: transformers calls it for a class from a folder's code, and would then save this module in place of that code.

        Args:
            auto_class: not used.
        """

    @property
    def hidden_size(self) -> int:
        """Width of the backbone's hidden states, where DeepSpeed and others look for it."""
        if self.backbone_config is None:
            raise AttributeError("SentenceRewardConfig.hidden_size: there is no `backbone_config` to take it from.")
        return self.backbone_config.get_text_config().hidden_size

    @property
    def max_positions(self) -> int | None:
        """The longest sequence that the backbone's positions reach, in tokens; None where it states none."""
        return None if self.backbone_config is None else positions_of(self.backbone_config)

    @property
    def end_token_ids(self) -> list[int]:
        """The ids with which the backbone's configuration says that a turn ends."""
        listed = None if self.backbone_config is None else getattr(self.backbone_config.get_text_config(), "eos_token_id", None)
        return [token for token in (listed if isinstance(listed, (list, tuple)) else [listed]) if isinstance(token, int)]

    def own_fields(self) -> dict[str, Any]:
        """The fields that describe the reward model apart from its backbone: `from_backbone(name, **config.own_fields())`."""
        return {name: getattr(self, name) for name in _OWN_FIELDS}

    def head_arguments(self) -> dict[str, Any]:
        """Arguments of `srm_kernels.SentenceRewardHead` after `hidden_size`."""
        own = {"pooling": self.pooling, "difference": self.difference, "include_prompt": self.include_prompt}
        pooling = _HEAD_OF_GRANULARITY.get(self.granularity, own)
        return {**pooling, "attention_size": self.attention_size, "rope_theta": self.rope_theta}

    def _check(self) -> None:
        for name, value, allowed in (
            ("granularity", self.granularity, get_args(Granularity)),
            ("pooling", self.pooling, get_args(Pooling)),
            ("packing", self.packing, get_args(PackingMode)),
            ("last_layer_rows", self.last_layer_rows, get_args(LastLayerRows)),
        ):
            if value not in allowed:
                raise ValueError(f"SentenceRewardConfig: `{name}` must be one of {', '.join(allowed)}, got {value!r}.")
        changed = [
            name
            for name, value, default in (
                ("pooling", self.pooling, "value_attention"),
                ("difference", self.difference, True),
                ("include_prompt", self.include_prompt, True),
            )
            if value != default
        ]
        if self.granularity != "sentence" and changed:
            raise ValueError(
                f"SentenceRewardConfig: granularity={self.granularity!r} fixes how values are pooled, but {', '.join(changed)} was set. "
                "Leave it out, or use granularity='sentence'."
            )
        if self.attention_size < 2 or self.attention_size % 2:
            raise ValueError(
                f"SentenceRewardConfig: `attention_size` must be even and at least 2 (RoPE turns pairs), got {self.attention_size}."
            )
        if self.rope_theta is not None and not (math.isfinite(self.rope_theta) and self.rope_theta > 0):
            raise ValueError(f"SentenceRewardConfig: `rope_theta` must be a positive number or None, got {self.rope_theta!r}.")
