"""vLLM runs reward models: `register` tells it about them, through the entry point `vllm.general_plugins`.

The model is `srm.integrations.vllm.model`; the routes of its server are `srm.serving.vllm`. docs/scale.md has the command.
"""

from __future__ import annotations

import logging

from srm.extras import MissingPackage, name_the_extra

__all__ = ["ARCHITECTURE", "BOUNDARIES", "TASK", "register"]

logger = logging.getLogger(__name__)

ARCHITECTURE = "SentenceRewardModel"
"""What `architectures` in the config.json of a saved reward model says."""

TASK = "token_classify"
"""vLLM's name for outputs of single tokens. Its second model runner knows no task of a plugin's own."""

BOUNDARIES = "srm_boundaries"
"""The name, among a request's `extra_kwargs`, of the token positions whose rows it gets; all of them where it is missing."""


def register() -> None:
    """Tell vLLM about reward models. It calls this in each of its processes, whatever model it serves."""
    try:
        with name_the_extra("vLLM with reward models"):
            from transformers import AutoConfig

            from srm.integrations.vllm.config import EngineConfig
    except MissingPackage as error:
        # The ops can be installed alone, beside a vLLM that serves other models.
        logger.warning("%s", error)
        return
    from vllm import ModelRegistry

    AutoConfig.register(EngineConfig.model_type, EngineConfig, exist_ok=True)
    # By name: importing the model would start CUDA in a process that forks.
    ModelRegistry.register_model(ARCHITECTURE, "srm.integrations.vllm.model:EngineModel")
