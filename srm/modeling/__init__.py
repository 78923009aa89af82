"""The reward model: a backbone, the sentence head on its boundary rows, and what they say about a response."""

from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

from srm.modeling.config import SentenceRewardConfig
from srm.modeling.model import SentenceRewardModel, SentenceRewardOutput
from srm.modeling.reader import ModelReader
from srm.modeling.sequence_classification import SentenceRewardForSequenceClassification
from srm.scoring.results import ScoredResponse, ScoredSentence
from srm.scoring.stream import RewardStream
from srm.scoring.token_ids import ScoredTokens

__all__ = [
    "ModelReader",
    "RewardStream",
    "ScoredResponse",
    "ScoredSentence",
    "ScoredTokens",
    "SentenceRewardConfig",
    "SentenceRewardForSequenceClassification",
    "SentenceRewardModel",
    "SentenceRewardOutput",
]

# So that `AutoModel.from_pretrained(saved_dir)` and its kin work after `import srm`.
AutoConfig.register("sentence_reward", SentenceRewardConfig)
AutoModel.register(SentenceRewardConfig, SentenceRewardModel)
AutoModelForSequenceClassification.register(SentenceRewardConfig, SentenceRewardForSequenceClassification)
