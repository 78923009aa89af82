"""A reward model's configuration as vLLM reads one."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig

from srm.modeling.config import SentenceRewardConfig

__all__ = ["EngineConfig"]


class EngineConfig(SentenceRewardConfig):
    """vLLM sizes its memory from the text configuration: that is the backbone's.

    Args:
        *args: as in `srm.modeling.SentenceRewardConfig`.
        **kwargs: as in `srm.modeling.SentenceRewardConfig`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # transformers writes one for configurations that have none of their own, and this one's would not call ours.
        super().__init__(*args, **kwargs)

    def get_text_config(self, *args: Any, **kwargs: Any) -> PretrainedConfig:
        """The backbone's.

        Args:
            *args: as in `transformers.PretrainedConfig.get_text_config`.
            **kwargs: as in `transformers.PretrainedConfig.get_text_config`.
        """
        backbone = getattr(self, "backbone_config", None)
        return self if backbone is None else backbone.get_text_config(*args, **kwargs)
