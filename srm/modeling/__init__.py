"""The reward model: a backbone, the sentence head on its boundary rows, and what they say about a response."""

from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

from srm.modeling.config import SentenceRewardConfig
from srm.modeling.model import SentenceRewardModel, SentenceRewardOutput
from srm.modeling.sequence_classification import SentenceRewardForSequenceClassification
from srm.scoring.results import ScoredResponse, ScoredSentence
from srm.scoring.stream import RewardStream
from srm.scoring.token_ids import ScoredTokens

__all__ = [
    "RewardStream",
    "ScoredResponse",
    "ScoredSentence",
    "ScoredTokens",
    "SentenceRewardConfig",
    "SentenceRewardForSequenceClassification",
    "SentenceRewardModel",
    "SentenceRewardOutput",
]

# So that `AutoModel.from_pretrained(saved_dir)` works after `import srm`.
AutoConfig.register("sentence_reward", SentenceRewardConfig)
AutoModel.register(SentenceRewardConfig, SentenceRewardModel)
AutoModelForSequenceClassification.register(SentenceRewardConfig, SentenceRewardForSequenceClassification)
# pipeline("text-classification") looks here, and logs that a class is not supported which it does not find.
MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES[SentenceRewardConfig.model_type] = SentenceRewardForSequenceClassification.__name__
