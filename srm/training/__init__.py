"""Training on preference pairs: settings, trainer, checkpoints that survive a kill."""

from srm.training.arguments import DataArguments, ModelArguments, RewardConfig, parse_arguments
from srm.training.trainer import SentenceRewardTrainer

__all__ = ["DataArguments", "ModelArguments", "RewardConfig", "SentenceRewardTrainer", "parse_arguments"]
